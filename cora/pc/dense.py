"""V-JEPA 2.1's objective: one predictor of all levels' latents, of the hidden and of the seen tokens, end to end.

A control: the published method that gives every level a target, where `local` gives every level an error of its own.
Source: V-JEPA 2.1 (arXiv 2603.14482).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cora import config
from cora.pc import targets
from cora.pc.rules import gather, levels_of, start
from cora.types import Encoder, LearningRule, Masks, Network, Params, Sight


def nearness(grid: tuple[int, int, int], masks: Masks) -> Float[Array, "B C"]:
    """Returns 1 / sqrt(d) of every context token, d its distance on the grid to the nearest target token (1 and up)."""
    place = np.stack(np.unravel_index(np.arange(np.prod(grid)), grid), axis=1).astype(np.float32)
    between = jnp.asarray(np.linalg.norm(place[:, None] - place[None], axis=-1))
    return jax.lax.rsqrt(jnp.min(between[masks.context[:, :, None], masks.target[:, None, :]], axis=2))


def ramp(learning: config.Learn, progress: Float[Array, ""] | float) -> Float[Array, ""]:
    """Returns the context loss' weight at this part of the run: 0, then linear, then `learn.context`."""
    low, high = learning.context_ramp
    return learning.context * jnp.clip((jnp.asarray(progress) - low) / max(high - low, 1e-9), 0.0, 1.0)


def rule(learning: config.Learn, target: config.Target, grid: tuple[int, int, int]) -> LearningRule:
    """Returns the rule that differentiates, from end to end, the mean over levels and kinds of mask of

        mean ρ(t - g) over hidden tokens + weight(progress) * mean w ρ(t - g) over context tokens

    with w = `nearness` or 1; each level's targets are normalised on their own. It reports the first term by level.
    """
    penalty = targets.PENALTIES[target.error]

    def run(network: Network, params: Params, teacher: Encoder, sight: Sight) -> tuple[Params, Float[Array, " L"]]:
        ids = jnp.broadcast_to(jnp.arange(sight.patches.shape[1]), sight.patches.shape[:2])
        full = levels_of(network, teacher, network.embed(teacher.embed, sight.patches), ids)
        goals = jax.lax.stop_gradient(jax.vmap(network.goal)(full))

        def gap(guess: Float[Array, "B K LD"], ids: Int[Array, "B K"]) -> Float[Array, "L B K"]:
            split = jnp.moveaxis(guess.reshape(*guess.shape[:2], len(goals), -1), 2, 0)
            return jnp.mean(penalty(jax.vmap(gather, (0, None))(goals, ids) - split), axis=-1)

        def total(params: Params) -> tuple[Float[Array, ""], Float[Array, " L"]]:
            predictor = jax.tree.map(lambda leaf: leaf[0], params.predictors)
            ahead, beside = [], []
            for kind, (z, m) in enumerate(zip(start(network, params.encoder.embed, sight), sight.masks, strict=True)):
                own = jnp.moveaxis(levels_of(network, params.encoder, z, m.context), 0, 2)
                hidden, seen = network.predict(predictor, own.reshape(*own.shape[:2], -1), m, kind)
                weight = nearness(grid, m) if learning.context_distance else jnp.ones(m.context.shape)
                ahead.append(jnp.mean(gap(hidden, m.target), axis=(1, 2)))
                beside.append(jnp.mean(weight[None] * gap(seen, m.context), axis=(1, 2)))
            error = jnp.mean(jnp.stack(ahead), axis=0)
            context = jnp.mean(jnp.stack(beside), axis=0)
            return jnp.mean(error + ramp(learning, sight.progress) * context), error

        return jax.grad(total, has_aux=True)(params)

    return run
