"""Learning rules of a video network that infer nothing: which level's error moves which weights.

`local` is Cora's: each level learns from its own target error, and nothing crosses a level. It is the preset of that
name on the network's hierarchy (a test holds them equal), executed so that memory stays flat. `backprop_last` and
`backprop_all` are the controls that every claim is measured against. All have the type `LearningRule`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cora.types import Encoder, Network, Params, Sight, State, Tree

Latents = Float[Array, "B _ D"]
"""Value nodes of some tokens; how many differs with the kind of mask."""
Whole = State
"""What a level is taught from: a table of all tokens [B, N, D], or two."""


def gather(x: Float[Array, "B N D"], ids: Int[Array, "B K"]) -> Float[Array, "B K D"]:
    """Returns the tokens of x with these ids."""
    return jnp.take_along_axis(x, ids[..., None], axis=1)


def levels_of(
    network: Network, encoder: Encoder, z: Float[Array, "B K D"], ids: Int[Array, "B K"]
) -> Float[Array, "L B K D"]:
    """Returns the normed latents of all levels from z_0."""

    def climb(z: Float[Array, "B K D"], tree: Tree) -> tuple[Float[Array, "B K D"], Float[Array, "B K D"]]:
        z = network.encode(tree, z, ids)
        return z, network.norm(tree, z)

    return jax.lax.scan(climb, z, encoder.levels)[1]


def level_energy(
    network: Network, tree: tuple[Tree, Tree], z: list[Latents], goal: list[Latents], sight: Sight
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], list[Latents]]]:
    """Returns level l's energy, and (its target error ρ(t_l - g_l(f_l(z_{l-1}))), a mean over clips and kinds of mask;
    its z_l). The energy is that error, and the prior's energy of z_l where the network has one.

    It sees this level's parameters (of encoder and predictor) and nothing of any other level's.
    """
    level = network.level
    assert level.readout is not None and level.error is not None
    z = level.encode(tree, z, sight.masks)
    error = jnp.mean(level.error(level.readout(tree, z, sight.masks), goal))
    return error + held(network, tree[0], z, sight), (error, z)


def held(network: Network, tree: Tree, z: list[Latents], sight: Sight) -> Float[Array, ""]:
    """Returns the energy of a level's latents under their prior; 0 where there is none."""
    if network.prior is None:
        return jnp.zeros(())
    assert sight.key is not None, "a prior draws its directions from sight.key"
    return network.prior(sight.key, [network.norm(tree, x) for x in z])


def teach(
    network: Network, tree: Tree, full: Whole, sight: Sight
) -> tuple[Whole, list[Latents]]:
    """Returns what the next level is taught from, and this level's targets as `Network.level` wants them.

    That is the teacher's z_l of whole clips, of which targets are made here; targets that are fixed, as they are; or
    z_l beside the next level's targets, where these are the latents of the level below.
    """
    asked = [m.target for m in sight.masks]
    if network.beside is not None:
        asked += [m.context for m in sight.masks]
    if network.fixed is not None and not network.below:
        return full, [gather(full, ids) for ids in asked]
    z, told = full if network.below else (full, None)
    ids = jnp.broadcast_to(jnp.arange(z.shape[1]), z.shape[:2])
    z = network.encode(tree, z, ids)
    own = jax.lax.stop_gradient(network.goal(network.norm(tree, z)))
    goal = own if told is None else told
    return (z, own) if network.below else z, [gather(goal, ids) for ids in asked]


def taught(network: Network, teacher: Encoder, sight: Sight) -> Whole:
    """Returns what `teach` is given for the lowest level: the teacher's z_0, the targets that are fixed, or both."""
    if network.fixed is None:
        return network.embed(teacher.embed, sight.patches)
    goal = network.fixed(sight.patches)
    return (network.embed(teacher.embed, sight.patches), goal) if network.below else goal


def start(network: Network, embed: Tree, sight: Sight) -> list[Latents]:
    """Returns z_0 of the context tokens under each kind of mask."""
    return [network.embed(embed, gather(sight.patches, m.context)) for m in sight.masks]


def energies(
    network: Network, params: Params, teacher: Encoder, sight: Sight
) -> tuple[Float[Array, " L"], Float[Array, " L"]]:
    """Returns (energy, target error) of every level at the feed-forward pass, differentiable from end to end."""

    def climb(carry: tuple[list[Latents], Whole], level: tuple[Tree, Tree, Tree]) -> tuple[tuple, tuple]:
        z, full = carry
        tree, predictor, teacher_tree = level
        full, goal = teach(network, teacher_tree, full, sight)
        energy, (error, z) = level_energy(network, (tree, predictor), z, goal, sight)
        return (z, full), (energy, error)

    first = start(network, params.encoder.embed, sight), taught(network, teacher, sight)
    return jax.lax.scan(climb, first, (params.encoder.levels, params.predictors, teacher.levels))[1]


def local(
    network: Network, params: Params, teacher: Encoder, sight: Sight, reach: int = 1
) -> tuple[Params, Float[Array, " L"]]:
    """Returns the gradient of each level's energy in its own weights and those of the reach - 1 encoder levels below,
    what enters the lowest of them held fixed; and the target errors.

    With a reach of 1 nothing crosses a level; with that of all levels this is `backprop_all`; between them, local
    updates overlap (Xiong et al. 2020, arXiv 2008.01342). One scan over the levels computes a level's forward pass, its
    error and its gradient before it goes on to the next, so that only `reach` levels' activations live at a time and
    memory does not grow with depth. The patch embedding belongs to the lowest level.
    """
    z, pull_back = jax.vjp(lambda tree: start(network, tree, sight), params.encoder.embed)
    every = params.encoder.levels
    depths = range(reach - 1, -1, -1)  # of the levels that learn, below the one whose error it is

    def climb(carry: tuple, level: tuple) -> tuple[tuple, tuple[Float[Array, ""], Tree]]:
        z, full, pull, learned = carry
        index, predictor, teacher_tree = level
        full, goal = teach(network, teacher_tree, full, sight)
        places = [jnp.maximum(index - depth, 0) for depth in depths]

        def own(window: list[Tree], predictor: Tree, z: list[Latents]) -> tuple[Float[Array, ""], tuple]:
            outputs = []
            for depth, tree in zip(depths, window[:-1], strict=False):
                up = [network.encode(tree, x, m.context) for x, m in zip(z, sight.masks, strict=True)]
                z = [jnp.where(index >= depth, y, x) for x, y in zip(z, up, strict=True)]  # else there is no such level
                outputs.append(z)
            energy, (error, z) = level_energy(network, (window[-1], predictor), z, goal, sight)
            return energy, (error, [*outputs, z][0])

        window = [jax.tree.map(lambda leaf, at=at: leaf[at], every) for at in places]
        (_, (error, above)), (d_window, d_predictor, d_z) = jax.value_and_grad(own, (0, 1, 2), has_aux=True)(
            window, predictor, z)
        for at, found in zip(places, d_window, strict=True):
            learned = jax.tree.map(lambda total, one, at=at: total.at[at].add(one), learned, found)
        pull = jax.tree.map(lambda one, kept: jnp.where(index < reach, kept + one, kept), d_z, pull)
        return (above, full, pull, learned), (error, d_predictor)

    first = (z, taught(network, teacher, sight), *jax.tree.map(jnp.zeros_like, (z, every)))
    levels = jnp.arange(len(jax.tree.leaves(every)[0])), params.predictors, teacher.levels
    (_, _, pull, d_levels), (error, d_predictors) = jax.lax.scan(climb, first, levels)
    return Params(Encoder(pull_back(pull)[0], d_levels), d_predictors), error


def backprop_all(
    network: Network, params: Params, teacher: Encoder, sight: Sight
) -> tuple[Params, Float[Array, " L"]]:
    """Returns the end-to-end gradient of the sum of all levels' energies, and the target errors (a multi-level
    control)."""

    def total(params: Params) -> tuple[Float[Array, ""], Float[Array, " L"]]:
        energy, error = energies(network, params, teacher, sight)
        return jnp.sum(energy), error

    return jax.grad(total, has_aux=True)(params)


def backprop_last(
    network: Network, params: Params, teacher: Encoder, sight: Sight
) -> tuple[Params, Float[Array, "1"]]:
    """Returns the end-to-end gradient of the highest level's energy alone (V-JEPA 2), and its target error.

    The lower levels' predictors are neither run nor trained.
    """

    def top(params: Params) -> tuple[Float[Array, ""], Float[Array, "1"]]:
        z, full = start(network, params.encoder.embed, sight), taught(network, teacher, sight)

        def climb(carry: tuple, level: tuple) -> tuple[tuple, None]:
            z, full = carry
            z = [network.encode(level[0], x, m.context) for x, m in zip(z, sight.masks, strict=True)]
            return (z, teach(network, level[1], full, sight)[0]), None

        below, last = (jax.tree.map(lambda leaf, at=at: leaf[at], (params.encoder.levels, teacher.levels))
                       for at in (slice(None, -1), -1))
        (z, full), _ = jax.lax.scan(climb, (z, full), below)
        _, goal = teach(network, last[1], full, sight)
        predictor = jax.tree.map(lambda leaf: leaf[-1], params.predictors)
        energy, (error, _) = level_energy(network, (last[0], predictor), z, goal, sight)
        return energy, error[None]

    return jax.grad(top, has_aux=True)(params)
