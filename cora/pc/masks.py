"""Which tokens of a clip are hidden: 3-D blocks of fixed counts, with no bias in time or space, drawn inside jit.

V-JEPA's collator cuts a batch to its smallest context in raster order, which starves the last frames. Here every
clip keeps a uniformly random subset of its visible (and of its hidden) tokens, so that shapes are static and each
time step is as likely to be seen as any other.
Source: V-JEPA 2 (arXiv 2506.09985), multi-block masks; block sizes as in its collator.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from cora import config
from cora.types import Key, Masks

TRIES = 8
"""Draws of a clip's blocks; the draw that best leaves room for the context is kept."""


class Blocks(NamedTuple):
    """One kind of mask on one grid: `number` blocks of `scale` of the frame, `context` seen and `target` predicted."""

    grid: tuple[int, int, int]
    number: int
    scale: float
    aspect: tuple[float, float]
    context: int
    target: int


def kinds(mask: config.Mask, grid: tuple[int, int, int]) -> dict[str, Blocks]:
    """Returns the two kinds of mask, `short` and `long`, with their token counts on this grid (at least 1 each)."""
    tokens = int(np.prod(grid))

    def blocks(count: int, scale: float, context: float, target: float) -> Blocks:
        return Blocks(grid, count, scale, mask.aspect, max(1, round(context * tokens)), max(1, round(target * tokens)))

    return {
        "short": blocks(mask.short_blocks, mask.short_scale, mask.short_context, mask.short_target),
        "long": blocks(mask.long_blocks, mask.long_scale, mask.long_context, mask.long_target),
    }


def covered(key: Key, blocks: Blocks) -> Bool[Array, "h w"]:
    """Returns which places of the frame lie in the union of the blocks; one size is drawn and shared by all of them."""
    _, height, width = blocks.grid
    size_key, row_key, column_key = jax.random.split(key, 3)
    aspect = jax.random.uniform(size_key, minval=blocks.aspect[0], maxval=blocks.aspect[1])
    area = blocks.scale * height * width
    h = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, height).astype(jnp.int32)
    w = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, width).astype(jnp.int32)
    top = jax.random.randint(row_key, (blocks.number, 1), 0, height - h + 1)
    left = jax.random.randint(column_key, (blocks.number, 1), 0, width - w + 1)
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    in_rows = (rows >= top) & (rows < top + h)
    in_columns = (columns >= left) & (columns < left + w)
    return jnp.any(in_rows[:, :, None] & in_columns[:, None, :], axis=0)


def sample_one(key: Key, blocks: Blocks) -> tuple[Int[Array, " C"], Int[Array, " M"]]:
    """Returns sorted (context, target) token ids of one clip.

    Tokens are ranked by (hidden or not, random number): the context is the first `context` of that ranking and
    the target the last `target`. Where the blocks leave too few (or hide too few) tokens, even after TRIES draws,
    the shortfall is thus filled by random tokens of the other kind, and the two never overlap.
    """
    draw_key, rank_key = jax.random.split(key)
    hidden = jax.vmap(lambda k: covered(k, blocks))(jax.random.split(draw_key, TRIES))
    t = blocks.grid[0]
    visible = t * jnp.sum(~hidden, axis=(1, 2))
    lack = jnp.maximum(blocks.context - visible, 0) + jnp.maximum(blocks.target - (t * hidden[0].size - visible), 0)
    tokens = jnp.tile(hidden[jnp.argmin(lack)].ravel(), t)
    order = jnp.argsort(tokens + jax.random.uniform(rank_key, tokens.shape))
    return jnp.sort(order[: blocks.context]), jnp.sort(order[-blocks.target :])


def sample(key: Key, blocks: Blocks, clips: int) -> Masks:
    """Returns masks of `clips` clips, each drawn on its own."""
    return Masks(*jax.vmap(lambda k: sample_one(k, blocks))(jax.random.split(key, clips)))
