"""What a video network predicts of hidden tokens, and how much better that is than guesses that learn nothing."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cora.pc.rules import gather, levels_of
from cora.types import Encoder, Masks, Network, Params, Sight


def targets(network: Network, teacher: Encoder, patches: Float[Array, "B N P"]) -> Float[Array, "l B N D"]:
    """Returns what every level is asked to predict, of all tokens; one level where all are asked the same."""
    fixed = None if network.fixed is None else network.fixed(patches)[None]
    if fixed is not None and not network.below:
        return fixed
    ids = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
    own = jax.vmap(network.goal)(levels_of(network, teacher, network.embed(teacher.embed, patches), ids))
    return own if fixed is None else jnp.concatenate([fixed, own[:-1]])


def foreseen(
    network: Network, params: Params, patches: Float[Array, "B N P"], seen: Masks, kind: int
) -> tuple[Float[Array, "p B M D"], Float[Array, "p B M"]]:
    """Returns what every level that has a predictor predicts of the hidden tokens, lowest level first (all levels, or
    the highest alone where only that has one), and how sure it is of each: a log precision, 0 where it says nothing.

    A level that hears from above hears what the level above predicts; the highest hears zeros.
    """

    def up(z: Float[Array, "B C D"], tree: Any) -> tuple[Array, Array]:
        z = network.encode(tree, z, seen.context)
        return z, network.norm(tree, z)

    first = network.embed(params.encoder.embed, gather(patches, seen.context))
    u = jax.lax.scan(up, first, params.encoder.levels)[1]
    u = u[-jax.tree.leaves(params.predictors)[0].shape[0] :]

    def down(above: Float[Array, "B M D"], level: tuple) -> tuple[Array, tuple[Array, Array]]:
        heard = (above,) if "above" in params.predictors else ()
        guess, sure = network.foresee(level[1], level[0], seen, kind, *heard)
        return guess, (guess, sure)

    silence = jnp.zeros((*seen.target.shape, u.shape[-1]))
    return jax.lax.scan(down, silence, (u, params.predictors), reverse=True)[1]


def predictions(
    network: Network, params: Params, patches: Float[Array, "B N P"], seen: Masks, kind: int
) -> Float[Array, "p B M D"]:
    """Returns the predictions of `foreseen` alone."""
    return foreseen(network, params, patches, seen, kind)[0]


def distances(grid: tuple[int, int, int]) -> Int[Array, "N N"]:
    """Returns the squared distance of every two tokens of a grid, counted in tokens along time, row and column."""
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, grid), indexing="ij"), axis=-1).reshape(-1, 3)
    return jnp.sum(jnp.square(places[:, None] - places[None]), axis=-1)


def nearest(seen: Masks, grid: tuple[int, int, int]) -> Int[Array, "B M"]:
    """Returns the id of the seen token that is nearest to each hidden one; of two that are equally near the earlier."""
    away = distances(grid)[seen.target[:, :, None], seen.context[:, None, :]]
    return jnp.take_along_axis(seen.context, jnp.argmin(away, axis=2), axis=1)


def batch_skill(
    network: Network, params: Params, teacher: Encoder, sight: Sight, grid: tuple[int, int, int]
) -> Float[Array, " p"]:
    """Returns of every level that has a predictor 1 - its squared error on the hidden tokens over that of the best of
    two guesses: the batch's mean at each place, and the nearest seen token; a mean over kinds of mask.

    1 is perfect, 0 no better than the guesses. It is logged while a run goes on, on clips that the run trains on;
    `cora skill` measures it on others, beside better guesses.
    """
    whole = targets(network, teacher, sight.patches)
    found = []
    for kind, seen in enumerate(sight.masks):
        guess = predictions(network, params, sight.patches, seen, kind)
        goals = jax.vmap(gather, (0, None))(whole, seen.target)
        middle = jnp.broadcast_to(jnp.mean(whole, axis=1, keepdims=True), whole.shape)
        copies = [jax.vmap(gather, (0, None))(table, ids)
                  for table, ids in ((middle, seen.target), (whole, nearest(seen, grid)))]

        def error(x: Float[Array, "l B M D"], goals: Array = goals) -> Float[Array, " l"]:
            return jnp.mean(jnp.square(goals - x), axis=(1, 2, 3))

        best = jnp.minimum(*map(error, copies))
        count = guess.shape[0]
        own, floor = (x[-count:] if x.shape[0] > 1 else x for x in (goals, best))
        found.append(1 - jnp.mean(jnp.square(own - guess), axis=(1, 2, 3)) / jnp.maximum(floor, 1e-12))
    return jnp.mean(jnp.stack(found), axis=0)
