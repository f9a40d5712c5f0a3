"""Learning: the derivative of the energy in the weights, at what inference has left.

There is one gradient. With errors e and points of differentiation p (both from inference),

    dF/dθ_l = -π_l e_l · df_l(p_{l-1})/dθ_l  +  λ_l dρ_l/dg_l · dg_l(p_l)/dθ_l  -  β_l (z_{l-1} - b_l(z_l)) · db_l/dθ_l

so that no level's weights see another level's error, and backprop is the case where the errors are its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from cora.pc.slope import arrived, slopes
from cora.schema import check
from cora.types import Activities, Evidence, Key, State


@dataclass(frozen=True)
class Learning:
    """When the weights learn, and from how much of the target's error."""

    when: Literal["settled", "every", "sum", "turns"] = "settled"
    """Once the states have settled; at every `period`-th step while they do (iPC, hybrid); from the sum of the
    gradients of all steps (the Tutorial); or each layer in its turn, when the output's error arrives there, and all of
    them once the states have settled (PCX's sixth tutorial)."""
    period: Annotated[Count, Only("when", "every")] = 1
    after: Annotated[Natural, Only("when", "every")] = 0
    """`every`: steps before the first of these updates."""
    nudge: Annotated[float, Not(0.0, 0.01)] = 1.0
    """β: a goal t is moved to t + (1 - β) dρ/dg, so that the slope of ρ at the forward pass is β times what it was, and
    the gradient is divided by β; negative: a repulsive nudge. Of squared errors that is g - β (g - t), g the forward
    pass' readout (PCX' benchmark), of cross-entropy the same of softmax(g); a clamped top is moved as g is. Other
    losses are refused."""
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
    """Returns the evidence with every goal t moved to t + (1 - β) dρ/dg, of the forward pass, and a clamped top y to
    z + β (y - z)."""
    if beta == 1.0:
        return evidence
    z = F.forward(energy, params, evidence)
    top = evidence.top
    if top is not None:
        top = jax.tree.map(lambda z, y: z[-1] + beta * (y - z[-1]), z[-1], top)
    if not evidence.goals:
        return evidence._replace(top=top)
    edge.nudges(energy, F.read(energy, params, z, evidence.context), evidence.goals, beta)
    pulls = slopes(replace(energy, target=1.0), params, z, evidence)
    goals = tuple(None if t is None else add(t, s, 1 - beta) for t, s in zip(evidence.goals, pulls, strict=True))
    return evidence._replace(goals=goals, top=top)


def learn(
    energy: Energy, params: Trees, evidence: Evidence, rule: Rule, key: Key | None = None, start: Begin = "forward"
) -> tuple[Gradient, Settled, Trace]:
    """Returns the gradient that this rule gives the weights, what inference ended in, and how. `start` as in `settle`.

    Raises ValueError for rules that change the weights while states settle; `step` runs those.
    """
    inference, learning = paired(rule, energy)
    if learning.when in ("every", "turns"):
        raise ValueError(f"when = {learning.when!r}: such a rule has no one gradient; call step, or choose 'settled'")
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
    if learning.when == "turns" and (inference.steps <= energy.depth or any(lev.decode for lev in energy.hierarchy)):
        raise ValueError(f"learning.when = 'turns': {energy.depth + 1} layers without decoders take turns in "
                         f"inference.steps = {inference.steps}; nearest: preset('zil_pc', hierarchy)")
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
    (_, found), settled, trace = settle_and_learn(
        energy, (params, zero), evidence, rule[0], hook, key, start, moving=False)
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

    Rules that learn while states settle (`every`) update with the gradient of the very energy by which the states
    move, both at once (iPC, arXiv 2212.00720).
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

    if learning.when in ("settled", "sum"):
        found, settled, trace = learn(energy, params, evidence, rule, key, first)
        return kept(apply(learner, pull(found.params)[0], tx), settled), trace
    edge.fit(energy, params, evidence, learns=True)
    evidence = nudged(energy, params, evidence, learning.nudge)
    if learning.when == "turns":
        if share is not None:
            raise ValueError("share: levels that share weights cannot learn in turns; nearest: None")
        after, settled, trace = in_turn(energy, learner._replace(states=None), evidence, rule, tx, key, first)
        return kept(after, settled), trace

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


def in_turn(
    energy: Energy, learner: Learner, evidence: Evidence, rule: Rule, tx: optax.GradientTransformation, key: Key | None,
    first: Begin,
) -> tuple[Learner, Settled, Trace]:
    """Returns the learner after every layer's own step, taken when the output's error arrived there, and one of all at
    the settled states; where inference ended, and how.

    The readout's turn is step 0, the highest level's step 1, the next one's step 2. All turns together are one step of
    the optimiser, each level's from the weights and moments of before: an optimiser of its own for every layer, as the
    tutorial has it, wherever one number's step depends on that number's slopes alone (SGD, Adam; no norm of all).
    Source: PCX's examples/6_zil.ipynb, "Hybrid training".
    """
    inference, learning = rule
    clamped = evidence.top is not None
    turns = energy.depth + (not clamped)

    def slope(params: Trees, here: Settled, step: Array) -> Trees:
        found = gradient(energy, params, here, evidence, precision_at(inference, step), learning.amplify).params
        return jax.tree.map(lambda g: g / learning.nudge, found)

    def hook(learned: Any, here: Settled, step: Array) -> Any:
        def turn() -> Any:
            due = scale(arrived(energy, step, clamped), here.errors.state)
            output = jax.tree.map(lambda e: jnp.where(step == 0, e, 0), here.errors.target)
            now = here._replace(errors=here.errors._replace(state=due, target=output))
            slopes = add(learned[1][0], slope(learned[0], now, step))
            update, moments = tx.update(slopes, learner.optimiser, learner.params)
            after = jax.tree.map(
                lambda old, new, g: jnp.where((step == turns - 1) | _rows(g), new, old),
                learner.params, optax.apply_updates(learner.params, update), slopes)
            return after, (slopes, moments)

        return jax.lax.cond(step < turns, turn, lambda: learned)

    begun = learner.params, (jax.tree.map(jnp.zeros_like, learner.params), learner.optimiser)
    (params, (_, moments)), settled, trace = settle_and_learn(energy, begun, evidence, inference, hook, key, first)
    last = slope(params, settled, jnp.asarray(inference.steps))
    return apply(Learner(params, moments), last, tx), settled, trace


def _rows(slope: Array) -> Array:
    """Of which levels a leaf has a slope: [repeat, 1, ...]."""
    return jnp.any(slope != 0, axis=tuple(range(1, slope.ndim)), keepdims=True)


def apply(learner: Learner, found: Any, tx: optax.GradientTransformation) -> Learner:
    """Returns the learner moved by one step of its optimiser."""
    update, moments = tx.update(found, learner.optimiser, learner.params)
    return learner._replace(params=optax.apply_updates(learner.params, update), optimiser=moments)
