"""Any preset as the learning rule of a video network, and the one place where a config's rule is looked up."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cora import config
from cora.pc import dense, diagnose, rules, topdown
from cora.pc.energy import Energy, Trees
from cora.pc.learn import Rule, learn
from cora.pc.presets import preset
from cora.types import Encoder, Evidence, Key, LearningRule, Network, Params, Sight, State, Tree


def clamped(
    network: Network, params: Params, teacher: Encoder, sight: Sight
) -> tuple[Evidence, Callable[[State], tuple[Tree]]]:
    """Returns what the network's energy is measured on, and the pull-back from z_0 to the patch embedding."""
    z, pull_back = jax.vjp(lambda tree: rules.start(network, tree, sight), params.encoder.embed)

    def climb(full: rules.Whole, tree: Tree) -> tuple[rules.Whole, list[rules.Latents]]:
        return rules.teach(network, tree, full, sight)

    goals = jax.lax.scan(climb, rules.taught(network, teacher, sight), teacher.levels)[1]
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
        _, error = rules.energies(network, params, teacher, sight)
        return Params(Encoder(pull_back(found.input)[0], levels), predictors), error

    return run


def _chance(sight: Sight) -> Key:
    """This step's key, or where none is given one that changes with the masks, for rules that add noise."""
    return jax.random.key(jnp.sum(sight.masks[0].target)) if sight.key is None else sight.key


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
    return None if learning.rule in config.DIRECT else preset(learning.rule, levels, infer.steps, infer.rate)


def rule_of(
    learning: config.Learn, infer: config.Infer, model: config.Model, target: config.Target, engine: Callable = learn
) -> LearningRule:
    """Returns the learning rule that the config names; `engine` computes the gradient of those that settle states."""
    if learning.rule == "dense":
        return dense.rule(learning, target, model.grid)
    if learning.top_down:
        return topdown.RULES[learning.rule]
    if learning.reach > 1:
        return partial(rules.local, reach=learning.reach)
    rule = algorithm(learning, infer, model.levels)
    return DIRECT[learning.rule] if rule is None else settled(rule, engine)


DIRECT: dict[str, LearningRule] = {
    "local": rules.local, "backprop_last": rules.backprop_last, "backprop_all": rules.backprop_all,
}
