"""Priors on a level's value nodes: how far latents are from an isotropic Gaussian (SIGReg), or from channels that vary
and do not repeat each other (VICReg).

Sources: LeJEPA (arXiv 2511.08544), sliced Epps-Pulley statistics; VICReg (Bardes et al. 2022, arXiv 2105.04906);
written from their formulas.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cora import config
from cora.types import Key

POINTS = 17
REACH = 3.0


def epps_pulley(u: Float[Array, "n K"]) -> Float[Array, " K"]:
    """Returns n ∫ |φ_n(t) - φ(t)|² φ(t) dt over [-3, 3] of each column, 0 in expectation as n grows only for N(0, 1).

    φ_n(t) = mean exp(i t u) and φ(t) = exp(-t²/2); the trapezoid rule on 17 points of [0, 3], doubled by symmetry.
    The factor n is LeJEPA's: for true normal samples the statistic does not depend on n, for others it grows with it.
    """
    t = jnp.linspace(0.0, REACH, POINTS)
    dt = REACH / (POINTS - 1)
    weight = jnp.full(POINTS, 2 * dt).at[jnp.array([0, POINTS - 1])].set(dt)
    phi = jnp.exp(-jnp.square(t) / 2)
    angle = u[None] * t[:, None, None]
    real, imaginary = jnp.mean(jnp.cos(angle), axis=1), jnp.mean(jnp.sin(angle), axis=1)
    gap = jnp.square(real - phi[:, None]) + jnp.square(imaginary)
    return u.shape[0] * jnp.einsum("t,tk->k", weight * phi, gap)


def sigreg(key: Key, z: Float[Array, "n D"], slices: int) -> Float[Array, ""]:
    """Returns the mean of `epps_pulley` over random unit directions of z, LeJEPA's normalisation."""
    directions = jax.random.normal(key, (z.shape[1], slices))
    return jnp.mean(epps_pulley(z @ (directions / jnp.linalg.norm(directions, axis=0, keepdims=True))))


def vicreg(z: Float[Array, "n D"]) -> Float[Array, ""]:
    """Returns mean_j max(0, 1 - sqrt(var_j + 1e-4)) + Σ_{i≠j} cov_ij² / (25 D) of z's channels over its n > 1 samples.

    var and cov divide by n - 1. Variance and covariance weigh 25 to 1, as in VICReg; its third term is an agreement of
    two views, which here is the level's own error.
    """
    z = z - jnp.mean(z, axis=0, keepdims=True)
    covariance = z.T @ z / (len(z) - 1)
    variance = jnp.diag(covariance)
    apart = jnp.sum(jnp.square(covariance)) - jnp.sum(jnp.square(variance))
    return jnp.mean(jax.nn.relu(1 - jnp.sqrt(variance + 1e-4))) + apart / (25 * z.shape[1])


def prior(learn: config.Learn) -> Callable[[Key, list[Float[Array, "B _ D"]]], Float[Array, ""]]:
    """Returns the weighed prior of a level's normed latents, a mean over the kinds of mask.

    `learn.prior` times SIGReg or VICReg of all tokens' latents, or of their means over a clip (as many samples as
    clips); SIGReg along `learn.slices` directions that are the same for all kinds.
    """

    def of(key: Key, z: Float[Array, "n D"]) -> Float[Array, ""]:
        return vicreg(z) if learn.prior_kind == "vicreg" else sigreg(key, z, learn.slices)

    def energy(key: Key, z: list[Float[Array, "B _ D"]]) -> Float[Array, ""]:
        flat = [x.reshape(-1, x.shape[-1]) if learn.prior_of == "tokens" else jnp.mean(x, axis=1) for x in z]
        return learn.prior * jnp.mean(jnp.stack([of(key, x) for x in flat]))

    return energy
