"""Inference: how value nodes settle, before weights are touched.

Every rule ends in the same thing: errors e_l, and the states at which the weights' derivatives are taken. A rule
chooses what moves (states or errors), where the network is linearised, how a step is made (any optax transformation, or
a gradient flow) and when to stop.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cora.meaning import Natural, Only, Positive, Weight
from cora.pc import energy as F
from cora.pc import wave
from cora.pc.energy import Energy, Trees, add, scale
from cora.pc.flow import ENDS, LONGEST, flow
from cora.pc.slope import aimed, aims, arrived, closing, missed, shorten, slopes, unclamped, unmoved
from cora.schema import check, require
from cora.types import Activities, Evidence, Key, State

PLAIN = optax.sgd(0.1)
DESCENT, STATES, FLOW = Only("variable", "state", "error"), Only("variable", "state"), Only("variable", "flow")


Solver = Literal["Euler", "Heun", "Midpoint", "Ralston", "Bosh3", "Tsit5", "Dopri5", "Dopri8",
                 "ImplicitEuler", "Kvaerno3", "Kvaerno4", "Kvaerno5"]


@dataclass(frozen=True)
class Inference:
    """How value nodes settle; the default is a plain gradient descent on the states."""

    variable: Literal["none", "state", "error", "flow"] = "state"
    """`none`: the forward pass. `state`: descent on z. `error`: descent on e with z = f(z) + e (ePC). `flow`: the
    gradient flow of z, integrated to rest."""
    steps: Annotated[Natural, DESCENT] = 20
    optimiser: Annotated[optax.GradientTransformation, DESCENT] = PLAIN
    linearise: Annotated[Literal["current", "forward"], DESCENT] = "current"
    """Where f_l and its Jacobian are taken while states move; `forward` also takes the weights' derivatives there."""
    noise: Annotated[Weight, DESCENT] = 0.0
    """Standard deviation of the noise added to a step; sqrt(2 rate) samples the posterior (MCPC)."""
    precision: Annotated[Callable[[Int[Array, ""]], Float[Array, " L"]] | None, DESCENT] = None
    """π_l by step, in place of the energy's."""
    stop: Annotated[Weight, DESCENT] = 0.0
    """Stop when the slope's norm has fallen below this fraction of its largest so far; 0 goes on to the last step."""
    keep: Annotated[Literal["last", "stale", "arrival"], STATES, Only("forward_only", False)] = "last"
    """Which errors learning gets: those of the settled states; those from before the last step (Torch2PC); or
    each as it was when the output's error first arrived there (Z-IL)."""
    shortcut: Annotated[tuple[Natural, float], STATES, Only("forward_only", False)] = (0, 0.0)
    """(distance d, gain γ): a state also moves by γ times the error d levels above it, where their shapes agree: an
    extra error path in the manner of rec-LRA (arXiv 2002.03911). It follows no energy."""
    forward_only: Annotated[bool, Only("variable", "state", "flow")] = False
    """Leave f_l out of the settling: it only starts the states, and learns from where they went (hybrid PC)."""
    wave: bool = False
    """Leave out levels while no error has reached them (wave.py). Same numbers, fewer products; only for an optimiser
    that leaves alone what has no slope, as plain and accelerated descents do and decay does not."""
    duration: Annotated[Positive, FLOW] = 20.0
    """`flow`: the longest time to integrate."""
    tolerance: Annotated[Positive, FLOW] = 1e-3
    """`flow`: relative and absolute tolerance of the step-size controller and of the rest condition."""
    solver: Annotated[Solver, FLOW] = "Heun"
    """`flow`: diffrax' solver of this name. Beware: the implicit ones (ImplicitEuler, Kvaerno) solve for the states of
    a whole batch at once, by a dense matrix with a row for every unit of every sample."""
    dt: Annotated[Weight, FLOW] = 0.0
    """`flow`: a fixed step; 0: as long as the tolerance allows."""
    time: Annotated[Literal["sample", "batch"], FLOW] = "sample"
    """`flow`: dz/dt = -dF/dz of each sample's own F, or of the mean over the batch, whose time runs B times slower
    (JPC's)."""
    records: Annotated[Natural, FLOW] = 1
    """`flow`: rows of the trace besides the last, evenly spaced over the duration from 0 on; after rest they repeat."""

    def __post_init__(self) -> None:
        check("inference", self)
        require(self.variable != "error" or self.linearise == "current" or self.steps == 1, "inference.steps",
                self.steps, "errors leave the forward pass (linearise = 'forward') after one step; nearest: 1")
        require(not self.wave or (self.variable == "state" and not self.noise), "inference.wave", self.wave,
                f"with variable = {self.variable!r}, noise = {self.noise}: errors come level by level only where "
                "states descend without noise; nearest: False")
        require(self.solver != "Euler" or self.dt > 0, "inference.solver", self.solver,
                "knows no error of its steps, so that dt must be set; nearest: 'Heun'")
        require(self.dt * LONGEST >= self.duration or not self.dt, "inference.dt", self.dt,
                f"makes more than {LONGEST} steps of duration = {self.duration}; nearest: {self.duration / LONGEST}")
        require(bool(self.shortcut[0]) == bool(self.shortcut[1]), "inference.shortcut", self.shortcut,
                "a distance or a gain of 0 leaves the other unread; nearest: (0, 0.0)")

    @property
    def reach(self) -> int:
        """By how many levels errors come down in a step."""
        return max(1, self.shortcut[0])

    @property
    def frozen(self) -> bool:
        """Whether f_l's weights learn at the states of the forward pass."""
        return self.linearise == "forward" or self.keep == "arrival" or self.forward_only


class Errors(NamedTuple):
    """Prediction errors: of the states, e_l = z_l - f_l, and the slope of ρ_l in the readout, dρ_l/dg_l."""

    state: Activities
    target: tuple[State, ...]


class Start(NamedTuple):
    """Where states begin, where that is not the forward pass: those of another settling, or any of one's own."""

    z: Activities
    moments: Any = None
    """What the inference's optimiser remembers; None: nothing yet."""


Begin = Start | str
BEGINNINGS = ("forward", "normal", "zeros")
NORMAL = 0.05
"""Standard deviation of states that start `normal`, JPC's; for others give a `Start` of one's own draws."""


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
            kept = add(memory.errors, scale(arrived(energy, step), kept))
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


def begin(rule: Inference, evidence: Evidence, ff: Activities, start: Begin, key: Key | None) -> Start:
    """Returns where states begin, with what is held at its value; `ff` is the forward pass.

    Raises ValueError for a start that the rule cannot use, or of other shapes than this batch's.
    """
    if isinstance(start, str) and start not in BEGINNINGS:
        near = get_close_matches(start, BEGINNINGS, 1, 0.0)[0]
        raise ValueError(f"start = {start!r}: must be one of {', '.join(BEGINNINGS)}, or a Start; nearest: {near!r}")
    if start == "forward":
        return Start(F.clamp(ff, evidence))
    if rule.variable == "none" or rule.keep == "arrival" or (rule.variable == "error" and rule.frozen):
        raise ValueError(f"start = {start if isinstance(start, str) else 'Start(...)'!r}: variable = {rule.variable!r} "
                         f"with keep = {rule.keep!r}, linearise = {rule.linearise!r} goes from the forward pass alone; "
                         "nearest: 'forward'")
    moments = None
    if isinstance(start, Start):
        here, there = ([x.shape for x in jax.tree.leaves(z)] for z in (ff, start.z))
        if here != there:
            raise ValueError(f"start: value nodes of shapes {there}; this net and batch have {here}")
        z, moments = start
    elif start == "zeros":
        z = jax.tree.map(jnp.zeros_like, ff)
    else:
        if key is None:
            raise ValueError("start = 'normal': needs a key")
        z = jax.tree.map(lambda x: NORMAL * x, optax.tree.random_like(jax.random.fold_in(key, 2**31), ff))
    return Start(F.clamp(z, evidence), moments)


def settle(
    energy: Energy, params: Trees, evidence: Evidence, rule: Inference, key: Key | None = None, start: Begin = "forward"
) -> tuple[Settled, Trace]:
    """Returns the states, errors and points of differentiation in which this rule ends.

    States start at the forward pass, at zero, `normal` with a deviation of .05, or where a `Start` says, such as the
    `end` of what was settled before: K steps and K more from there are 2K steps. `key` is needed where the rule adds
    noise or the states start at random.
    """
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
    if rule is None:
        z = F.clamp(F.forward(energy, params, evidence), evidence)
    else:
        z = settle(energy, params, evidence, rule, key, start)[0].z
    guess = F.read(energy, params, z, evidence.context)[-1]
    return jax.tree.map(lambda x: x[-1], z[-1] if guess is None else guess)


def settle_and_learn(
    energy: Energy, learned: Learned, evidence: Evidence, rule: Inference, hook: Hook, key: Key | None = None,
    start: Begin = "forward",
) -> tuple[Learned, Settled, Trace]:
    """Returns what `hook` made of the weights while the states descended, where inference ended, and how it went.

    Raises ValueError for rules that do not descend on states at the current point.
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
    stages = ((range(rule.steps), state_slope(energy, rule, evidence, ff, first=learned[0])),)
    learned, z, _, moments, trace = loop(stages, rule, learned, z, Memory(zero, z), key, at,
                                         lambda z: F.clamp(z, evidence), moments)
    errors = Errors(missing(energy, learned[0], z, evidence), slopes(energy, learned[0], z, evidence))
    return learned, Settled(z, z, errors, moments), trace
