"""Learning rules: which error moves which weights.

`local` is Cora's: each level learns from its own target error, and nothing crosses a level. `backprop_last` and
`backprop_all` are the controls that every claim is measured against; they differ in the gradient alone.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cora.pc.energy import Latents, energies, level_energy, start, teach
from cora.types import Encoder, Evidence, Hierarchy, LearningRule, Params, Tree


def local(
    hierarchy: Hierarchy, params: Params, teacher: Encoder, evidence: Evidence
) -> tuple[Params, Float[Array, " L"]]:
    """Returns each level's gradient of its own energy, its input held fixed, and the energies.

    One scan over the levels computes a level's forward pass, its error and its gradient before it goes on to the
    next, so that only one level's activations live at a time and memory does not grow with depth. The patch
    embedding belongs to the lowest level.
    """
    z, pull_back = jax.vjp(lambda tree: start(hierarchy, tree, evidence), params.encoder.embed)
    masks = list(evidence.masks)

    def climb(carry: tuple, level: tuple) -> tuple[tuple, tuple[Float[Array, ""], Tree, Tree]]:
        z, full, pull = carry
        index, tree, predictor, teacher_tree = level
        full, goal = teach(hierarchy, teacher_tree, full)

        def own(tree: Tree, predictor: Tree, z: list[Latents]) -> tuple[Float[Array, ""], list[Latents]]:
            return level_energy(hierarchy, tree, predictor, z, goal, masks)

        (energy, above), (d_tree, d_predictor, d_z) = jax.value_and_grad(own, (0, 1, 2), has_aux=True)(
            tree, predictor, z
        )
        pull = jax.tree.map(lambda first, kept: jnp.where(index == 0, first, kept), d_z, pull)
        return (above, full, pull), (energy, d_tree, d_predictor)

    index = jnp.arange(jax.tree.leaves(params.predictors)[0].shape[0])
    first = (z, hierarchy.embed(teacher.embed, evidence.patches), jax.tree.map(jnp.zeros_like, z))
    levels = (index, params.encoder.levels, params.predictors, teacher.levels)
    (_, _, pull), (energy, d_levels, d_predictors) = jax.lax.scan(climb, first, levels)
    return Params(Encoder(pull_back(pull)[0], d_levels), d_predictors), energy


def backprop_all(
    hierarchy: Hierarchy, params: Params, teacher: Encoder, evidence: Evidence
) -> tuple[Params, Float[Array, " L"]]:
    """Returns the end-to-end gradient of the sum of all levels' energies, and the energies (a multi-level control)."""

    def total(params: Params) -> tuple[Float[Array, ""], Float[Array, " L"]]:
        energy = energies(hierarchy, params.encoder, params.predictors, teacher, evidence)
        return jnp.sum(energy), energy

    gradient, energy = jax.grad(total, has_aux=True)(params)
    return gradient, energy


def backprop_last(
    hierarchy: Hierarchy, params: Params, teacher: Encoder, evidence: Evidence
) -> tuple[Params, Float[Array, "1"]]:
    """Returns the end-to-end gradient of the highest level's energy alone (V-JEPA 2), and that one energy.

    The lower levels' predictors are neither run nor trained.
    """

    def top(params: Params) -> Float[Array, ""]:
        z, full = start(hierarchy, params.encoder.embed, evidence), hierarchy.embed(teacher.embed, evidence.patches)

        def climb(carry: tuple, level: tuple) -> tuple[tuple, None]:
            z, full = carry
            z = [hierarchy.encode(level[0], x, m.context) for x, m in zip(z, evidence.masks, strict=True)]
            return (z, teach(hierarchy, level[1], full)[0]), None

        below, last = (jax.tree.map(lambda leaf, at=at: leaf[at], (params.encoder.levels, teacher.levels))
                       for at in (slice(None, -1), -1))
        (z, full), _ = jax.lax.scan(climb, (z, full), below)
        _, goal = teach(hierarchy, last[1], full)
        predictor = jax.tree.map(lambda leaf: leaf[-1], params.predictors)
        return level_energy(hierarchy, last[0], predictor, z, jax.lax.stop_gradient(goal), list(evidence.masks))[0]

    energy, gradient = jax.value_and_grad(top)(params)
    return gradient, energy[None]


RULES: dict[str, LearningRule] = {"local": local, "backprop_last": backprop_last, "backprop_all": backprop_all}
