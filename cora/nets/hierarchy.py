"""The hierarchy: a config made into pure functions of one level's own parameters.

All levels have the same shape, so their parameters are stacked along a leading axis and every rule can scan over
them. Stacked in a row and ended by the last norm they are exactly a V-JEPA 2 encoder.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from cora import config
from cora.nets import hog3d, vit
from cora.pc import regularise, targets
from cora.pc.rules import levels_of
from cora.schema import guard
from cora.types import Encoder, Key, Level, Masks, Network, Params, Tree

# ImageNet's channel statistics, which V-JEPA 2 and its Hugging Face processor use, scaled to pixels of 0 to 255.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@guard
def build(
    model: config.Model, target: config.Target | None = None, learn: config.Learn | None = None
) -> Network:
    """Returns the network of this config; `target` (by default V-JEPA's) matters to its energies alone, `learn` to its
    predictors (by default one a level) and prior."""
    target, learn = target or config.Target(), learn or config.Learn()
    style = vit.Style(model.heads, model.grid, model.mlp_ratio, model.rope, model.rope_grid, model.attention,
                      model.dtype, model.remat)
    stack, norm = vit.Stack(model.blocks, style), vit.Norm()
    error = targets.error(target)
    beside = vit.Dense(model.width, model.dtype) if learn.seen else None
    embed, predictor = vit.Embed(model.width, model.dtype), _predictor(model, learn, style)

    def encode(tree: Tree, z: Float[Array, "B K D"], ids: Int[Array, "B K"]) -> Float[Array, "B K D"]:
        return vit.apply(stack, tree["blocks"], z, ids)

    def normed(tree: Tree, z: Float[Array, "B K D"]) -> Float[Array, "B K D"]:
        return vit.apply(norm, tree["norm"], z)

    def ahead(tree: Tree, z: Array, masks: Masks, kind: int, above: Array | None = None) -> Any:
        return vit.apply(predictor, tree, z, masks.context, masks.target, kind, above)

    def foresee(
        tree: Tree, z: Array, masks: Masks, kind: int, above: Array | None = None
    ) -> tuple[Float[Array, "B M D"], Float[Array, "B M"]]:
        guess = ahead(tree, z, masks, kind, above)
        if learn.precision:
            return guess[..., :-1], targets.log_precision(guess[..., -1])
        return guess, jnp.zeros(guess.shape[:2])

    def predict(tree: Tree, z: Array, masks: Masks, kind: int, above: Array | None = None) -> Any:
        return foresee(tree, z, masks, kind, above)[0] if learn.precision else ahead(tree, z, masks, kind, above)

    def up(tree: tuple[Tree, Tree], z: list[Array], masks: tuple[Masks, ...]) -> list[Array]:
        return [encode(tree[0], x, m.context) for x, m in zip(z, masks, strict=True)]

    def across(tree: tuple[Tree, Tree], z: list[Array], masks: tuple[Masks, ...]) -> list[Array]:
        u = [normed(tree[0], x) for x in z]
        guesses = [ahead(tree[1], x, m, i) for i, (x, m) in enumerate(zip(u, masks, strict=True))]
        return guesses if beside is None else guesses + [read(tree[1], x) for x in u]

    def read(tree: Tree, z: Float[Array, "B C D"]) -> Float[Array, "B C D"]:
        assert beside is not None
        return vit.apply(beside, tree["beside"], z)

    def judge(guess: list[Array], goal: list[Array]) -> Float[Array, " B"]:
        kinds = len(guess) if beside is None else len(guess) // 2
        of_hidden = targets.weighed if learn.precision else error
        each = [(of_hidden if i < kinds else error)(g, t) for i, (g, t) in enumerate(zip(guess, goal, strict=True))]
        hidden = jnp.mean(jnp.stack(each[:kinds]), axis=0)
        return hidden if beside is None else hidden + learn.seen * jnp.mean(jnp.stack(each[kinds:]), axis=0)

    return Network(
        embed=lambda tree, patches: vit.apply(embed, tree, patches),
        encode=encode,
        norm=normed,
        goal=targets.of(target, model.grid[0]),
        fixed=hog3d.goal(model, target) if target.kind in ("hog3d", "below") else None,
        below=target.kind == "below",
        predict=predict,
        foresee=foresee,
        beside=None if beside is None else read,
        prior=regularise.prior(learn) if learn.prior else None,
        level=Level(up, across, judge, repeat=model.levels),
        init=partial(_init, model, learn, embed, stack, norm, predictor, beside),
        patches=lambda clips: vit.patchify(standardise(clips), model.tubelet, model.patch),
    )


def _predictor(model: config.Model, learn: config.Learn, style: vit.Style) -> vit.Predictor:
    style = style._replace(heads=model.predictor_heads, mlp_ratio=model.predictor_mlp_ratio)
    fused = model.levels if learn.rule == "dense" else 0
    return vit.Predictor(model.predictor_width, model.width, vit.Stack(model.predictor_depth, style),
                         model.mask_tokens, fused, model.predictor_tokens, learn.precision)


def _init(
    model: config.Model, learn: config.Learn, embed: vit.Embed, stack: vit.Stack, norm: vit.Norm,
    predictor: vit.Predictor, beside: vit.Dense | None, key: Key,
) -> Params:
    embed_key, level_key, predictor_key = jax.random.split(key, 3)
    channels = model.tubelet * model.patch**2 * 3
    one, z = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, model.width))
    wide = jnp.zeros((1, 1, model.width * max(1, predictor.fused)))

    def level(key: Key, index: Int[Array, ""]) -> Tree:
        blocks = stack.init(key, z, one)["params"]
        if model.scaled_init:
            blocks = _scaled(blocks, index * model.blocks)
        return {"blocks": blocks, "norm": norm.init(key, z)["params"]}

    def ahead(key: Key) -> Tree:
        tree = predictor.init(key, wide, one, one, 0, z if learn.top_down else None)["params"]
        if model.scaled_init:
            tree = {**tree, "stack": _scaled(tree["stack"], jnp.zeros((), jnp.int32))}
        if model.predictor_near:
            tree = {**tree, "stack": _near(tree["stack"], model)}
        return tree if beside is None else {**tree, "beside": beside.init(jax.random.fold_in(key, 1), z)["params"]}

    levels = jax.vmap(level)(jax.random.split(level_key, model.levels), jnp.arange(model.levels))
    predictors = jax.vmap(ahead)(jax.random.split(predictor_key, learn.predictors or model.levels))
    return Params(Encoder(embed.init(embed_key, jnp.zeros((1, 1, channels)))["params"], levels), predictors)


def _scaled(blocks: Tree, below: Int[Array, ""]) -> Tree:
    """Divides what block i (from 1, `below` of them in lower levels) adds to the residual stream by sqrt(2 i)."""

    def scale(path: tuple, leaf: Array) -> Array:
        block, layer = path[0].key, path[1].key
        depth = below + int(block.removeprefix("block")) + 1
        return leaf / jnp.sqrt(2.0 * depth) if layer in ("proj", "fc2") else leaf

    return jax.tree_util.tree_map_with_path(scale, blocks)


ANY = math.nan
AROUND = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1), (ANY, 0, 0), (-2, 0, 0))
"""Where the heads of a predictor look at first, in tokens along time, row and column, one after the other."""


def _near(blocks: Tree, model: config.Model) -> Tree:
    """Sets the biases of queries and keys, two thirds of `qkv`, to `predictor_near`: turned by their positions, equal
    biases agree best where the positions do, so attention begins at what is near.

    With the gaze `around` a head's queries are turned besides, so that they agree best with the keys of one place
    AROUND the token. That is exact where both channels of a pair turn by one angle, as under rope = "interleaved" and
    in heads of fewer than 12 channels; elsewhere they turn by the mean of the two.
    """
    bias, head_dim = model.predictor_near, model.predictor_width // model.predictor_heads

    def begin(path: tuple, leaf: Array) -> Array:
        if path[1].key != "qkv" or path[-1].key != "bias":
            return leaf
        if model.predictor_gaze == "near":
            return leaf.at[: 2 * leaf.shape[0] // 3].set(bias)
        run = vit.run_of(head_dim)
        angle = jnp.mean(vit.frequencies(run, model.rope).reshape(-1, 2), axis=1)
        heads = jnp.array([AROUND[i % len(AROUND)] for i in range(model.predictor_heads)], jnp.float32)
        turn = heads[:, :, None] * angle[None, None]
        query = jnp.stack([jnp.cos(turn) - jnp.sin(turn), jnp.cos(turn) + jnp.sin(turn)], axis=-1)
        query = jnp.nan_to_num(query)  # without a bias along an axis, all its places agree alike
        rest = ((0, 0), (0, head_dim - 3 * run))
        pair = (jnp.pad(x.reshape(len(heads), 3 * run), rest).ravel() for x in (query, jnp.ones_like(query)))
        return leaf.at[: 2 * leaf.shape[0] // 3].set(bias * jnp.concatenate(list(pair)))

    return jax.tree_util.tree_map_with_path(begin, blocks)


def standardise(clips: UInt8[Array, "B T H W 3"]) -> Float[Array, "B T H W 3"]:
    """Returns the clips with ImageNet's channel mean 0 and standard deviation 1, as V-JEPA 2 expects them."""
    mean, std = (jnp.array(x, jnp.float32).reshape(1, 1, 1, 1, 3) for x in (MEAN, STD))
    return (clips.astype(jnp.float32) - mean) / std


def latents(network: Network, encoder: Encoder, clips: UInt8[Array, "B T H W 3"]) -> Float[Array, "L B N D"]:
    """Returns the normed latents of every level for whole clips: what a frozen encoder is read by."""
    patches = network.patches(clips)
    ids = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
    return levels_of(network, encoder, network.embed(encoder.embed, patches), ids)
