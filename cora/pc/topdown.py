"""Rules in which a level's predictor hears from above: what the next level predicts of the hidden tokens.

g_l(z_l, q_{l+1}), where q_{l+1} is the prediction of level l+1 as it stands: no gradient goes through it, so a level's
energy still moves its own weights alone, at fixed q. The highest level hears zeros. The encoder climbs first, then the
predictors speak from the top down; what must be kept between the two grows with the number of levels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cora.pc.rules import Latents, Whole, held, start, taught, teach
from cora.types import Encoder, LearningRule, Network, Params, Sight, Tree

Stacks = Float[Array, "L B _ D"]


def climb(
    network: Network, params: Params, teacher: Encoder, sight: Sight
) -> tuple[list[Stacks], list[Stacks], list[Stacks]]:
    """Returns z_{l-1}, z_l and the goals of every level, one stack [L, ...] a kind of mask, at the forward pass."""

    def up(carry: tuple[list[Latents], Whole], level: tuple[Tree, Tree]) -> tuple[tuple, tuple]:
        z, full = carry
        full, goal = teach(network, level[1], full, sight)
        above = [network.encode(level[0], x, m.context) for x, m in zip(z, sight.masks, strict=True)]
        return (above, full), (z, above, goal)

    first = start(network, params.encoder.embed, sight), taught(network, teacher, sight)
    return jax.lax.scan(up, first, (params.encoder.levels, teacher.levels))[1]


def told(
    network: Network, tree: tuple[Tree, Tree], z: list[Latents], goal: list[Latents], above: list[Latents], sight: Sight
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], list[Latents]]]:
    """Returns level l's energy from its z_l, and (its target error, what it predicts)."""
    assert network.level.error is not None
    u = [network.norm(tree[0], x) for x in z]
    guess = [network.predict(tree[1], x, m, kind, q) for kind, (x, m, q) in enumerate(zip(u, sight.masks, above,
                                                                                         strict=True))]
    beside = [] if network.beside is None else [network.beside(tree[1], x) for x in u]
    error = jnp.mean(network.level.error(guess + beside, goal))
    return error + held(network, tree[0], z, sight), (error, jax.lax.stop_gradient(guess))


def local(network: Network, params: Params, teacher: Encoder, sight: Sight) -> tuple[Params, Float[Array, " L"]]:
    """Returns each level's gradient of its own energy, its input and what it hears held fixed, and the errors."""
    below, _, goals = climb(network, params, teacher, sight)
    _, pull_back = jax.vjp(lambda tree: start(network, tree, sight), params.encoder.embed)

    def down(above: list[Latents], level: tuple) -> tuple[list[Latents], tuple]:
        tree, predictor, z, goal = level

        def own(tree: tuple[Tree, Tree], z: list[Latents]) -> tuple[Float[Array, ""], tuple]:
            z = network.level.encode(tree, z, sight.masks)
            return told(network, tree, z, goal, above, sight)

        gradient, (error, guess) = jax.grad(own, (0, 1), has_aux=True)((tree, predictor), z)
        return guess, (error, *gradient)

    silence = [jnp.zeros_like(goal[0]) for goal in goals[: len(sight.masks)]]
    levels = (params.encoder.levels, params.predictors, below, goals)
    error, (d_levels, d_predictors), pull = jax.lax.scan(down, silence, levels, reverse=True)[1]
    pull = jax.tree.map(lambda d: d[0], pull)
    return Params(Encoder(pull_back(pull)[0], d_levels), d_predictors), error


def backprop_all(
    network: Network, params: Params, teacher: Encoder, sight: Sight
) -> tuple[Params, Float[Array, " L"]]:
    """Returns the end-to-end gradient of the sum of all levels' energies, what each hears held fixed, and their
    errors."""

    def total(params: Params) -> tuple[Float[Array, ""], Float[Array, " L"]]:
        _, own, goals = climb(network, params, teacher, sight)

        def down(above: list[Latents], level: tuple) -> tuple[list[Latents], tuple]:
            tree, predictor, z, goal = level
            energy, (error, guess) = told(network, (tree, predictor), z, goal, above, sight)
            return guess, (energy, error)

        silence = [jnp.zeros_like(goal[0]) for goal in goals[: len(sight.masks)]]
        levels = (params.encoder.levels, params.predictors, own, goals)
        energy, error = jax.lax.scan(down, silence, levels, reverse=True)[1]
        return jnp.sum(energy), error

    return jax.grad(total, has_aux=True)(params)


RULES: dict[str, LearningRule] = {"local": local, "backprop_all": backprop_all}
"""By the names that they have without a word from above."""
