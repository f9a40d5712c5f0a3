"""The hierarchy: a config made into pure functions of one level's own parameters.

All levels have the same shape, so their parameters are stacked along a leading axis and every rule can scan over
them. Stacked in a row and ended by the last norm they are exactly a V-JEPA 2 encoder.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from cora import config
from cora.nets import vit
from cora.pc import targets
from cora.types import Encoder, Hierarchy, Key, Params, Tree

# ImageNet's channel statistics, which V-JEPA 2 and its Hugging Face processor use, scaled to pixels of 0 to 255.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def build(model: config.Model, target: config.Target | None = None) -> Hierarchy:
    """Returns the hierarchy of this config; `target` (by default V-JEPA's) matters to its energies alone."""
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

    return Hierarchy(
        embed=lambda tree, patches: vit.apply(embed, tree, patches),
        encode=lambda tree, z, ids: vit.apply(stack, tree["blocks"], z, ids),
        norm=lambda tree, z: vit.apply(norm, tree["norm"], z),
        predict=lambda tree, z, masks: vit.apply(predictor, tree, z, masks.context, masks.target),
        goal=targets.of(target, model.grid[0]),
        error=targets.ERRORS[target.error],
        init=init,
        patches=lambda clips: vit.patchify(standardise(clips), model.tubelet, model.patch),
    )


def standardise(clips: UInt8[Array, "B T S S 3"]) -> Float[Array, "B T S S 3"]:
    """Returns the clips with ImageNet's channel mean 0 and standard deviation 1, as V-JEPA 2 expects them."""
    mean, std = (jnp.array(x, jnp.float32).reshape(1, 1, 1, 1, 3) for x in (MEAN, STD))
    return (clips.astype(jnp.float32) - mean) / std


def latents(hierarchy: Hierarchy, encoder: Encoder, clips: UInt8[Array, "B T S S 3"]) -> Float[Array, "L B N D"]:
    """Returns the normed latents of every level for whole clips: what a frozen encoder is read by."""
    patches = hierarchy.patches(clips)
    ids = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])

    def climb(z: Float[Array, "B N D"], tree: Tree) -> tuple[Float[Array, "B N D"], Float[Array, "B N D"]]:
        z = hierarchy.encode(tree, z, ids)
        return z, hierarchy.norm(tree, z)

    return jax.lax.scan(climb, hierarchy.embed(encoder.embed, patches), encoder.levels)[1]
