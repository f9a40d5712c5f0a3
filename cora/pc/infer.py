"""Inference: how value nodes settle, before weights are touched.

Every rule ends in the same thing: errors e_l, and the states at which the weights' derivatives are taken. A rule
chooses what moves (states or errors), where the network is linearised, how a step is made (any optax transformation, or
a gradient flow) and when to stop.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from cora.pc import energy as F
from cora.pc.energy import Energy, Trees, add, scale
from cora.pc.flow import flow
from cora.types import Activities, Evidence, Key, State


@dataclass(frozen=True)
class Inference:
    """How value nodes settle; the default is a plain gradient descent on the states."""

    variable: Literal["none", "state", "error", "flow"] = "state"
    """`none`: the forward pass. `state`: descent on z. `error`: descent on e with z = f(z) + e (ePC). `flow`: the
    gradient flow of z, integrated to rest."""
    steps: int = 20
    optimiser: optax.GradientTransformation = field(default_factory=lambda: optax.sgd(0.1))
    linearise: Literal["current", "forward"] = "current"
    """Where f_l and its Jacobian are taken while states move; `forward` also takes the weights' derivatives there."""
    noise: float = 0.0
    """Standard deviation of the noise added to a step; sqrt(2 rate) samples the posterior (MCPC)."""
    precision: Callable[[Int[Array, ""]], Float[Array, " L"]] | None = None
    """π_l by step, in place of the energy's."""
    stop: float = 0.0
    """Stop when the slope's norm has fallen below this fraction of its largest so far; 0 goes on to the last step."""
    keep: Literal["last", "stale", "arrival"] = "last"
    """Which errors learning gets: those of the settled states; those from before the last step (Torch2PC); or
    each as it was when the output's error first arrived there (Z-IL)."""
    shortcut: tuple[int, float] = (0, 0.0)
    """(distance d, gain γ): a state also moves by γ times the error d levels above it, where their shapes agree: an
    extra error path in the manner of rec-LRA (arXiv 2002.03911). It follows no energy."""
    forward_only: bool = False
    """Leave f_l out of the settling: it only starts the states, and learns from where they went (hybrid PC)."""
    duration: float = 20.0
    """`flow`: the longest time to integrate."""
    tolerance: float = 1e-3
    """`flow`: relative and absolute tolerance of the step-size controller and of the rest condition."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("noise", 0.0), ("stop", 0.0), ("duration", 0.0), ("tolerance", 0.0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must not be below {least}; nearest: {least}")
        if self.variable == "error" and (self.linearise == "forward" and self.steps != 1):
            raise ValueError(f"linearise = 'forward' with steps = {self.steps}: errors leave the forward pass after "
                             "one step; nearest: 1")

    @property
    def frozen(self) -> bool:
        """Whether f_l's weights learn at the states of the forward pass."""
        return self.linearise == "forward" or self.keep == "arrival" or self.forward_only


class Errors(NamedTuple):
    """Prediction errors: of the states, e_l = z_l - f_l, and the slope of ρ_l in the readout, dρ_l/dg_l."""

    state: Activities
    target: tuple[State, ...]


class Settled(NamedTuple):
    """What inference hands to learning."""

    z: Activities
    inputs: Activities
    """The states at which the weights' derivatives are taken: z, or the forward pass."""
    errors: Errors


class Trace(NamedTuple):
    """What happened while states settled."""

    energy: Float[Array, "K L"]
    """Energy of each level before each step, all its terms, summed over the batch; a last row where the states end, if
    weights learn there."""
    residual: Float[Array, " K"]
    """Norm of the slope of F in the states (or errors), for the same rows."""


Learned = tuple[Trees, Any]
"""Parameters, and whatever else changes with them while states settle (an optimiser's state, a sum of gradients)."""
Hook = Callable[[Learned, Settled, Int[Array, ""]], Learned]
"""(learned, where inference stands, step) -> learned: for what learns before states have settled (iPC, sums)."""


class Memory(NamedTuple):
    """What a descent on states carries besides them."""

    errors: Activities
    before: Activities
    """The states at which the errors were taken."""


def missed(z: Activities, mu: Activities, ff: Activities) -> Activities:
    """Returns z - mu, exactly zero in a sample whose z_l and z_{l-1} both still stand at the forward pass.

    Beware: the forward pass and mu are compiled apart and may round apart. Without this a float32 network is never at
    zero energy, and a few levels below the output rounding exceeds the signal.
    """

    def stays(own: State, start: State) -> Bool[Array, "c B"]:
        same = [jnp.all((x == y).reshape(*x.shape[:2], -1), axis=2)
                for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(start), strict=True)]
        return jnp.all(jnp.stack(same), axis=0)

    still = tuple(stays(own, start) for own, start in zip(z, ff, strict=True))
    under = F.below(still, jnp.ones(still[0].shape[1], bool))

    def one(rest: Bool[Array, "c B"], x: Array, m: Array) -> Array:
        return jnp.where(rest.reshape(*rest.shape, *(1,) * (x.ndim - 2)), 0, x - m)

    return tuple(jax.tree.map(partial(one, own & low), x, m)
                 for own, low, x, m in zip(still, under, z, mu, strict=True))


def slopes(energy: Energy, params: Trees, z: Activities, evidence: Evidence) -> tuple[State, ...]:
    """Returns λ_l dρ_l/dg_l at these value nodes, None where a Level reads nothing out."""
    if not evidence.goals:
        return (None,) * len(z)
    readouts = F.read(energy, params, z, evidence.context)
    return jax.grad(lambda guesses: jnp.sum(F.judge(energy, guesses, evidence.goals)))(readouts)


def aims(energy: Energy, params: Trees, z: Activities, evidence: Evidence) -> Float[Array, "L _"]:
    """Returns the terms of F other than the state errors, by level and sample."""
    target = F.judge(energy, F.read(energy, params, z, evidence.context), evidence.goals)
    return target + F.reverse(energy, params, z, evidence)


def aimed(
    energy: Energy, params: Trees, z: Activities, evidence: Evidence
) -> tuple[Activities, Float[Array, " L"]]:
    """Returns the slope of the terms other than the state errors in z, and those terms, summed over the batch."""

    def both(z: Activities) -> tuple[Float[Array, ""], Float[Array, " L"]]:
        rows = jnp.sum(aims(energy, params, z, evidence), axis=1)
        return jnp.sum(rows), rows

    return jax.grad(both, has_aux=True)(z)


def shorten(errors: Activities, slope: Activities, distance: int, gain: float) -> Activities:
    """Returns the slope less `gain` times the error `distance` levels above, within each run of equal levels."""

    def one(e: Float[Array, "c ..."], g: Float[Array, "c ..."]) -> Float[Array, "c ..."]:
        return g if e.shape[0] <= distance else g.at[:-distance].add(-gain * e[distance:])

    return jax.tree.map(one, errors, slope)


def arrived(energy: Energy, step: Int[Array, ""]) -> Activities:
    """Returns which levels the output's error reaches at this step: the highest at step 1, one lower each step."""
    return tuple(jnp.asarray(x) for x in F.split(energy, jnp.arange(energy.depth, 0, -1) == step))


def state_slope(energy: Energy, rule: Inference, evidence: Evidence, ff: Activities) -> Callable:
    """Returns (params, z, memory, step) -> (slope of F in z, memory, energy of each level)."""

    def at(params: Trees, z: Activities) -> Activities:
        return F.predict(energy, params, F.below(z, evidence.input), evidence.context)

    def slope(params: Trees, z: Activities, memory: Memory, step: Array) -> tuple[Activities, Memory, Array]:
        point = ff if rule.linearise == "forward" else z
        mu, pull = jax.vjp(lambda z: at(params, z), point)
        if rule.linearise == "forward":
            errors = add(z, ff, -1.0)
        else:
            errors = missed(z, mu, ff)
        precision = energy.precision if rule.precision is None else rule.precision(step)
        precision = 0.0 if rule.forward_only else precision
        weighed = scale(F.split(energy, precision), errors)
        own, rows = aimed(energy, params, point, evidence)
        g = add(add(weighed, pull(weighed)[0], -1.0), own)
        if rule.shortcut[0]:
            g = shorten(weighed, g, *rule.shortcut)
        g = unclamped(g, evidence)
        kept = errors
        if rule.keep == "arrival":
            now = scale(arrived(energy, step), errors)
            kept = add(memory.errors, now)
        row = rows + jnp.sum(F.squares(energy, errors, precision), axis=1)
        return g, Memory(kept, point), row

    return slope


def error_slope(energy: Energy, rule: Inference, evidence: Evidence) -> Callable:
    """Returns (params, e, memory, step) -> (slope of F in the errors, memory, energy of each level)."""

    def rows(params: Trees, e: Activities, precision: F.Weights | Array) -> tuple[Array, Array]:
        z = F.forward(energy, params, evidence, e)
        own = add(e, closing(evidence, z))
        row = jnp.sum(F.squares(energy, own, precision), axis=1)
        row = row + jnp.sum(aims(energy, params, F.clamp(z, evidence), evidence), axis=1)
        return jnp.sum(row), row

    def slope(params: Trees, e: Activities, memory: Memory, step: Array) -> tuple[Activities, Memory, Array]:
        precision = energy.precision if rule.precision is None else rule.precision(step)
        g, row = jax.grad(rows, argnums=1, has_aux=True)(params, e, precision)
        g = unclamped(g, evidence)
        return g, memory, row

    return slope


def unclamped(x: Activities, evidence: Evidence) -> Activities:
    """Returns slopes or errors with nothing at a clamped top."""
    if evidence.top is None:
        return x
    return (*x[:-1], jax.tree.map(lambda leaf: leaf.at[-1].set(0), x[-1]))


def closing(evidence: Evidence, z: Activities) -> Activities:
    """Returns the error that a clamped top leaves at the highest level, zero elsewhere."""
    zero = jax.tree.map(jnp.zeros_like, z)
    if evidence.top is None:
        return zero
    return (*zero[:-1], jax.tree.map(lambda o, x, y: o.at[-1].set(y - x[-1]), zero[-1], z[-1], evidence.top))


def loop(
    slope: Callable, rule: Inference, learned: Learned, x: Activities, memory: Memory, key: Key | None = None,
    hook: Callable[[Learned, Activities, Activities, Int[Array, ""]], Learned] | None = None,
    pin: Callable[[Activities], Activities] = lambda x: x,
) -> tuple[Learned, Activities, Memory, Trace]:
    """Runs the one loop in which anything settles: slope, hook, step of the optimiser, noise, pin, stop."""
    if rule.noise and key is None:
        raise ValueError(f"noise = {rule.noise}: a rule with noise needs a key")

    def body(carry: tuple, step: Int[Array, ""]) -> tuple[tuple, tuple[Array, Array]]:
        learned, x, memory, moments, largest, going = carry
        g, memory, row = slope(learned[0], x, memory, step)
        if hook is not None:
            learned = hook(learned, x, memory.errors, step)
        size = optax.tree.norm(g)
        update, after = rule.optimiser.update(g, moments, x)
        if rule.noise and key is not None:
            update = add(update, optax.tree.random_like(jax.random.fold_in(key, step), x), rule.noise)
        moved = pin(add(x, update)), after
        if rule.stop:
            largest = jnp.maximum(largest, size)
            going = going & (size >= rule.stop * largest)
            moved = jax.tree.map(lambda new, old: jnp.where(going, new, old), moved, (x, moments))
        x, moments = moved
        return (learned, x, memory, moments, largest, going), (row, size)

    start: tuple = (learned, x, memory, rule.optimiser.init(x), jnp.zeros(()), jnp.array(True))
    (learned, x, memory, *_), (trace, residual) = jax.lax.scan(body, start, jnp.arange(rule.steps))
    return learned, x, memory, Trace(trace, residual)


def settle(
    energy: Energy, params: Trees, evidence: Evidence, rule: Inference, key: Key | None = None
) -> tuple[Settled, Trace]:
    """Returns the states, errors and points of differentiation in which this rule ends; it always starts forward.

    `key` is needed where the rule adds noise.
    """
    ff = F.forward(energy, params, evidence)
    z, zero = F.clamp(ff, evidence), jax.tree.map(jnp.zeros_like, ff)
    memory, trace = Memory(zero, z), Trace(jnp.zeros((0, energy.depth)), jnp.zeros(0))
    if rule.variable == "error":
        slope = error_slope(energy, rule, evidence)
        _, e, _, trace = loop(slope, rule, (params, None), zero, memory, key, pin=lambda e: unclamped(e, evidence))
        z = ff if rule.frozen else F.forward(energy, params, evidence, e)
        errors, z = add(e, closing(evidence, z)), F.clamp(z, evidence)
        seen = z
    elif rule.variable == "state":
        slope = state_slope(energy, rule, evidence, ff)
        _, z, memory, trace = loop(slope, rule, (params, None), z, memory, key, pin=lambda z: F.clamp(z, evidence))
        errors, seen = memory.errors, memory.before
        if rule.forward_only or (rule.linearise == "forward" and rule.keep == "last"):
            errors = add(z, ff, -1.0)
        elif rule.keep == "last":
            g, (errors, seen), row = slope(params, z, memory, jnp.asarray(rule.steps))
            last = Trace(row[None], optax.tree.norm(g)[None])  # what nobody asks for is not compiled
            trace = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), trace, last)
    elif rule.variable == "flow":
        z = seen = F.clamp(flow(energy, params, evidence, z, rule.duration, rule.tolerance), evidence)
        errors = add(z, F.predict(energy, params, F.below(z, evidence.input), evidence.context), -1.0)
    else:
        errors, seen = closing(evidence, ff), z
    inputs = F.clamp(ff, evidence) if rule.frozen else z
    target = slopes(energy, params, inputs if rule.frozen else seen, evidence)
    return Settled(z, inputs, Errors(errors, target)), trace


def settle_and_learn(
    energy: Energy, learned: Learned, evidence: Evidence, rule: Inference, hook: Hook, key: Key | None = None
) -> tuple[Learned, Settled, Trace]:
    """Returns what `hook` made of the weights while the states descended, where inference ended, and how it went.

    Raises ValueError for rules that do not descend on states at the current point.
    """
    if rule.variable != "state" or rule.frozen:
        raise ValueError(f"variable = {rule.variable!r}, linearise = {rule.linearise!r}: weights can learn while "
                         "states settle only where states move at the current point; nearest: 'state', 'current'")

    def at(learned: Learned, z: Activities, errors: Activities, step: Int[Array, ""]) -> Learned:
        here = Settled(z, z, Errors(errors, slopes(energy, learned[0], z, evidence)))
        return hook(learned, here, step)

    ff = F.forward(energy, learned[0], evidence)
    zero, z = jax.tree.map(jnp.zeros_like, ff), F.clamp(ff, evidence)
    slope = state_slope(energy, rule, evidence, ff)
    learned, z, _, trace = loop(slope, rule, learned, z, Memory(zero, z), key, at, lambda z: F.clamp(z, evidence))
    errors = add(z, F.predict(energy, learned[0], F.below(z, evidence.input), evidence.context), -1.0)
    return learned, Settled(z, z, Errors(errors, slopes(energy, learned[0], z, evidence))), trace
