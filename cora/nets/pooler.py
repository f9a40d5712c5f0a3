"""The attentive probe of V-JEPA 2, in flax: self-attention over tokens, one learned query, a linear classifier.

It knows tokens and their number of classes; no positions, no encoder, no labels. Parameter paths are the names of
Hugging Face's VJEPA2ForVideoClassification but for the spelling of a list's index (`_0` for `.0`) and of Dense and
LayerNorm (`linear.kernel`, `scale`).
Source: V-JEPA 2 (arXiv 2506.09985, section 5); norms and residuals as in Hugging Face's VJEPA2AttentivePooler.
"""

import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cora.nets.vit import EPS, INIT, Dense, attend, gelu
from cora.types import Key, Tree


class Attention(nn.Module):
    """softmax(q kᵀ / √d) v of every head, from one sequence to another; projected only where `out`."""

    heads: int
    out: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B Q W"], tokens: Float[Array, "B K W"]) -> Float[Array, "B Q W"]:
        width = x.shape[-1]
        q, k, v = (Dense(width, name=f"{name}_proj")(y).reshape(*y.shape[:2], self.heads, -1)
                   for name, y in (("q", x), ("k", tokens), ("v", tokens)))
        # `attend` is faster on a CPU, and made for sequences of one length.
        mix = attend if x.shape == tokens.shape else jax.nn.dot_product_attention
        mixed = mix(q, k, v).reshape(x.shape)
        return Dense(width, name="out_proj")(mixed) if self.out else mixed


class Mlp(nn.Module):
    """Two layers with exact GELU between, four times as wide inside."""

    @nn.compact
    def __call__(self, x: Float[Array, "B K W"]) -> Float[Array, "B K W"]:
        return Dense(x.shape[-1], name="fc2")(gelu(Dense(4 * x.shape[-1], name="fc1")(x)))


class SelfLayer(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); without positions."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "B K W"]) -> Float[Array, "B K W"]:
        y = nn.LayerNorm(EPS, name="layer_norm1")(x)
        x = x + Attention(self.heads, True, name="self_attn")(y, y)
        return x + Mlp(name="mlp")(nn.LayerNorm(EPS, name="layer_norm2")(x))


class CrossLayer(nn.Module):
    """q + attention from q to norm1(tokens), unprojected; then q + mlp(norm2(q)). The query itself is not normed."""

    heads: int

    @nn.compact
    def __call__(self, q: Float[Array, "B Q W"], tokens: Float[Array, "B K W"]) -> Float[Array, "B Q W"]:
        q = q + Attention(self.heads, False, name="cross_attn")(q, nn.LayerNorm(EPS, name="layer_norm1")(tokens))
        return q + Mlp(name="mlp")(nn.LayerNorm(EPS, name="layer_norm2")(q))


class Pooler(nn.Module):
    """`depth` self-attention layers over the tokens, then what one learned query gathers from them."""

    heads: int
    depth: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "B K W"]) -> Float[Array, "B W"]:
        for i in range(self.depth):
            tokens = SelfLayer(self.heads, name=f"self_attention_layers_{i}")(tokens)
        query = self.param("query_tokens", lambda key: INIT(key, (tokens.shape[-1], 1)).reshape(1, 1, -1))
        query = jnp.broadcast_to(query, (tokens.shape[0], 1, tokens.shape[-1]))
        return CrossLayer(self.heads, name="cross_attention_layer")(query, tokens)[:, 0]


class Classifier(nn.Module):
    """Scores of the classes, linear in what the pooler gathers."""

    heads: int
    depth: int
    classes: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "B K W"]) -> Float[Array, "B c"]:
        pooled = Pooler(self.heads, self.depth, name="pooler")(tokens)
        return Dense(self.classes, name="classifier")(pooled[:, None])[:, 0]


def init(probe: Classifier, width: int, key: Key) -> Tree:
    """Returns the first parameters: biases 0, scales 1, weights and query drawn by `vit.INIT`; weights that end a
    residual branch are divided by √(2 i), i their self-attention layer from 1, max(1, depth) for the query's MLP.

    Source: AttentivePooler of V-JEPA 2, whose deviation of .02 at every width leaves attention flat at small ones.
    """
    tree = probe.init(key, jnp.zeros((1, 1, width)))["params"]

    def scale(path: tuple[Any, ...], leaf: Array) -> Array:
        names = [str(part.key) for part in path]
        if names[-1] != "kernel" or names[-3] not in ("out_proj", "fc2"):
            return leaf
        layer = names[1].rpartition("_")[2]
        return leaf / math.sqrt(2 * (int(layer) + 1 if layer.isdigit() else max(1, probe.depth)))

    return cast(Tree, jax.tree_util.tree_map_with_path(scale, tree))
