"""Inference: how value nodes settle, before weights are touched.

Every rule ends in the same thing: errors e_l, and the states at which the weights' derivatives are taken. A rule
chooses what moves (states or errors), where the network is linearised, how a step is made (any optax transformation, or
a gradient flow) and when to stop.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cora.pc import edge, wave
from cora.pc import energy as F
from cora.pc.energy import Energy, Trees, add, scale
from cora.pc.flow import ENDS, flow
from cora.pc.how import Begin as Begin
from cora.pc.how import Inference as Inference
from cora.pc.how import Start as Start
from cora.pc.how import begin, ruled
from cora.pc.slope import aimed, aims, arrived, closing, missed, shorten, slopes, unclamped, unmoved
from cora.types import Activities, Evidence, Key, State


class Errors(NamedTuple):
    """Prediction errors: of the states, e_l = z_l - f_l, and the slope of ρ_l in the readout, dρ_l/dg_l."""

    state: Activities
    target: tuple[State, ...]


class Settled(NamedTuple):
    """What inference hands to learning."""

    z: Activities
    inputs: Activities
    """The states at which the weights' derivatives are taken: z, or the forward pass."""
    errors: Errors
    moments: Any = None
    """The state of the inference's optimiser, if it has one."""

    @property
    def end(self) -> Start:
        """Where another settling can go on."""
        return Start(self.z, self.moments)


class Trace(NamedTuple):
    """What happened while states settled."""

    energy: Float[Array, "K L"]
    """Energy of each level before each step, all its terms, summed over the batch; a last row where the states end, if
    weights learn there."""
    residual: Float[Array, " K"]
    """Norm of the slope of F in the states (or errors), for the same rows."""
    time: Float[Array, " K"] | None = None
    """A flow's: when it was there."""
    ended: Int[Array, ""] | None = None
    """A flow's: how it ended, a place in `flow.ENDS`; from `flow.FAILED` on it has failed."""

    @property
    def words(self) -> str:
        """How a flow ended, in words; to be asked outside compiled code."""
        return "" if self.ended is None else ENDS[int(self.ended)]


Learned = tuple[Trees, Any]
"""Parameters, and whatever else changes with them while states settle (an optimiser's state, a sum of gradients)."""
Hook = Callable[[Learned, Settled, Int[Array, ""]], Learned]
"""(learned, where inference stands, step) -> learned: for what learns before states have settled (iPC, sums)."""


Stages = tuple[tuple[range, Callable], ...]
"""Which slope takes which steps."""


class Memory(NamedTuple):
    """What a descent on states carries besides them."""

    errors: Activities
    before: Activities
    """The states at which the errors were taken."""


def state_slope(
    energy: Energy, rule: Inference, evidence: Evidence, ff: Activities, stand: int = 0,
    first: Trees | None = None,
) -> Callable:
    """Returns (params, z, memory, step) -> (slope of F in z, memory, energy of each level).

    Nothing is computed in the lowest `stand` levels, which must still be at the forward pass `ff`. Where weights learn
    meanwhile, `first` are those of the forward pass; None: they are `params` at every step.
    """
    upper, seen = wave.above(energy, evidence, ff, stand)
    cut = partial(wave.cut, energy, stand=stand)
    start = cut(ff)

    def slope(params: Trees, z: Activities, memory: Memory, step: Array) -> tuple[Activities, Memory, Array]:
        point = F.clamp(ff, evidence) if rule.linearise == "forward" else z
        trees, x = cut(params), cut(point)
        mu, pull = jax.vjp(lambda x: F.predict(upper, trees, F.below(x, seen.input), seen.context), x)
        if rule.linearise == "forward":
            errors = add(cut(z), start, -1.0)
        else:
            errors = missed(x, mu, start, None if first is None else unmoved(trees, cut(first)))
        precision = energy.precision if rule.precision is None else rule.precision(step)
        precision = jnp.concatenate(F.split(energy, 0.0 if rule.forward_only else precision))[stand:]
        weighed = scale(F.split(upper, precision), errors)
        own, rows = aimed(upper, trees, x, seen)
        g = add(add(weighed, pull(weighed)[0], -1.0), own)
        if rule.shortcut[0]:
            g = shorten(weighed, g, *rule.shortcut)
        rows = rows + jnp.sum(F.squares(upper, errors, precision), axis=1)
        g, kept = (wave.restore(energy, part, ff, stand) for part in (unclamped(g, seen), errors))
        if rule.keep == "arrival":
            kept = add(memory.errors, scale(arrived(energy, step, evidence.top is not None), kept))
        return g, Memory(kept, point), jnp.pad(rows, (stand, 0))

    return slope


def stands(energy: Energy, rule: Inference, evidence: Evidence) -> int:
    """Returns of how many levels, from the lowest up, nothing has moved after the last step."""
    return wave.standing(energy, evidence, rule.reach, rule.steps) if rule.wave else 0


def staged(energy: Energy, rule: Inference, evidence: Evidence, ff: Activities) -> tuple[Stages, Callable]:
    """Returns the slopes in z of all steps, and that of where they end."""
    parts = wave.stages(energy, evidence, rule.reach, rule.steps) if rule.wave else ((range(rule.steps), 0),)
    at = partial(state_slope, energy, rule, evidence, ff)
    return tuple((steps, at(stand)) for steps, stand in parts), at(stands(energy, rule, evidence))


def error_slope(energy: Energy, rule: Inference, evidence: Evidence) -> Callable:
    """Returns (params, e, memory, step) -> (slope of F in the errors, memory, energy of each level)."""

    def rows(params: Trees, e: Activities, precision: F.Weights | Array) -> tuple[Array, Array]:
        z = F.forward(energy, params, evidence, e)
        own = add(e, closing(evidence, z))
        row = jnp.sum(F.squares(energy, own, precision), axis=1)
        row = row + jnp.sum(aims(energy, params, F.clamp(z, evidence), evidence), axis=1)
        return jnp.sum(row), row

    def slope(params: Trees, e: Activities, memory: Memory, step: Array) -> tuple[Activities, Memory, Array]:
        precision = energy.precision if rule.precision is None else rule.precision(step)
        g, row = jax.grad(rows, argnums=1, has_aux=True)(params, e, precision)
        g = unclamped(g, evidence)
        return g, memory, row

    return slope


def loop(
    stages: Stages, rule: Inference, learned: Learned, x: Activities, memory: Memory, key: Key | None = None,
    hook: Callable[[Learned, Activities, Activities, Int[Array, ""]], Learned] | None = None,
    pin: Callable[[Activities], Activities] = lambda x: x, moments: Any = None,
) -> tuple[Learned, Activities, Memory, Any, Trace]:
    """Runs the one loop in which anything settles: slope, hook, step of the optimiser, noise, pin, stop.

    Each stage's slope takes the steps of its range.
    """
    if rule.noise and key is None:
        raise ValueError(f"noise = {rule.noise}: a rule with noise needs a key")

    def body(slope: Callable, carry: tuple, step: Int[Array, ""]) -> tuple[tuple, tuple[Array, Array]]:
        learned, x, memory, moments, largest, going = carry
        g, memory, row = slope(learned[0], x, memory, step)
        if hook is not None:
            learned = hook(learned, x, memory.errors, step)
        size = optax.tree.norm(g)
        update, after = rule.optimiser.update(g, moments, x)
        if rule.noise and key is not None:
            update = add(update, optax.tree.random_like(jax.random.fold_in(key, step), x), rule.noise)
        moved = pin(add(x, update)), after
        if rule.stop:
            largest = jnp.maximum(largest, size)
            going = going & (size >= rule.stop * largest)
            moved = jax.tree.map(lambda new, old: jnp.where(going, new, old), moved, (x, moments))
        x, moments = moved
        return (learned, x, memory, moments, largest, going), (row, size)

    moments = rule.optimiser.init(x) if moments is None else moments
    start: tuple = (learned, x, memory, moments, jnp.zeros(()), jnp.array(True))
    traces = []
    for steps, slope in stages:
        start, trace = jax.lax.scan(partial(body, slope), start, jnp.arange(steps.start, steps.stop))
        traces.append(Trace(*trace))
    learned, x, memory, moments, *_ = start
    return learned, x, memory, moments, jax.tree.map(lambda *rows: jnp.concatenate(rows), *traces)


def settle(
    energy: Energy, params: Trees, evidence: Evidence, rule: Inference, key: Key | None = None, start: Begin = "forward"
) -> tuple[Settled, Trace]:
    """Returns the states, errors and points of differentiation in which this rule ends.

    States start at the forward pass, at zero, `normal` with a deviation of .05, or where a `Start` says, such as the
    `end` of what was settled before: K steps and K more from there are 2K steps. `key` is needed where the rule adds
    noise or the states start at random.
    """
    edge.fit(energy, params, evidence)
    return settling(energy, params, evidence, ruled(rule, energy), key, start)


def settling(
    energy: Energy, params: Trees, evidence: Evidence, rule: Inference, key: Key | None = None, start: Begin = "forward"
) -> tuple[Settled, Trace]:
    """Returns what `settle` returns, of evidence that was looked at before (`edge.fit`)."""
    ff = F.forward(energy, params, evidence)
    z, moments = begin(rule, evidence, ff, start, key)
    rule = standing_start(rule, start)
    zero = jax.tree.map(jnp.zeros_like, ff)
    memory, trace = Memory(zero, z), Trace(jnp.zeros((0, energy.depth)), jnp.zeros(0))
    if rule.variable == "error":
        stages: Stages = ((range(rule.steps), error_slope(energy, rule, evidence)),)
        first = zero if start == "forward" else unclamped(missing(energy, params, z, evidence), evidence)
        _, e, _, moments, trace = loop(stages, rule, (params, None), first, memory, key,
                                       pin=lambda e: unclamped(e, evidence), moments=moments)
        z = ff if rule.frozen else F.forward(energy, params, evidence, e)
        errors, z = add(e, closing(evidence, z)), F.clamp(z, evidence)
        seen = z
    elif rule.variable == "state":
        stages, slope = staged(energy, rule, evidence, ff)
        _, z, memory, moments, trace = loop(stages, rule, (params, None), z, memory, key,
                                            pin=lambda z: F.clamp(z, evidence), moments=moments)
        errors, seen = memory.errors, memory.before
        if rule.forward_only or (rule.linearise == "forward" and rule.keep == "last"):
            errors = add(z, ff, -1.0)
        elif rule.keep == "last":
            g, (errors, seen), row = slope(params, z, memory, jnp.asarray(rule.steps))
            last = Trace(row[None], optax.tree.norm(g)[None])  # what nobody asks for is not compiled
            trace = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), trace, last)
    elif rule.variable == "flow":
        moving = replace(energy, precision=0.0) if rule.forward_only else energy
        batch = jax.tree.leaves(z)[0].shape[1]
        z, path = flow(
            moving, params, evidence, z, duration=rule.duration, tolerance=rule.tolerance, solver=rule.solver,
            dt=rule.dt, pace=1 / batch if rule.time == "batch" else 1.0, records=rule.records)
        seen, trace = z, Trace(*path)
        errors = add(z, ff, -1.0) if rule.forward_only else missing(energy, params, z, evidence)
    else:
        errors, seen = closing(evidence, ff), z
    inputs = F.clamp(ff, evidence) if rule.frozen else z
    target = slopes(energy, params, inputs if rule.frozen else seen, evidence)
    return Settled(z, inputs, Errors(errors, target), moments), trace


def missing(energy: Energy, params: Trees, z: Activities, evidence: Evidence) -> Activities:
    """Returns z_l - f_l(z_{l-1})."""
    return add(z, F.predict(energy, params, F.below(z, evidence.input), evidence.context), -1.0)


def standing_start(rule: Inference, start: Begin) -> Inference:
    """Returns the rule without its wave where states do not start at the forward pass, and so none stand there."""
    return rule if start == "forward" else replace(rule, wave=False)


def predict(
    energy: Energy, params: Trees, evidence: Evidence, rule: Inference | None = None, key: Key | None = None,
    start: Begin = "forward",
) -> State:
    """Returns what the highest level reads out, [B, ...], or its value node where it reads nothing out: of the forward
    pass, or of states that settle by `rule` under what else is known."""
    edge.fit(energy, params, evidence, asked=False)
    if rule is None:
        z = F.clamp(F.forward(energy, params, evidence), evidence)
    else:
        z = settling(energy, params, evidence, ruled(rule, energy), key, start)[0].z
    guess = F.read(energy, params, z, evidence.context)[-1]
    return jax.tree.map(lambda x: x[-1], z[-1] if guess is None else guess)


def settle_and_learn(
    energy: Energy, learned: Learned, evidence: Evidence, rule: Inference, hook: Hook, key: Key | None = None,
    start: Begin = "forward", *, moving: bool = True,
) -> tuple[Learned, Settled, Trace]:
    """Returns what `hook` made of the weights while the states descended, where inference ended, and how it went.

    Where it leaves them alone, say `moving=False`: they are not compared with those of the forward pass then. Raises
    ValueError for rules that do not descend on states at the current point.
    """
    if rule.variable != "state" or rule.frozen or rule.keep != "last":
        raise ValueError(f"variable = {rule.variable!r}, linearise = {rule.linearise!r}, keep = {rule.keep!r}: weights "
                         "can learn while states settle only where states move at the current point, from the errors "
                         "there; nearest: 'state', 'current', 'last'")

    def at(learned: Learned, z: Activities, errors: Activities, step: Int[Array, ""]) -> Learned:
        here = Settled(z, z, Errors(errors, slopes(energy, learned[0], z, evidence)))
        return hook(learned, here, step)

    ff = F.forward(energy, learned[0], evidence)
    zero, (z, moments) = jax.tree.map(jnp.zeros_like, ff), begin(rule, evidence, ff, start, key)
    stages = ((range(rule.steps), state_slope(energy, rule, evidence, ff, first=learned[0] if moving else None)),)
    learned, z, _, moments, trace = loop(stages, rule, learned, z, Memory(zero, z), key, at,
                                         lambda z: F.clamp(z, evidence), moments)
    errors = Errors(missing(energy, learned[0], z, evidence), slopes(energy, learned[0], z, evidence))
    return learned, Settled(z, z, errors, moments), trace
