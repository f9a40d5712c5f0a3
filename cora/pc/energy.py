"""The target energy of one level: how badly it predicts the latents of the tokens that are hidden from it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cora.types import Encoder, Evidence, Hierarchy, Masks, Tree

Latents = Float[Array, "B _ D"]
"""Value nodes of some tokens; how many differs with the kind of mask."""


def gather(x: Float[Array, "B N D"], ids: Int[Array, "B K"]) -> Float[Array, "B K D"]:
    """Returns the tokens of x with these ids."""
    return jnp.take_along_axis(x, ids[..., None], axis=1)


def level_energy(
    hierarchy: Hierarchy, tree: Tree, predictor: Tree, z: list[Latents], goal: Float[Array, "B N D"], masks: list[Masks]
) -> tuple[Float[Array, ""], list[Latents]]:
    """Returns level l's target energy ρ(t_l - g_l(f_l(z_{l-1}))), averaged over the kinds of mask, and its z_l.

    `z` holds z_{l-1} of the context tokens under each kind of mask; `goal` the teacher's latents of all tokens.
    It sees this level's parameters and nothing of any other level's.
    """
    z = [hierarchy.encode(tree, x, m.context) for x, m in zip(z, masks, strict=True)]
    errors = [
        hierarchy.error(hierarchy.predict(predictor, hierarchy.norm(tree, x), m), gather(goal, m.target))
        for x, m in zip(z, masks, strict=True)
    ]
    return jnp.mean(jnp.stack(errors)), z


def teach(
    hierarchy: Hierarchy, tree: Tree, full: Float[Array, "B N D"]
) -> tuple[Float[Array, "B N D"], Float[Array, "B N D"]]:
    """Returns the teacher's z_l for whole clips and the targets made of it."""
    ids = jnp.broadcast_to(jnp.arange(full.shape[1]), full.shape[:2])
    full = hierarchy.encode(tree, full, ids)
    return full, hierarchy.goal(hierarchy.norm(tree, full))


def start(hierarchy: Hierarchy, embed: Tree, evidence: Evidence) -> list[Latents]:
    """Returns z_0 of the context tokens under each kind of mask."""
    return [hierarchy.embed(embed, gather(evidence.patches, m.context)) for m in evidence.masks]


def energies(
    hierarchy: Hierarchy, encoder: Encoder, predictors: Tree, teacher: Encoder, evidence: Evidence
) -> Float[Array, " L"]:
    """Returns the target energy of every level at the feed-forward pass, differentiable from end to end."""

    def climb(carry: tuple[list[Latents], Latents], level: tuple[Tree, Tree, Tree]) -> tuple[tuple, Float[Array, ""]]:
        z, full = carry
        tree, predictor, teacher_tree = level
        full, goal = teach(hierarchy, teacher_tree, full)
        energy, z = level_energy(hierarchy, tree, predictor, z, jax.lax.stop_gradient(goal), list(evidence.masks))
        return (z, full), energy

    first = start(hierarchy, encoder.embed, evidence), hierarchy.embed(teacher.embed, evidence.patches)
    return jax.lax.scan(climb, first, (encoder.levels, predictors, teacher.levels))[1]
