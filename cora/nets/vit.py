"""Pre-norm vision transformer blocks with 3-D rotary positions: the topology of V-JEPA 2, in flax.

This is the only file that knows flax. It knows no masks, no energies and no files; tokens come with their ids,
so that any subset of a clip can be encoded.
Source: V-JEPA 2 (arXiv 2506.09985); positions as in Hugging Face's VJEPA2Model.
"""

from typing import Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cora.types import Tree

EPS = 1e-6
INIT = nn.initializers.variance_scaling(0.4, "fan_in", "truncated_normal")
"""V-JEPA's standard deviation of .02 at width 1024, kept in proportion to 1/sqrt(inputs) at other widths."""


def apply(module: nn.Module, tree: Tree, *inputs: Array) -> Array:
    """Returns the module's output with these parameters."""
    return cast(Array, module.apply({"params": tree}, *inputs))


def patchify(clips: Float[Array, "B T S S 3"], tubelet: int, patch: int) -> Float[Array, "B N P"]:
    """Returns the tubelets of each clip in raster order (time, row, column), each flattened as (t, h, w, channel)."""
    b, t, s, _, c = clips.shape
    grid = (t // tubelet, s // patch, s // patch)
    split = clips.reshape(b, grid[0], tubelet, grid[1], patch, grid[2], patch, c)
    return split.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, grid[0] * grid[1] * grid[2], -1)


def rotary_table(
    grid: tuple[int, int, int], head_dim: int, style: Literal["tiled", "interleaved"]
) -> tuple[Float[Array, "N d"], Float[Array, "N d"]]:
    """Returns the cosines and sines by which each channel of a head is turned at each token of the grid.

    A head's channels are three runs of r = 2 floor(floor(d / 3) / 2), for time, row and column, and a rest that
    stays unturned; frequency i of a run is 10000^(-2 i / r). `tiled` repeats the frequencies as a block, as
    V-JEPA 2 and Hugging Face do (so that the pair (2k, 2k+1) is turned by two angles); `interleaved` repeats each
    twice, which is a rotation (V-JEPA 2.1).
    """
    t, h, w = grid
    ids = jnp.arange(t * h * w)
    run = 2 * (head_dim // 3 // 2)
    omega = 10000.0 ** (-jnp.arange(run // 2) / (run / 2))
    angles = []
    for position in (ids // (h * w), ids % (h * w) // w, ids % w):
        angle = position[:, None].astype(jnp.float32) * omega[None]
        angles.append(jnp.tile(angle, (1, 2)) if style == "tiled" else jnp.repeat(angle, 2, axis=1))
    angles.append(jnp.zeros((t * h * w, head_dim - 3 * run)))
    table = jnp.concatenate(angles, axis=1)
    return jnp.cos(table), jnp.sin(table)


def rotate(
    x: Float[Array, "B K H d"], cos: Float[Array, "B K d"], sin: Float[Array, "B K d"]
) -> Float[Array, "B K H d"]:
    """Returns x cos + r(x) sin with r(x)[2k] = -x[2k+1] and r(x)[2k+1] = x[2k]."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return x * cos[:, :, None] + turned * sin[:, :, None]


def attend(
    q: Float[Array, "B K H d"], k: Float[Array, "B K H d"], v: Float[Array, "B K H d"]
) -> Float[Array, "B K H d"]:
    """Returns softmax(q kᵀ / √d) v for every head."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k), axis=-1)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v).transpose(0, 2, 1, 3)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x Φ(x), the exact GELU; `jax.nn.gelu` spells it with erfc, which costs twice as much on a CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


class Dense(nn.Module):
    """x W + b over the last axis.

    The leading axes are flattened first: XLA's CPU backend takes twice as long over a weight gradient that sums
    over two axes as over the same one that sums over one.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B K W"]) -> Float[Array, "B K V"]:
        dense = nn.Dense(self.features, kernel_init=INIT, name="linear")
        return dense(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)), with exact GELU."""

    heads: int
    mlp_ratio: float
    grid: tuple[int, int, int]
    rope: Literal["tiled", "interleaved"]

    @nn.compact
    def __call__(self, x: Float[Array, "B K W"], ids: Int[Array, "B K"]) -> Float[Array, "B K W"]:
        b, k, width = x.shape
        cos, sin = (table[ids] for table in rotary_table(self.grid, width // self.heads, self.rope))
        qkv = Dense(3 * width, name="qkv")(nn.LayerNorm(EPS, name="norm1")(x))
        q, key, v = jnp.moveaxis(qkv.reshape(b, k, 3, self.heads, -1), 2, 0)
        mixed = attend(rotate(q, cos, sin), rotate(key, cos, sin), v).reshape(b, k, width)
        x = x + Dense(width, name="proj")(mixed)
        hidden = Dense(int(width * self.mlp_ratio), name="fc1")(nn.LayerNorm(EPS, name="norm2")(x))
        return x + Dense(width, name="fc2")(gelu(hidden))


class Stack(nn.Module):
    """`depth` blocks in a row."""

    depth: int
    heads: int
    mlp_ratio: float
    grid: tuple[int, int, int]
    rope: Literal["tiled", "interleaved"]

    @nn.compact
    def __call__(self, x: Float[Array, "B K W"], ids: Int[Array, "B K"]) -> Float[Array, "B K W"]:
        for i in range(self.depth):
            x = Block(self.heads, self.mlp_ratio, self.grid, self.rope, name=f"block{i}")(x, ids)
        return x


class Embed(nn.Module):
    """The linear patch embedding; a 3-D convolution whose stride is its kernel, written as a product."""

    width: int

    @nn.compact
    def __call__(self, patches: Float[Array, "B K P"]) -> Float[Array, "B K W"]:
        return Dense(self.width, name="proj")(patches)


class Norm(nn.Module):
    """Layer normalisation with a learned scale and bias."""

    @nn.compact
    def __call__(self, x: Float[Array, "B K W"]) -> Float[Array, "B K W"]:
        return nn.LayerNorm(EPS, name="norm")(x)


class Predictor(nn.Module):
    """Latents of the target tokens from those of the context: a narrow transformer over context and mask tokens.

    Context latents are projected to `width`; every target token starts as the one learned mask token (zero at
    first) and is told apart by its position alone, which the attention turns in.
    """

    width: int
    out: int
    stack: Stack

    @nn.compact
    def __call__(
        self, z: Float[Array, "B C D"], context: Int[Array, "B C"], target: Int[Array, "B M"]
    ) -> Float[Array, "B M D"]:
        seen = Dense(self.width, name="embed")(z)
        mask_token = self.param("mask_token", nn.initializers.zeros, (self.width,))
        hidden = jnp.broadcast_to(mask_token, (*target.shape, self.width))
        both = self.stack(jnp.concatenate([seen, hidden], axis=1), jnp.concatenate([context, target], axis=1))
        return Dense(self.out, name="proj")(nn.LayerNorm(EPS, name="norm")(both[:, context.shape[1] :]))
