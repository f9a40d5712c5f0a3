"""Is a representation healthy, and how does a rule settle and learn? Pure functions of latents, states and gradients.

Trees of gradients, errors and states are stacked as everywhere: a tuple with one entry a Level, a leading axis for its
repeats. A diagnosis by level has one number a level, repeated ones counted one by one.
"""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from cora.pc import energy as F
from cora.pc.energy import Energy, Trees
from cora.types import Activities, Evidence


def effective_rank(x: Float[Array, "n D"]) -> Float[Array, ""]:
    """Returns exp of the entropy of the normalised singular values of the centred rows: 1 (collapsed) to min(n-1, D).

    Source: RankMe (arXiv 2210.02885), with the rows centred so that a common offset does not count as a direction.
    """
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    wide = centred if x.shape[0] < x.shape[1] else centred.T
    # Lengths along the eigenvectors, not the roots of eigenvalues, whose rounding of 1e-7 is 3e-4 in each of a thousand
    # roots; an SVD takes ten times as long on a CPU.
    values = jnp.linalg.norm(jnp.linalg.eigh(wide @ wide.T)[1].T @ wide, axis=1)
    share = values / jnp.maximum(jnp.sum(values), 1e-12)
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12))))


def spread(x: Float[Array, "n D"]) -> Float[Array, ""]:
    """Returns the standard deviation of a channel over the rows, averaged over channels; 0 for a collapsed sample."""
    return jnp.mean(jnp.std(x, axis=0))


def health(latents: Float[Array, "L B N D"], rows: int = 512) -> dict[str, Float[Array, " L"]]:
    """Returns rank and standard deviation of every level over about `rows` tokens spread evenly over the batch."""
    levels, _, _, width = latents.shape
    tokens = latents.reshape(levels, -1, width)
    tokens = tokens[:, :: max(1, tokens.shape[1] // rows)]
    return {
        "rank": jnp.stack([effective_rank(level) for level in tokens]),
        "std": jnp.stack([spread(level) for level in tokens]),
    }


def dots(a: Trees, b: Trees) -> Float[Array, " L"]:
    """Returns the inner product of two trees with stacked leaves, one number a level."""

    def one(x: Array, y: Array) -> Float[Array, " c"]:
        return jnp.sum((x * y).reshape(x.shape[0], -1), axis=1)

    return jnp.concatenate([
        sum(jax.tree.leaves(jax.tree.map(one, x, y)), jnp.zeros(())) for x, y in zip(a, b, strict=True)
    ])


def cosine(a: Trees, b: Trees) -> Float[Array, " L"]:
    """Returns the cosine of two gradients, one number a level, 0 where either is zero.

    Against backprop, give backprop's gradient of the same evidence at the forward pass (preset `exact`).
    """
    size = jnp.sqrt(dots(a, a) * dots(b, b))
    return jnp.where(size > 0, dots(a, b) / jnp.where(size > 0, size, 1.0), 0.0)


def norm_ratio(a: Trees, b: Trees) -> Float[Array, " L"]:
    """Returns |a| / |b| of two gradients, one number a level, infinite (or NaN for 0/0) where b is zero."""
    return jnp.sqrt(dots(a, a) / dots(b, b))


def norms(errors: Activities) -> Float[Array, " L"]:
    """Returns the root mean square over the batch of every level's norm, of errors or of states."""
    return jnp.sqrt(dots(errors, errors) / jax.tree.leaves(errors)[0].shape[1])


def wavefront(errors: Activities, threshold: float = 0.0) -> Int[Array, ""]:
    """Returns how many levels below the top errors have come: 0 the top alone, L - 1 the lowest, -1 nowhere.

    A level counts where its norm exceeds `threshold` times the largest level's; 0 asks for any nonzero value.
    """
    # Of magnitudes, not of squares: a square underflows long before the value is zero.
    size = jnp.concatenate([
        jnp.max(jnp.stack([jnp.max(jnp.abs(x.reshape(x.shape[0], -1)), axis=1) for x in jax.tree.leaves(part)]), axis=0)
        for part in errors
    ]) if threshold == 0 else norms(errors)
    reached = size > threshold * jnp.max(size)
    return jnp.max(jnp.where(reached, jnp.arange(size.shape[0])[::-1], -1))


def level_energy(energy: Energy, params: Trees, z: Activities, evidence: Evidence) -> Float[Array, " L"]:
    """Returns all terms of F of every level at these states, a mean over the batch."""
    return jnp.mean(sum(F.terms(energy, params, z, evidence), jnp.zeros(())), axis=1)


def residual(energy: Energy, params: Trees, z: Activities, evidence: Evidence) -> Float[Array, ""]:
    """Returns |dF/dz| over the batch: how far these states are from rest. A clamped top has no slope."""
    return optax.tree.norm(jax.grad(F.total, argnums=2)(energy, params, z, evidence))


def activity_hessian(energy: Energy, params: Trees, z: Activities, evidence: Evidence) -> Float[Array, "B n n"]:
    """Returns the second derivative of each sample's F in its n free units, levels in order; for small nets."""

    def free(z: Activities) -> Activities:
        return z if evidence.top is None else (*z[:-1], jax.tree.map(lambda x: x[:-1], z[-1]))

    def whole(part: Activities) -> Activities:
        if evidence.top is None:
            return part
        return (*part[:-1], jax.tree.map(lambda x, t: jnp.concatenate([x, t[None]]), part[-1], evidence.top))

    ravel = jax.vmap(lambda sample: ravel_pytree(sample)[0], in_axes=1)
    unravel = jax.vmap(ravel_pytree(jax.tree.map(lambda x: x[:, 0], free(z)))[1], out_axes=1)
    flat = ravel(free(z))
    slope = jax.grad(lambda flat: F.total(energy, params, whole(unravel(flat)), evidence))

    def column(unit: Float[Array, " n"]) -> Float[Array, "B n"]:
        # Samples do not touch each other in F: one direction for all of them is a column of every sample's block.
        return jax.jvp(slope, (flat,), (jnp.broadcast_to(unit[None], flat.shape),))[1]

    return jax.vmap(column, out_axes=2)(jnp.eye(flat.shape[1], dtype=flat.dtype))


def condition(hessian: Float[Array, "B n n"]) -> Float[Array, " B"]:
    """Returns the largest over the smallest magnitude of an eigenvalue of each sample: the steps settling takes."""
    values = jnp.abs(jnp.linalg.eigvalsh(hessian))
    return jnp.max(values, axis=1) / jnp.min(values, axis=1)
