"""Which tokens of a clip are seen and which are predicted: fixed counts, drawn inside jit.

V-JEPA's collator cuts a batch to its smallest context in raster order, which starves the last frames. Here every
clip keeps a uniformly random subset of its visible (and of its hidden) tokens, so that shapes are static and each
time step is as likely to be seen as any other. `compat = "meta"` keeps the first tokens instead, for comparison;
`collate` is that collator itself, on the host.
Source: V-JEPA 2 (arXiv 2506.09985), multi-block masks; block sizes as in its collator.
"""

from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cora import config
from cora.schema import require
from cora.types import Key, Masks

TRIES = 8
"""Draws of a clip's blocks; the draw that best leaves room for the context is kept."""


class Kind(NamedTuple):
    """One kind of mask on one grid: `context` tokens of a clip are seen and `target` tokens are predicted."""

    name: str
    grid: tuple[int, int, int]
    context: int
    target: int
    cut: int = 0
    """The first time step that a future mask hides."""
    blocks: int = 0
    area: int = 0
    """Of a block, in places of the frame."""
    aspect: tuple[float, float] = (1.0, 1.0)
    """Height over width of the blocks, drawn between these two."""
    raster: bool = False
    """Keep the first tokens rather than random ones, and share one size of block among the clips of a batch."""


def kinds(mask: config.Mask, grid: tuple[int, int, int]) -> dict[str, Kind]:
    """Returns each kind of mask that is asked for, once, with its counts on this grid.

    Raises ConfigError where the grid is too small to hide a part of it.
    """
    return {name: _kind(name, mask, grid) for name in dict.fromkeys(mask.kinds)}


def _kind(name: str, mask: config.Mask, grid: tuple[int, int, int]) -> Kind:
    t, places = grid[0], grid[1] * grid[2]
    seen, asked = getattr(mask, name)
    parts = {"tube": places, "future": t}.get(name, t * places)
    require(parts > 1, "mask.kinds", name, f"cannot part a clip of {t} x {places} (time steps x places); "
                                           f"nearest: {'random' if t * places > 1 else 'a larger clip'!r}")
    if name == "future":
        cut = min(max(round(mask.cut * t), 1), t - 1)
        past, later = cut * places, (t - cut) * places
        return Kind(name, grid, max(1, round(seen * past)), max(1, round(asked * later)), cut=cut)
    context = min(max(1, round(seen * parts)), parts - 1)
    target = min(max(1, round(asked * parts)), parts - context)
    if name == "tube":
        return Kind(name, grid, t * context, t * target)
    if name == "random":
        return Kind(name, grid, context, target)
    area = max(1, int(places * getattr(mask, f"{name}_scale")))  # rounded down, as Meta does
    return Kind(name, grid, context, target, blocks=getattr(mask, f"{name}_blocks"), area=area, aspect=mask.aspect,
                raster=mask.compat == "meta")


def sides(aspect: Any, kind: Kind, xp: ModuleType = jnp) -> tuple[Any, Any]:
    """Returns height and width of a block: round(sqrt(area aspect)), round(sqrt(area / aspect)), within the frame.

    Computed by jax.numpy, or by numpy where `xp` says so.
    """
    _, height, width = kind.grid
    h = xp.clip(xp.round(xp.sqrt(kind.area * aspect)), 1, height)
    w = xp.clip(xp.round(xp.sqrt(kind.area / aspect)), 1, width)
    return h.astype(int), w.astype(int)


def covered(key: Key, aspect: Float[Array, ""], kind: Kind) -> Bool[Array, "h w"]:
    """Returns which places of the frame lie in the union of the blocks, which are all of one size."""
    _, height, width = kind.grid
    h, w = sides(aspect, kind)
    row_key, column_key = jax.random.split(key)
    top = jax.random.randint(row_key, (kind.blocks, 1), 0, height - h + 1)
    left = jax.random.randint(column_key, (kind.blocks, 1), 0, width - w + 1)
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    in_rows = (rows >= top) & (rows < top + h)
    in_columns = (columns >= left) & (columns < left + w)
    return jnp.any(in_rows[:, :, None] & in_columns[:, None, :], axis=0)


def _best(key: Key, aspects: Float[Array, " tries"], kind: Kind) -> Bool[Array, " N"]:
    """Returns which tokens the blocks hide, in that one of the draws which lacks the fewest for the two counts."""
    hidden = jax.vmap(partial(covered, kind=kind))(jax.random.split(key, aspects.size), aspects)
    t = kind.grid[0]
    visible = t * jnp.sum(~hidden, axis=(1, 2))
    lack = jnp.maximum(kind.context - visible, 0) + jnp.maximum(kind.target - (t * hidden[0].size - visible), 0)
    return jnp.tile(hidden[jnp.argmin(lack)].ravel(), t)


def ranking(key: Key, aspects: Float[Array, " tries"], kind: Kind) -> Float[Array, " N"]:
    """Returns a number for every token: those with the lowest are seen, those with the highest are predicted.

    Whether a token is hidden comes first; among equals, chance (or the raster) decides.
    """
    t, h, w = kind.grid
    tokens = jnp.arange(t * h * w)
    draw_key, rank_key = jax.random.split(key)
    if kind.name == "tube":  # every place has a rank of its own, so that none is parted in time
        return jnp.tile(jax.random.permutation(rank_key, h * w).astype(jnp.float32), t)
    chance = jax.random.uniform(rank_key, tokens.shape)
    if kind.name == "random":
        return chance
    if kind.name == "future":
        return (tokens >= kind.cut * h * w) + chance
    hidden = _best(draw_key, aspects, kind)
    place = tokens / tokens.size
    return jnp.where(hidden, 2 - place, place) if kind.raster else hidden + chance


def sample_one(
    key: Key, aspects: Float[Array, " tries"], kind: Kind,
) -> tuple[Int[Array, " C"], Int[Array, " M"]]:
    """Returns sorted (context, target) token ids of one clip: the first and the last ones of the ranking.

    Where blocks leave too few (or hide too few) tokens in all draws, one of each shape in `aspects`, the shortfall is
    thus filled by tokens of the other sort, and the two never overlap.
    """
    order = jnp.argsort(ranking(key, aspects, kind))
    return jnp.sort(order[: kind.context]), jnp.sort(order[-kind.target :])


def sample(key: Key, kind: Kind, clips: int) -> Masks:
    """Returns masks of `clips` clips, each drawn on its own; only under `raster` do they share a size of block."""
    shape_key, clip_key = jax.random.split(key)
    shapes = jax.random.uniform(shape_key, (1, 1) if kind.raster else (clips, TRIES), minval=kind.aspect[0],
                                maxval=kind.aspect[1])
    each = jax.vmap(partial(sample_one, kind=kind))
    return Masks(*each(jax.random.split(clip_key, clips), jnp.broadcast_to(shapes, (clips, TRIES))))


def states(masks: Masks, grid: tuple[int, int, int]) -> Int[np.ndarray, "B t h w"]:
    """Returns what becomes of every token: 0 neither, 1 seen, 2 predicted."""
    state = np.zeros((len(masks.context), int(np.prod(grid))), np.int32)
    np.put_along_axis(state, np.asarray(masks.context), 1, axis=1)
    np.put_along_axis(state, np.asarray(masks.target), 2, axis=1)
    return state.reshape(-1, *grid)


# ------------------------------------------------------------------------------------- Meta's collator, on the host


def collate(rng: np.random.Generator, kind: Kind, clips: int) -> Masks:
    """Returns the block masks that Meta's collator makes of a batch: one size of block for all clips, places for each.

    The counts are those of the batch (`cut`), not the kind's: they change from one call to the next. Blocks last the
    whole clip and the context may span it all, as in every configuration that Meta published.
    """
    height, width = kind.grid[1:]
    h, w = sides(np.float64(rng.uniform(*kind.aspect)), kind, np)
    hidden = np.zeros((clips, height, width), bool)
    for clip in hidden:
        while clip.all() or not clip.any():  # drawn anew where nothing would be left to see
            clip[:] = False
            for top, left in zip(rng.integers(0, height - h + 1, kind.blocks),
                                 rng.integers(0, width - w + 1, kind.blocks), strict=True):
                clip[top : top + h, left : left + w] = True
    return cut(hidden, kind.grid[0])


def cut(hidden: Bool[np.ndarray, "B h w"], t: int) -> Masks:
    """Returns context and target of places that are hidden for `t` time steps, as Meta's collator cuts them.

    The clip with the fewest visible tokens says how many all clips keep, the one with the fewest hidden tokens how
    many are predicted: the first ones in raster order. All else is thrown away.
    """
    tokens = np.tile(hidden.reshape(len(hidden), -1), (1, t))
    seen, asked = ([np.flatnonzero(clip) for clip in side] for side in (~tokens, tokens))
    return Masks(*(jnp.asarray(np.stack([ids[: min(map(len, side))] for ids in side])) for side in (seen, asked)))
