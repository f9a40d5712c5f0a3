"""Is a representation healthy? Numbers that fall long before a loss curve tells; pure functions of latents."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def effective_rank(x: Float[Array, "n D"]) -> Float[Array, ""]:
    """Returns exp of the entropy of the normalised singular values of the centred rows: 1 (collapsed) to min(n-1, D).

    Source: RankMe (arXiv 2210.02885), with the rows centred so that a common offset does not count as a direction.
    """
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    small = centred @ centred.T if x.shape[0] < x.shape[1] else centred.T @ centred
    values = jnp.sqrt(jnp.clip(jnp.linalg.eigvalsh(small), 0.0))
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
