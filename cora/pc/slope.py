"""What pulls at value nodes: errors and slopes of the energy's parts, as pure functions of states and evidence."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cora.pc import energy as F
from cora.pc.energy import Energy, Trees, add
from cora.types import Activities, Evidence, Hold, State, Theta


def closing(evidence: Evidence, z: Activities) -> Activities:
    """Returns the error that a clamped top leaves at the highest level, and held values in theirs; zero elsewhere."""
    if evidence.top is None and not evidence.held:
        return jax.tree.map(jnp.zeros_like, z)
    return add(F.clamp(z, evidence), z, -1.0)


def unclamped(x: Activities, evidence: Evidence) -> Activities:
    """Returns slopes or errors with nothing at a clamped top and where values are held."""
    held = tuple(own and Hold(jax.tree.map(jnp.zeros_like, own.value), own.mask) for own in evidence.held)
    top = None if evidence.top is None else jax.tree.map(jnp.zeros_like, evidence.top)
    return F.clamp(x, evidence._replace(held=held, top=top))


def unmoved(params: Trees, first: Trees) -> tuple[Bool[Array, " _"], ...]:
    """Returns of every level whether its weights are the very ones of `first`."""

    def level(own: Theta, start: Theta) -> Bool[Array, " c"]:
        same = [jnp.all((x == y).reshape(x.shape[0], -1), axis=1)
                for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(start), strict=True)]
        return jnp.all(jnp.stack(same), axis=0) if same else jnp.array([True])

    return tuple(level(own, start) for own, start in zip(params, first, strict=True))


def missed(
    z: Activities, mu: Activities, ff: Activities, fixed: tuple[Bool[Array, " _"], ...] | None = None
) -> Activities:
    """Returns z - mu, exactly zero in a sample whose z_l and z_{l-1} both still stand at the forward pass, in levels
    with the weights of that pass (`fixed`; None: all): weights that moved predict something else there.

    Beware: the forward pass and mu are compiled apart and may round apart. Without this a float32 network is never at
    zero energy, and a few levels below the output rounding exceeds the signal.
    """

    def stays(own: State, start: State) -> Bool[Array, "c B"]:
        same = [jnp.all((x == y).reshape(*x.shape[:2], -1), axis=2)
                for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(start), strict=True)]
        return jnp.all(jnp.stack(same), axis=0)

    still = tuple(stays(own, start) for own, start in zip(z, ff, strict=True))
    under = F.below(still, jnp.ones(still[0].shape[1], bool))
    if fixed is not None:
        under = tuple(low & rest[:, None] for low, rest in zip(under, fixed, strict=True))

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


def arrived(energy: Energy, step: Int[Array, ""], clamped: bool) -> Activities:
    """Returns which levels the output's error reaches at this step, one lower each step: the highest at step 1, or at
    step 0 where its value node is clamped to the output."""
    return tuple(jnp.asarray(x) for x in F.split(energy, jnp.arange(energy.depth, 0, -1) - clamped == step))
