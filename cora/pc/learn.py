"""Learning: the derivative of the energy in the weights, at what inference has left.

There is one gradient. With errors e and points of differentiation p (both from inference),

    dF/dθ_l = -π_l e_l · df_l(p_{l-1})/dθ_l  +  λ_l dρ_l/dg_l · dg_l(p_l)/dθ_l  -  β_l (z_{l-1} - b_l(z_l)) · db_l/dθ_l

so that no level's weights see another level's error, and backprop is the case where the errors are its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from cora.meaning import Count, Natural, Not, Only, Positive
from cora.pc import edge, wave
from cora.pc import energy as F
from cora.pc.energy import Energy, Trees, add, scale
from cora.pc.how import ruled
from cora.pc.infer import (
    Begin,
    Inference,
    Settled,
    Start,
    Trace,
    settle_and_learn,
    settling,
    standing_start,
    stands,
)
from cora.schema import check
from cora.types import Activities, Evidence, Key, State


@dataclass(frozen=True)
class Learning:
    """When the weights learn, and from how much of the target's error."""

    when: Literal["settled", "every", "sum"] = "settled"
    """Once the states have settled; at every `period`-th step while they do (iPC, hybrid); or from the sum of the
    gradients of all steps (the Tutorial)."""
    period: Annotated[Count, Only("when", "every")] = 1
    after: Annotated[Natural, Only("when", "every")] = 0
    """`every`: steps before the first of these updates."""
    nudge: Annotated[float, Not(0.0, 0.01)] = 1.0
    """β: the goal is moved to g - β (g - t), g the forward pass' readout, and the gradient divided by β; negative: a
    repulsive nudge. Squared errors only."""
    amplify: Positive = 1.0
    """State errors are multiplied by this; 1 / min(1, rate steps) undoes the smallness of a few error steps (ePC), so
    that a level's gradient is as large as the readout's."""

    def __post_init__(self) -> None:
        check("learning", self)


class Gradient(NamedTuple):
    """Slope of the energy, a mean over the batch: in the parameters, and in the input z_0 of every sample."""

    params: Trees
    input: State


Rule = tuple[Inference, Learning]


def gradient(
    energy: Energy, params: Trees, settled: Settled, evidence: Evidence, precision: F.Weights | Array | None = None,
    amplify: float = 1.0, stand: int = 0,
) -> Gradient:
    """Returns the mean over the batch of dF/dθ and its slope in z_0; `precision` (π) by default the energy's.

    `amplify` multiplies the part of the state errors. The lowest `stand` levels have no error: there it is zero, and
    not computed.
    """
    cut = partial(wave.cut, energy, stand=stand)
    batch = jax.tree.leaves(settled.inputs)[0].shape[1]
    weights = F.split(energy, energy.precision if precision is None else precision)
    upper, seen = wave.above(energy, evidence, settled.inputs, stand)
    inputs, errors = cut(settled.inputs), cut(settled.errors.state)

    def heads(trees: Trees, x: State) -> tuple[Activities, tuple[State, ...]]:
        return F.predict(upper, trees, F.below(inputs, x), seen.context), F.read(upper, trees, inputs, seen.context)

    _, pull = jax.vjp(heads, cut(params), seen.input)
    down = jax.tree.map(lambda e: -amplify * e / batch, scale(cut(weights), errors))
    up = jax.tree.map(lambda d: d / batch, cut(settled.errors.target))
    d_params, d_input = pull((down, up))
    if stand:
        return Gradient(wave.restore(energy, d_params, params, stand), jax.tree.map(jnp.zeros_like, evidence.input))
    if any(level.decode is not None for level in energy.hierarchy):
        def back(params: Trees, x: State) -> Array:
            return jnp.sum(F.reverse(energy, params, settled.z, evidence._replace(input=x))) / batch

        d_params, d_input = add((d_params, d_input), jax.grad(back, (0, 1))(params, evidence.input))
    return Gradient(d_params, d_input)


def nudged(energy: Energy, params: Trees, evidence: Evidence, beta: float) -> Evidence:
    """Returns the evidence with every goal t moved to g - β (g - t), g the readout of the forward pass."""
    if beta == 1.0:
        return evidence
    readouts = F.read(energy, params, F.forward(energy, params, evidence), evidence.context)
    goals = tuple(None if g is None else jax.tree.map(lambda g, t: g - beta * (g - t), g, t)
                  for g, t in zip(readouts, evidence.goals, strict=True))
    return evidence._replace(goals=goals)


def learn(
    energy: Energy, params: Trees, evidence: Evidence, rule: Rule, key: Key | None = None, start: Begin = "forward"
) -> tuple[Gradient, Settled, Trace]:
    """Returns the gradient that this rule gives the weights, what inference ended in, and how. `start` as in `settle`.

    Raises ValueError for rules that change the weights while states settle; `step` runs those.
    """
    inference, learning = paired(rule, energy)
    if learning.when == "every":
        raise ValueError("when = 'every': such a rule has no one gradient; call step, or choose 'settled'")
    edge.fit(energy, params, evidence, learns=True)
    evidence = nudged(energy, params, evidence, learning.nudge)
    if learning.when == "sum":
        found, settled, trace = summed(energy, params, evidence, rule, key, start)
    else:
        settled, trace = settling(energy, params, evidence, inference, key, start)
        last = precision_at(inference, jnp.asarray(inference.steps))
        stand = stands(energy, standing_start(inference, start), evidence)
        found = gradient(energy, params, settled, evidence, last, learning.amplify, stand)
    return jax.tree.map(lambda g: g / learning.nudge, found), settled, trace


def paired(rule: Any, energy: Energy) -> Rule:
    """Returns the rule, whole. Raises ValueError for anything else, and for one that ends before weights learn."""
    edge.measured(energy)
    if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[1], Learning)):
        near = f"preset({rule!r}, hierarchy)" if isinstance(rule, str) else "(rule, Learning())" if \
            isinstance(rule, Inference) else "preset('pc', hierarchy)"
        raise ValueError(f"rule: of type {type(rule).__name__}; expected (Inference, Learning); nearest: {near}")
    inference, learning = ruled(rule[0], energy), rule[1]
    if learning.when != "settled" and learning.after >= inference.steps:
        raise ValueError(f"learning.after = {learning.after}: no weight learns in inference.steps = {inference.steps}; "
                         + (f"nearest: {inference.steps - 1}" if inference.steps else "nearest: inference.steps = 1"))
    return inference, learning


def precision_at(inference: Inference, step: Array) -> Array | None:
    """Returns π at this step where the rule has a schedule, else None: the energy's own."""
    return None if inference.precision is None else inference.precision(step)


def summed(
    energy: Energy, params: Trees, evidence: Evidence, rule: Rule, key: Key | None, start: Begin
) -> tuple[Gradient, Settled, Trace]:
    """Returns the sum of the gradients at the states before each of the K steps, where inference ended, and how.

    Source: the Tutorial, whose `grad` is not cleared during inference (its energy lacks the 1/2: its sums are twice
    these).
    """

    def hook(learned: Any, here: Settled, step: Array) -> Any:
        found = gradient(energy, learned[0], here, evidence, precision_at(rule[0], step), rule[1].amplify)
        return learned[0], add(learned[1], found)

    zero = jax.tree.map(jnp.zeros_like, Gradient(params, evidence.input))
    (_, found), settled, trace = settle_and_learn(energy, (params, zero), evidence, rule[0], hook, key, start)
    return found, settled, trace


class Learner(NamedTuple):
    """What training carries from batch to batch."""

    params: Any
    """The hierarchy's, or with `share` what those are made of."""
    optimiser: optax.OptState
    states: Start | None = None
    """Where the last batch's value nodes ended, with `start="kept"`."""


def step(
    energy: Energy, learner: Learner, evidence: Evidence, rule: Rule, tx: optax.GradientTransformation,
    key: Key | None = None, *, start: Begin = "forward", share: Callable[[Any], Trees] | None = None,
) -> tuple[Learner, Trace]:
    """Returns the learner after one batch under any rule, and how inference went.

    `start` as in `settle`; `kept`: where the last batch's states (and their optimiser's moments) ended, at first the
    forward pass. With `share` the learner's parameters are any tree, of which it makes the hierarchy's: levels that
    share weights are given the same ones (or one the transpose of another's), and these get the sum of the gradients.

    Rules that learn while states settle update with the gradient of the very energy by which the states move, both
    at once (iPC, arXiv 2212.00720).
    """
    inference, learning = paired(rule, energy)
    if not isinstance(learner, Learner):
        raise ValueError(f"learner: of type {type(learner).__name__}; expected Learner; nearest: Learner(params, "
                         "tx.init(params))")
    edge.same("learner.optimiser", learner.optimiser, jax.eval_shape(tx.init, learner.params),
              "tx.init(learner.params), as it was made by another optimiser or for other weights")
    make = share or (lambda tree: tree)
    params, pull = jax.vjp(make, learner.params)
    first: Begin = start if start != "kept" else "forward" if learner.states is None else learner.states
    def kept(after: Learner, settled: Settled) -> Learner:
        return after._replace(states=settled.end if start == "kept" else learner.states)

    if learning.when != "every":
        found, settled, trace = learn(energy, params, evidence, rule, key, first)
        return kept(apply(learner, pull(found.params)[0], tx), settled), trace
    edge.fit(energy, params, evidence, learns=True)
    evidence = nudged(energy, params, evidence, learning.nudge)

    def hook(learned: Any, here: Settled, count: Array) -> Any:
        precision = precision_at(inference, count)
        found = gradient(energy, learned[0], here, evidence, precision, learning.amplify).params
        found = jax.tree.map(lambda g: g / learning.nudge, found)
        due = (count >= learning.after) & ((count - learning.after) % learning.period == 0)

        def update() -> Any:
            pull = jax.vjp(make, learned[1].params)[1]
            after = apply(learned[1], pull(found)[0], tx)
            return make(after.params), after

        return jax.lax.cond(due, update, lambda: learned)

    (_, after), settled, trace = settle_and_learn(
        energy, (params, learner._replace(states=None)), evidence, inference, hook, key, first)
    return kept(after, settled), trace


def apply(learner: Learner, found: Any, tx: optax.GradientTransformation) -> Learner:
    """Returns the learner moved by one step of its optimiser."""
    update, moments = tx.update(found, learner.optimiser, learner.params)
    return learner._replace(params=optax.apply_updates(learner.params, update), optimiser=moments)
