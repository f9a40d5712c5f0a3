"""The hierarchy: a config made into pure functions of one level's own parameters.

All levels have the same shape, so their parameters are stacked along a leading axis and every rule can scan over
them. Stacked in a row and ended by the last norm they are exactly a V-JEPA 2 encoder.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from cora import config
from cora.nets import vit
from cora.pc import targets
from cora.types import Encoder, Key, Level, Masks, Network, Params, Tree

# ImageNet's channel statistics, which V-JEPA 2 and its Hugging Face processor use, scaled to pixels of 0 to 255.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def build(model: config.Model, target: config.Target | None = None) -> Network:
    """Returns the network of this config; `target` (by default V-JEPA's) matters to its energies alone."""
    target = target or config.Target()
    stack = vit.Stack(model.blocks, model.heads, model.mlp_ratio, model.grid, model.rope)
    inner = vit.Stack(model.predictor_depth, model.predictor_heads, model.mlp_ratio, model.grid, model.rope)
    embed, norm = vit.Embed(model.width), vit.Norm()
    predictor = vit.Predictor(model.predictor_width, model.width, inner)
    channels = model.tubelet * model.patch**2 * 3
    one = jnp.zeros((1, 1), jnp.int32)

    def init_level(key: Key) -> Tree:
        z = jnp.zeros((1, 1, model.width))
        return {"blocks": stack.init(key, z, one)["params"], "norm": norm.init(key, z)["params"]}

    def init(key: Key) -> Params:
        embed_key, level_key, predictor_key = jax.random.split(key, 3)
        z = jnp.zeros((1, 1, model.width))
        return Params(
            Encoder(
                embed.init(embed_key, jnp.zeros((1, 1, channels)))["params"],
                jax.vmap(init_level)(jax.random.split(level_key, model.levels)),
            ),
            jax.vmap(lambda k: predictor.init(k, z, one, one)["params"])(jax.random.split(predictor_key, model.levels)),
        )

    def encode(tree: Tree, z: Float[Array, "B K D"], ids: Int[Array, "B K"]) -> Float[Array, "B K D"]:
        return vit.apply(stack, tree["blocks"], z, ids)

    def normed(tree: Tree, z: Float[Array, "B K D"]) -> Float[Array, "B K D"]:
        return vit.apply(norm, tree["norm"], z)

    return Network(
        embed=lambda tree, patches: vit.apply(embed, tree, patches),
        encode=encode,
        norm=normed,
        goal=targets.of(target, model.grid[0]),
        level=_level(encode, normed, predictor, targets.ERRORS[target.error], model.levels),
        init=init,
        patches=lambda clips: vit.patchify(standardise(clips), model.tubelet, model.patch),
    )


def _level(encode: Callable, normed: Callable, predictor: vit.Predictor, error: targets.Error, count: int) -> Level:
    """The level as the energy sees it: one state, readout and goal a kind of mask."""

    def up(tree: tuple[Tree, Tree], z: list[Array], masks: tuple[Masks, ...]) -> list[Array]:
        return [encode(tree[0], x, m.context) for x, m in zip(z, masks, strict=True)]

    def across(tree: tuple[Tree, Tree], z: list[Array], masks: tuple[Masks, ...]) -> list[Array]:
        return [vit.apply(predictor, tree[1], normed(tree[0], x), m.context, m.target)
                for x, m in zip(z, masks, strict=True)]

    def judge(guess: list[Array], goal: list[Array]) -> Float[Array, " B"]:
        return jnp.mean(jnp.stack([error(g, t) for g, t in zip(guess, goal, strict=True)]), axis=0)

    return Level(up, across, judge, repeat=count)


def standardise(clips: UInt8[Array, "B T S S 3"]) -> Float[Array, "B T S S 3"]:
    """Returns the clips with ImageNet's channel mean 0 and standard deviation 1, as V-JEPA 2 expects them."""
    mean, std = (jnp.array(x, jnp.float32).reshape(1, 1, 1, 1, 3) for x in (MEAN, STD))
    return (clips.astype(jnp.float32) - mean) / std


def latents(network: Network, encoder: Encoder, clips: UInt8[Array, "B T S S 3"]) -> Float[Array, "L B N D"]:
    """Returns the normed latents of every level for whole clips: what a frozen encoder is read by."""
    patches = network.patches(clips)
    ids = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])

    def climb(z: Float[Array, "B N D"], tree: Tree) -> tuple[Float[Array, "B N D"], Float[Array, "B N D"]]:
        z = network.encode(tree, z, ids)
        return z, network.norm(tree, z)

    return jax.lax.scan(climb, network.embed(encoder.embed, patches), encoder.levels)[1]
