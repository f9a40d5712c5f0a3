"""The energy of a hierarchy, and the three passes that every rule is made of: forward, predict, terms.

    F(z, θ) = Σ_l  π_l/2 |z_l - f_l(z_{l-1})|²  +  λ_l ρ_l(g_l(z_l), t_l)  +  β_l/2 |z_{l-1} - b_l(z_l)|²

Every term sees the parameters of one level. Squares are summed over a level's units, terms are kept per sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cora.meaning import Weight
from cora.schema import check, require
from cora.types import Activities, Context, Evidence, Hierarchy, Hold, Level, State, Theta

Weights = Weight | tuple[Weight, ...]
Trees = tuple[Any, ...]
"""Parameters of a hierarchy (or their gradient): one entry a Level."""


@dataclass(frozen=True)
class Energy:
    """A hierarchy and the weight of each kind of term: one number, or one a level from the lowest up."""

    hierarchy: Hierarchy
    precision: Weights = 1.0
    """π: of the state errors."""
    target: Weights = 1.0
    """λ: of the target errors."""
    reverse: Weights = 1.0
    """β: of the decoders' errors."""

    def __post_init__(self) -> None:
        check("energy", self)
        for i, level in enumerate(self.hierarchy):
            require(level.readout is None or level.error is not None, f"energy.hierarchy[{i}].error", None,
                    "its Level has a readout, which nothing would teach; nearest: chain.squared")
            require(level.error is None or level.readout is not None, f"energy.hierarchy[{i}].readout", None,
                    "its Level has an error, which has nothing to measure; nearest: error=None")
        for name, part in (("precision", "encode"), ("target", "readout"), ("reverse", "decode")):
            value = getattr(self, name)
            require(not isinstance(value, tuple) or len(value) == self.depth, f"energy.{name}", value,
                    f"must have an entry for each of this hierarchy's {self.depth} levels; nearest: 1.0")
            require(value == 1.0 or any(getattr(level, part) is not None for level in self.hierarchy),
                    f"energy.{name}", value, f"nothing reads it, as no level has a {part}; nearest: 1.0")

    @property
    def depth(self) -> int:
        """L: all levels, repeated ones counted one by one."""
        return sum(level.repeat for level in self.hierarchy)


class Terms(NamedTuple):
    """The weighted terms of F by level and sample; their sum over everything is F of the batch."""

    state: Float[Array, "L B"]
    target: Float[Array, "L B"]
    reverse: Float[Array, "L B"]


def stack(energy: Energy, parts: Sequence[Any]) -> tuple[Any, ...]:
    """Returns what is given once a level, from the lowest up, as a hierarchy wants it: once a Level, [repeat, ...].

    Goals, held values, states or parameters; None is for a level that has none. Raises ValueError for another number
    of them, and for a run of equal levels that only in part have one.
    """
    if len(parts) != energy.depth:
        raise ValueError(f"{len(parts)} entries for a hierarchy of {energy.depth} levels; expected one a level, None "
                         "where there is nothing")
    rest, whole = list(parts), []
    for level in energy.hierarchy:
        own, rest = rest[: level.repeat], rest[level.repeat :]
        missing = [part is None for part in own]
        if any(missing) and not all(missing):
            first = len(parts) - len(rest) - level.repeat
            raise ValueError(f"level {first + missing.index(True) + 1}: None, while others of levels {first + 1} to "
                             f"{first + level.repeat}, one repeated Level, have an entry; expected all or none of them")
        whole.append(None if missing[0] else jax.tree.map(lambda *leaves: jnp.stack(leaves), *own))
    return tuple(whole)


def unstack(energy: Energy, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns what a hierarchy holds once a Level, [repeat, ...], once a level: the inverse of `stack`."""
    return tuple(jax.tree.map(lambda x, i=i: x[i], part)
                 for level, part in zip(energy.hierarchy, parts, strict=True) for i in range(level.repeat))


def split(energy: Energy, weights: Weights | Array) -> tuple[Float[Array, " _"], ...]:
    """Returns weights for all levels as one array [repeat] for each Level."""
    every = jnp.broadcast_to(jnp.asarray(weights, jnp.result_type(float)), (energy.depth,))
    bounds = [sum(level.repeat for level in energy.hierarchy[:i]) for i in range(1, len(energy.hierarchy))]
    return tuple(jnp.split(every, bounds))


def scale(weights: tuple[Float[Array, " _"], ...], z: Activities) -> Activities:
    """Returns every level's arrays times that level's weight."""

    def times(w: Float[Array, " c"], x: Float[Array, "c ..."]) -> Float[Array, "c ..."]:
        return x * w.astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))

    return tuple(jax.tree.map(partial(times, w), part) for w, part in zip(weights, z, strict=True))


def add(a: Any, b: Any, times: float = 1.0) -> Any:
    """Returns a + times b, leaf by leaf."""
    return jax.tree.map(lambda x, y: x + times * y, a, b)


def clamp(z: Activities, evidence: Evidence) -> Activities:
    """Returns z with what is held at its value, and the highest value node at its own if that is clamped."""
    z = tuple(hold(part, held) for part, held in zip(z, evidence.held or (None,) * len(z), strict=True))
    if evidence.top is None:
        return z
    return (*z[:-1], jax.tree.map(lambda x, y: x.at[-1].set(y), z[-1], evidence.top))


def hold(z: State, held: Hold | None) -> State:
    """Returns the value nodes with the held ones at their value."""
    if held is None:
        return z
    for x, value, mask in zip(*map(jax.tree.leaves, (z, held.value, held.mask)), strict=True):
        fits = mask.ndim == x.ndim and all(n in (1, m) for n, m in zip(mask.shape, x.shape, strict=True))
        if value.shape != x.shape or not fits or mask.dtype != bool:
            raise ValueError(f"evidence.held: value {value.shape} and {mask.dtype} mask {mask.shape} for value nodes "
                             f"{x.shape}; expected a value of that shape and a bool mask that broadcasts to it")
    return jax.tree.map(lambda x, value, mask: jnp.where(mask, value, x), z, held.value, held.mask)


def forward(
    energy: Energy, params: Trees, evidence: Evidence, errors: Activities | None = None
) -> Activities:
    """Returns z_l = f_l(z_{l-1}) + e_l from the input up; e = 0 where no errors are given.

    What is held is so for the level above, but not in what is returned: `clamp` does that, of the top too. The map
    from errors to states is one to one and keeps volume. Source: Goemaere et al. (arXiv 2505.20137).
    """
    if len(evidence.held) not in (0, len(energy.hierarchy)):
        raise ValueError(f"evidence.held: {len(evidence.held)} entries; this hierarchy has {len(energy.hierarchy)} "
                         "Levels, each of which needs one, None where nothing is held; `stack` takes one a level")
    z, x = [], evidence.input
    for i, (level, stack) in enumerate(zip(energy.hierarchy, params, strict=True)):

        def climb(x: State, inner: tuple[Theta, State, Hold | None], level: Level = level) -> tuple[State, State]:
            x = level.encode(inner[0], x, evidence.context)
            x = x if inner[1] is None else add(x, inner[1])
            return hold(x, inner[2]), x

        inner = stack, None if errors is None else errors[i], evidence.held[i] if evidence.held else None
        if level.repeat == 1:  # what it puts out may be shaped unlike what it takes in
            x, own = climb(x, jax.tree.map(lambda leaf: leaf[0], inner))
            z.append(jax.tree.map(lambda leaf: leaf[None], own))
        else:
            x, states = jax.lax.scan(climb, x, inner)
            z.append(states)
    return tuple(z)


def below(z: Activities, x: State) -> Activities:
    """Returns the input z_{l-1} of every level, stacked as z is."""
    inputs = []
    for part in z:
        def shift(low: Array, own: Array) -> Array:
            return low[None] if own.shape[0] == 1 else jnp.concatenate([low[None], own[:-1]])

        inputs.append(jax.tree.map(shift, x, part))
        x = jax.tree.map(lambda own: own[-1], part)
    return tuple(inputs)


def predict(energy: Energy, params: Trees, inputs: Activities, context: Context) -> Activities:
    """Returns f_l of every level at these inputs, all levels of one kind at once."""
    return tuple(
        jax.vmap(level.encode, (0, 0, None))(stack, x, context)
        for level, stack, x in zip(energy.hierarchy, params, inputs, strict=True)
    )


def read(energy: Energy, params: Trees, z: Activities, context: Context) -> tuple[State, ...]:
    """Returns g_l of every level, None where a Level reads nothing out."""
    return tuple(
        None if level.readout is None else jax.vmap(level.readout, (0, 0, None))(stack, x, context)
        for level, stack, x in zip(energy.hierarchy, params, z, strict=True)
    )


def judge(energy: Energy, readouts: tuple[State, ...], goals: tuple[State, ...]) -> Float[Array, "L B"]:
    """Returns λ_l ρ_l of every level and sample, 0 where a Level reads nothing out or has no goal."""
    rows = [
        None if level.error is None or guess is None or goal is None else jax.vmap(level.error)(guess, goal)
        for level, guess, goal in zip(energy.hierarchy, readouts, goals or (None,) * len(readouts), strict=True)
    ]
    batch = next((row.shape[1] for row in rows if row is not None), 1)
    rows = [jnp.zeros((level.repeat, batch)) if row is None else row
            for level, row in zip(energy.hierarchy, rows, strict=True)]
    return jnp.concatenate(scale(split(energy, energy.target), tuple(rows)))


def squares(energy: Energy, errors: Activities, weights: Weights | Array) -> Float[Array, "L B"]:
    """Returns w_l/2 |e_l|² of every level and sample."""

    def half(x: Float[Array, "c B ..."]) -> Float[Array, "c B"]:
        return jnp.sum(jnp.square(x), axis=tuple(range(2, x.ndim))) / 2

    rows = tuple(sum(half(leaf) for leaf in jax.tree.leaves(part)) for part in errors)
    return jnp.concatenate(scale(split(energy, weights), cast(Activities, rows)))


def regress(energy: Energy, params: Trees, z: Activities, evidence: Evidence) -> tuple[State, ...]:
    """Returns z_{l-1} - b_l(z_l) of every level, None where a Level decodes nothing."""
    return tuple(
        None if level.decode is None
        else add(x, jax.vmap(level.decode, (0, 0, None))(stack, own, evidence.context), -1.0)
        for level, stack, x, own in zip(energy.hierarchy, params, below(z, evidence.input), z, strict=True)
    )


def reverse(energy: Energy, params: Trees, z: Activities, evidence: Evidence) -> Float[Array, "L B"]:
    """Returns β_l/2 |z_{l-1} - b_l(z_l)|² of every level and sample, 0 where a Level decodes nothing."""
    if all(level.decode is None for level in energy.hierarchy):
        return jnp.zeros((energy.depth, 1))
    errors = regress(energy, params, z, evidence)
    batch = jax.tree.leaves(z)[0].shape[1]
    filled = tuple(jnp.zeros((level.repeat, batch)) if e is None else e
                   for level, e in zip(energy.hierarchy, errors, strict=True))
    return squares(energy, filled, energy.reverse)


def terms(energy: Energy, params: Trees, z: Activities, evidence: Evidence) -> Terms:
    """Returns all terms of F at these value nodes (a clamped top is put in its place first)."""
    z = clamp(z, evidence)
    errors = add(z, predict(energy, params, below(z, evidence.input), evidence.context), -1.0)
    state = squares(energy, errors, energy.precision)
    target = judge(energy, read(energy, params, z, evidence.context), evidence.goals)
    others = target, reverse(energy, params, z, evidence)
    return Terms(state, *(jnp.broadcast_to(x, state.shape) for x in others))


def total(energy: Energy, params: Trees, z: Activities, evidence: Evidence) -> Float[Array, ""]:
    """Returns F, summed over the batch."""
    return sum((jnp.sum(term) for term in terms(energy, params, z, evidence)), jnp.zeros(()))
