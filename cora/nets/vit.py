"""Pre-norm vision transformer blocks with 3-D rotary positions: the topology of V-JEPA 2, in flax.

This is the only file that knows flax. It knows no masks, no energies and no files; tokens come with their ids,
so that any subset of a clip can be encoded.
Source: V-JEPA 2 (arXiv 2506.09985); positions as in Hugging Face's VJEPA2Model.
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cora.types import Tree

EPS = 1e-6
INIT = nn.initializers.variance_scaling(0.4, "fan_in", "truncated_normal")
"""V-JEPA's standard deviation of .02 at width 1024, kept in proportion to 1/sqrt(inputs) at other widths."""


class Style(NamedTuple):
    """What all blocks of one stack have in common; nothing of it has parameters."""

    heads: int
    grid: tuple[int, int, int]
    """Tokens along time, height and width."""
    mlp_ratio: float = 4.0
    rope: Literal["tiled", "interleaved"] = "tiled"
    rope_grid: int = 0
    """Rows and columns are scaled as if the frame had so many of each; 0: not scaled."""
    attention: Literal["auto", "einsum", "xla", "cudnn"] = "auto"
    dtype: str = "float32"
    """In which products are computed; parameters, norms and the residual stream stay in float32."""
    remat: bool = False
    """Recompute each block's inside in the backward pass rather than keep it."""


def apply(module: nn.Module, tree: Tree, *inputs: Any) -> Any:
    """Returns the module's output with these parameters."""
    return module.apply({"params": tree}, *inputs)


def patchify(clips: Float[Array, "B T H W 3"], tubelet: int, patch: int) -> Float[Array, "B N P"]:
    """Returns the tubelets of each clip in raster order (time, row, column), each flattened as (t, h, w, channel)."""
    b, t, height, width, c = clips.shape
    grid = (t // tubelet, height // patch, width // patch)
    split = clips.reshape(b, grid[0], tubelet, grid[1], patch, grid[2], patch, c)
    return split.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, grid[0] * grid[1] * grid[2], -1)


def unpatchify(
    patches: Float[Array, "B N P"], grid: tuple[int, int, int], tubelet: int, patch: int
) -> Float[Array, "B T H W 3"]:
    """Returns the clips that `patchify` cut up."""
    (b, _, _), (t, h, w) = patches.shape, grid
    split = patches.reshape(b, t, h, w, tubelet, patch, patch, 3)
    return split.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t * tubelet, h * patch, w * patch, 3)


def run_of(head_dim: int) -> int:
    """Returns r = 2 floor(floor(d / 3) / 2), how many channels of a head tell of each of time, row and column."""
    return 2 * (head_dim // 3 // 2)


def frequencies(run: int, rope: Literal["tiled", "interleaved"]) -> Float[Array, " r"]:
    """Returns by which angle each channel of a run is turned for a step of one, in radians."""
    omega = 10000.0 ** (-jnp.arange(run // 2) / (run / 2))
    return jnp.tile(omega, 2) if rope == "tiled" else jnp.repeat(omega, 2)


def rotary_table(style: Style, head_dim: int) -> tuple[Float[Array, "N d"], Float[Array, "N d"]]:
    """Returns the cosines and sines by which each channel of a head is turned at each token of the grid.

    A head's channels are three runs of r = 2 floor(floor(d / 3) / 2), for time, row and column, and a rest that
    stays unturned; frequency i of a run is 10000^(-2 i / r). `tiled` repeats the frequencies as a block, as
    V-JEPA 2 and Hugging Face do (so that the pair (2k, 2k+1) is turned by two angles); `interleaved` repeats each
    twice, which is a rotation (V-JEPA 2.1). With `rope_grid` g, row i of H stands at i (g - 1) / (H - 1).
    """
    t, h, w = style.grid
    ids = jnp.arange(t * h * w)
    run = run_of(head_dim)
    omega = frequencies(run, style.rope)
    rows, columns = ((style.rope_grid - 1) / max(side - 1, 1) if style.rope_grid else 1.0 for side in (h, w))
    angles = []
    for position, scale in ((ids // (h * w), 1.0), (ids % (h * w) // w, rows), (ids % w, columns)):
        angles.append(position[:, None].astype(jnp.float32) * scale * omega[None])
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
    """Returns softmax(q kᵀ / √d) v for every head, logits and softmax in float32 at least."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5
    if q.dtype == jnp.bfloat16:  # whose rounding of a peaked logit is an error of its size in the exponent
        logits = scale * jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    else:
        logits = jnp.einsum("bhqd,bhkd->bhqk", q * scale, k)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v).transpose(0, 2, 1, 3)


def attention(
    style: Style, q: Float[Array, "B K H d"], k: Float[Array, "B K H d"], v: Float[Array, "B K H d"]
) -> Float[Array, "B K H d"]:
    """Returns softmax(q kᵀ / √d) v by the implementation that the style names.

    `auto`: cuDNN's fused kernel on a GPU in bfloat16 (it knows no float32), XLA's there otherwise, and on a CPU the
    plain products of `attend`, which take .51 to .84 of the time of `jax.nn.dot_product_attention` there (forward
    and backward, 32 to 2,048 tokens, one core).
    """
    kind = style.attention
    if kind == "auto":
        on_cpu, fused = jax.default_backend() == "cpu", jax.default_backend() == "gpu" and q.dtype == jnp.bfloat16
        kind = "einsum" if on_cpu else "cudnn" if fused else "xla"
    return attend(q, k, v) if kind == "einsum" else jax.nn.dot_product_attention(q, k, v, implementation=kind)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x Φ(x), the exact GELU; `jax.nn.gelu` spells it with erfc, which costs twice as much on a CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


class Dense(nn.Module):
    """x W + b over the last axis, computed in `dtype` and returned as x came.

    The leading axes are flattened first: XLA's CPU backend takes twice as long over a weight gradient that sums
    over two axes as over the same one that sums over one.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*rows W"]) -> Float[Array, "*rows V"]:
        dense = nn.Dense(self.features, kernel_init=INIT, dtype=jnp.dtype(self.dtype), name="linear")
        return dense(x.reshape(-1, x.shape[-1])).astype(x.dtype).reshape(*x.shape[:-1], self.features)


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)), with exact GELU."""

    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "B K W"], ids: Int[Array, "B K"]) -> Float[Array, "B K W"]:
        (b, k, width), style = x.shape, self.style
        cos, sin = (table[ids] for table in rotary_table(style, width // style.heads))
        qkv = Dense(3 * width, style.dtype, name="qkv")(nn.LayerNorm(EPS, name="norm1")(x))
        q, key, v = jnp.moveaxis(qkv.reshape(b, k, 3, style.heads, -1), 2, 0)
        q, key, v = (y.astype(style.dtype) for y in (rotate(q, cos, sin), rotate(key, cos, sin), v))
        mixed = attention(style, q, key, v).astype(x.dtype).reshape(b, k, width)
        x = x + Dense(width, style.dtype, name="proj")(mixed)
        hidden = Dense(int(width * style.mlp_ratio), style.dtype, name="fc1")(nn.LayerNorm(EPS, name="norm2")(x))
        return x + Dense(width, style.dtype, name="fc2")(gelu(hidden))


class Stack(nn.Module):
    """`depth` blocks in a row."""

    depth: int
    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "B K W"], ids: Int[Array, "B K"]) -> Float[Array, "B K W"]:
        block = nn.remat(Block) if self.style.remat else Block
        for i in range(self.depth):
            x = block(self.style, name=f"block{i}")(x, ids)
        return x


class Embed(nn.Module):
    """The linear patch embedding; a 3-D convolution whose stride is its kernel, written as a product."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, patches: Float[Array, "B K P"]) -> Float[Array, "B K W"]:
        return Dense(self.width, self.dtype, name="proj")(patches)


class Norm(nn.Module):
    """Layer normalisation with a learned scale and bias."""

    @nn.compact
    def __call__(self, x: Float[Array, "B K W"]) -> Float[Array, "B K W"]:
        return nn.LayerNorm(EPS, name="norm")(x)


class Predictor(nn.Module):
    """Latents of the target tokens from those of the context: a narrow transformer over context and mask tokens.

    Context latents are projected to `width`; every target token starts as the learned mask token of its kind of mask
    and is told apart by its position alone, which the attention turns in. With `above`, what the level above predicts
    of the hidden tokens is added to them.
    """

    width: int
    out: int
    stack: Stack
    kinds: int = 1
    """Mask tokens; kind of mask i uses token i mod kinds."""
    fused: int = 0
    """V-JEPA 2.1: the input is so many levels' latents side by side, brought to `out` channels and through a GELU
    before `width`; all those latents are predicted, and those of the context tokens by a head of their own."""
    begin: float = 0.0
    """Standard deviation with which mask tokens begin."""
    sure: bool = False
    """Whether one more channel says how sure it is: a log precision of every target token."""

    @nn.compact
    def __call__(
        self, z: Float[Array, "B C Z"], context: Int[Array, "B C"], target: Int[Array, "B M"], kind: int = 0,
        above: Float[Array, "B M D"] | None = None,
    ) -> Float[Array, "B M F"] | tuple[Float[Array, "B M F"], Float[Array, "B C F"]]:
        dtype, seen = self.stack.style.dtype, context.shape[1]
        if self.fused:
            z = gelu(Dense(self.out, dtype, name="fuse")(z))
        z = Dense(self.width, dtype, name="embed")(z)
        tokens = self.param("mask_tokens", nn.initializers.normal(self.begin), (self.kinds, self.width))
        hidden = jnp.broadcast_to(tokens[kind % self.kinds], (*target.shape, self.width))
        if above is not None:
            hidden = hidden + Dense(self.width, dtype, name="above")(above)
        both = self.stack(jnp.concatenate([z, hidden], axis=1), jnp.concatenate([context, target], axis=1))
        both = nn.LayerNorm(EPS, name="norm")(both)
        out = self.out * max(1, self.fused)
        ahead = Dense(out, dtype, name="proj")(both[:, seen:])
        if self.sure:
            ahead = jnp.concatenate([ahead, Dense(1, dtype, name="precision")(both[:, seen:])], axis=-1)
        return (ahead, Dense(out, dtype, name="proj_context")(both[:, :seen])) if self.fused else ahead
