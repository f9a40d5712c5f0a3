"""Learning rules of a pretraining run: which error moves which weights of a video network.

`local` is Cora's: each level learns from its own target error, and nothing crosses a level. It is the preset of that
name on the network's hierarchy (a test holds them equal), executed so that memory stays flat. `settled` runs any
other preset. `backprop_last` and `backprop_all` are the controls that every claim is measured against.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cora import config
from cora.pc import diagnose
from cora.pc.energy import Energy, Trees
from cora.pc.learn import Rule, learn
from cora.pc.presets import preset
from cora.types import Encoder, Evidence, Key, LearningRule, Network, Params, Sight, State, Tree

Latents = Float[Array, "B _ D"]
"""Value nodes of some tokens; how many differs with the kind of mask."""


def gather(x: Float[Array, "B N D"], ids: Int[Array, "B K"]) -> Float[Array, "B K D"]:
    """Returns the tokens of x with these ids."""
    return jnp.take_along_axis(x, ids[..., None], axis=1)


def level_energy(
    network: Network, tree: tuple[Tree, Tree], z: list[Latents], goal: list[Latents], sight: Sight
) -> tuple[Float[Array, ""], list[Latents]]:
    """Returns level l's target energy ρ(t_l - g_l(f_l(z_{l-1}))), a mean over clips and kinds of mask, and its z_l.

    It sees this level's parameters (of encoder and predictor) and nothing of any other level's.
    """
    level = network.level
    assert level.readout is not None and level.error is not None
    z = level.encode(tree, z, sight.masks)
    return jnp.mean(level.error(level.readout(tree, z, sight.masks), goal)), z


def teach(
    network: Network, tree: Tree, full: Float[Array, "B N D"], sight: Sight
) -> tuple[Float[Array, "B N D"], list[Latents]]:
    """Returns the teacher's z_l for whole clips and the targets made of it, one array a kind of mask."""
    ids = jnp.broadcast_to(jnp.arange(full.shape[1]), full.shape[:2])
    full = network.encode(tree, full, ids)
    goal = jax.lax.stop_gradient(network.goal(network.norm(tree, full)))
    return full, [gather(goal, m.target) for m in sight.masks]


def start(network: Network, embed: Tree, sight: Sight) -> list[Latents]:
    """Returns z_0 of the context tokens under each kind of mask."""
    return [network.embed(embed, gather(sight.patches, m.context)) for m in sight.masks]


def energies(
    network: Network, params: Params, teacher: Encoder, sight: Sight
) -> Float[Array, " L"]:
    """Returns the target energy of every level at the feed-forward pass, differentiable from end to end."""

    def climb(carry: tuple[list[Latents], Latents], level: tuple[Tree, Tree, Tree]) -> tuple[tuple, Float[Array, ""]]:
        z, full = carry
        tree, predictor, teacher_tree = level
        full, goal = teach(network, teacher_tree, full, sight)
        energy, z = level_energy(network, (tree, predictor), z, goal, sight)
        return (z, full), energy

    first = start(network, params.encoder.embed, sight), network.embed(teacher.embed, sight.patches)
    return jax.lax.scan(climb, first, (params.encoder.levels, params.predictors, teacher.levels))[1]


def local(network: Network, params: Params, teacher: Encoder, sight: Sight) -> tuple[Params, Float[Array, " L"]]:
    """Returns each level's gradient of its own energy, its input held fixed, and the energies.

    One scan over the levels computes a level's forward pass, its error and its gradient before it goes on to the
    next, so that only one level's activations live at a time and memory does not grow with depth. The patch
    embedding belongs to the lowest level.
    """
    z, pull_back = jax.vjp(lambda tree: start(network, tree, sight), params.encoder.embed)

    def climb(carry: tuple, level: tuple) -> tuple[tuple, tuple[Float[Array, ""], tuple[Tree, Tree]]]:
        z, full, pull = carry
        index, tree, predictor, teacher_tree = level
        full, goal = teach(network, teacher_tree, full, sight)

        def own(tree: tuple[Tree, Tree], z: list[Latents]) -> tuple[Float[Array, ""], list[Latents]]:
            return level_energy(network, tree, z, goal, sight)

        (energy, above), (d_tree, d_z) = jax.value_and_grad(own, (0, 1), has_aux=True)((tree, predictor), z)
        pull = jax.tree.map(lambda first, kept: jnp.where(index == 0, first, kept), d_z, pull)
        return (above, full, pull), (energy, d_tree)

    index = jnp.arange(jax.tree.leaves(params.predictors)[0].shape[0])
    first = (z, network.embed(teacher.embed, sight.patches), jax.tree.map(jnp.zeros_like, z))
    levels = (index, params.encoder.levels, params.predictors, teacher.levels)
    (_, _, pull), (energy, (d_levels, d_predictors)) = jax.lax.scan(climb, first, levels)
    return Params(Encoder(pull_back(pull)[0], d_levels), d_predictors), energy


def backprop_all(
    network: Network, params: Params, teacher: Encoder, sight: Sight
) -> tuple[Params, Float[Array, " L"]]:
    """Returns the end-to-end gradient of the sum of all levels' energies, and the energies (a multi-level control)."""

    def total(params: Params) -> tuple[Float[Array, ""], Float[Array, " L"]]:
        energy = energies(network, params, teacher, sight)
        return jnp.sum(energy), energy

    gradient, energy = jax.grad(total, has_aux=True)(params)
    return gradient, energy


def backprop_last(
    network: Network, params: Params, teacher: Encoder, sight: Sight
) -> tuple[Params, Float[Array, "1"]]:
    """Returns the end-to-end gradient of the highest level's energy alone (V-JEPA 2), and that one energy.

    The lower levels' predictors are neither run nor trained.
    """

    def top(params: Params) -> Float[Array, ""]:
        z, full = start(network, params.encoder.embed, sight), network.embed(teacher.embed, sight.patches)

        def climb(carry: tuple, level: tuple) -> tuple[tuple, None]:
            z, full = carry
            z = [network.encode(level[0], x, m.context) for x, m in zip(z, sight.masks, strict=True)]
            return (z, teach(network, level[1], full, sight)[0]), None

        below, last = (jax.tree.map(lambda leaf, at=at: leaf[at], (params.encoder.levels, teacher.levels))
                       for at in (slice(None, -1), -1))
        (z, full), _ = jax.lax.scan(climb, (z, full), below)
        _, goal = teach(network, last[1], full, sight)
        predictor = jax.tree.map(lambda leaf: leaf[-1], params.predictors)
        return level_energy(network, (last[0], predictor), z, goal, sight)[0]

    energy, gradient = jax.value_and_grad(top)(params)
    return gradient, energy[None]


def clamped(
    network: Network, params: Params, teacher: Encoder, sight: Sight
) -> tuple[Evidence, Callable[[State], tuple[Tree]]]:
    """Returns what the network's energy is measured on, and the pull-back from z_0 to the patch embedding."""
    z, pull_back = jax.vjp(lambda tree: start(network, tree, sight), params.encoder.embed)

    def climb(full: Latents, tree: Tree) -> tuple[Latents, list[Latents]]:
        return teach(network, tree, full, sight)

    goals = jax.lax.scan(climb, network.embed(teacher.embed, sight.patches), teacher.levels)[1]
    return Evidence(z, (goals,), sight.masks), pull_back


def problem(
    network: Network, params: Params, teacher: Encoder, sight: Sight
) -> tuple[Energy, Trees, Evidence, Callable[[State], tuple[Tree]]]:
    """Returns the network's energy, its parameters and evidence, and the pull-back of `clamped`.

    The target error, a mean over units, is weighed by their number C D, so that it counts like the state errors, sums.
    """
    evidence, pull_back = clamped(network, params, teacher, sight)
    units = float(sum(x[0].size for x in evidence.input))
    energy = Energy((network.level,), target=units)
    return energy, ((params.encoder.levels, params.predictors),), evidence, pull_back


def settled(rule: Rule, engine: Callable = learn) -> LearningRule:
    """Returns the learning rule that settles the states of the whole hierarchy by `rule`, then learns at each level.

    Gradients are divided by the target's weight again, so that one step at rate 1, linearised at the forward pass,
    gives what `local` gives. Energies are the target energies of the forward pass.
    """

    def run(network: Network, params: Params, teacher: Encoder, sight: Sight) -> tuple[Params, Float[Array, " L"]]:
        energy, trees, evidence, pull_back = problem(network, params, teacher, sight)
        found, _, _ = engine(energy, trees, evidence, rule, _chance(sight))
        found = jax.tree.map(lambda g: g / energy.target, found)
        levels, predictors = found.params[0]
        return Params(Encoder(pull_back(found.input)[0], levels), predictors), energies(network, params, teacher, sight)

    return run


def _chance(sight: Sight) -> Key:
    """A key that changes with the masks, for rules that add noise."""
    return jax.random.key(jnp.sum(sight.masks[0].target))


def inspected(
    rule: Rule, network: Network, params: Params, teacher: Encoder, sight: Sight
) -> dict[str, Float[Array, " _"]]:
    """Returns how this rule settles and learns on one batch, by level: what a run logs beside its losses.

    backprop_cosine, backprop_ratio: of the encoder's gradient to that of all levels' errors end to end (a predictor
    hears of its own error alone under every rule). error_norm: of the settled states. energy_first, energy_last: all
    terms per clip at the first and last step of inference; residual: |dF/dz| at the last step over that at the first
    (no entries where the rule keeps no trace).
    """
    energy, trees, evidence, _ = problem(network, params, teacher, sight)
    found, rest, trace = learn(energy, trees, evidence, rule, _chance(sight))
    control, _, _ = learn(energy, trees, evidence, preset("exact", energy.depth))
    own, whole = ((gradient.params[0][0],) for gradient in (found, control))
    numbers = {
        "backprop_cosine": diagnose.cosine(own, whole),
        "backprop_ratio": diagnose.norm_ratio(own, whole),
        "error_norm": diagnose.norms(rest.errors.state),
    }
    if trace.energy.shape[0]:
        clips = sight.patches.shape[0]
        numbers |= {"energy_first": trace.energy[0] / clips, "energy_last": trace.energy[-1] / clips,
                    "residual": (trace.residual[-1] / trace.residual[0])[None]}
    return numbers


def algorithm(learning: config.Learn, infer: config.Infer, levels: int) -> Rule | None:
    """Returns the preset that the config names, None for rules without inference."""
    return None if learning.rule in DIRECT else preset(learning.rule, levels, infer.steps, infer.rate)


def rule_of(learning: config.Learn, infer: config.Infer, levels: int, engine: Callable = learn) -> LearningRule:
    """Returns the learning rule that the config names; `engine` computes the gradient of those that settle states."""
    rule = algorithm(learning, infer, levels)
    return DIRECT[learning.rule] if rule is None else settled(rule, engine)


DIRECT: dict[str, LearningRule] = {"local": local, "backprop_last": backprop_last, "backprop_all": backprop_all}
"""Rules without inference."""
