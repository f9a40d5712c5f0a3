"""Terms that keep latents from collapsing, as pure functions of a batch of vectors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cora.types import Key


def sigreg(key: Key, x: Float[Array, "n D"], slices: int = 256) -> Float[Array, ""]:
    """Returns how far the rows of x are from a standard normal: SIGReg's statistic divided by n.

    Mean over random unit directions a of  Σ_t w_t φ(t) |mean_n exp(i t a·x) - φ(t)|²,  φ(t) = exp(-t²/2), on 17
    points t of [0, 3] with trapezoidal weights (doubled, for the negative half).  It tends to 0 for N(0, I) at any
    D and is of order 1 for a collapsed sample; multiply by n for LeJEPA's own scale.
    Source: LeJEPA (arXiv 2511.08544).
    """
    t = jnp.linspace(0.0, 3.0, 17)
    phi = jnp.exp(-jnp.square(t) / 2)
    weights = (2 * (t[1] - t[0]) * phi).at[jnp.array([0, -1])].mul(0.5)
    directions = jax.random.normal(key, (x.shape[-1], slices))
    u = (x @ (directions / jnp.linalg.norm(directions, axis=0)))[..., None] * t
    error = jnp.square(jnp.mean(jnp.cos(u), axis=0) - phi) + jnp.square(jnp.mean(jnp.sin(u), axis=0))
    return jnp.mean(error @ weights)
