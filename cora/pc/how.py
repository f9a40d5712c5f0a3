"""How value nodes settle: what a rule of inference chooses, and where states begin."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cora.meaning import Natural, Only, Positive, Weight
from cora.pc import edge
from cora.pc import energy as F
from cora.pc.energy import Energy
from cora.pc.flow import LONGEST
from cora.schema import check, require
from cora.types import Activities, Evidence, Key

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


class Start(NamedTuple):
    """Where states begin, where that is not the forward pass: those of another settling, or any of one's own."""

    z: Activities
    moments: Any = None
    """What the inference's optimiser remembers; None: nothing yet."""


Begin = Start | str
BEGINNINGS = ("forward", "normal", "zeros")
NORMAL = 0.05
"""Standard deviation of states that start `normal`, JPC's; for others give a `Start` of one's own draws."""


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


def ruled(rule: Any, energy: Energy) -> Inference:
    """Returns the rule of inference. Raises ValueError for what is none, or ends before errors are everywhere."""
    edge.measured(energy)
    if not isinstance(rule, Inference):
        near = "rule[0]" if isinstance(rule, tuple) else "Inference()"
        near = f"preset({rule!r}, hierarchy)[0]" if isinstance(rule, str) else near
        raise ValueError(f"rule: of type {type(rule).__name__}; expected Inference; nearest: {near}")
    if rule.forward_only and all(level.decode is None for level in energy.hierarchy):
        raise ValueError("inference.forward_only = True: no level of this hierarchy decodes, under which alone states "
                         "would move; nearest: False")
    if rule.keep == "arrival" and rule.steps <= energy.depth:
        raise ValueError(f"inference.steps = {rule.steps}: with keep = 'arrival' the output's error comes to the "
                         f"lowest of {energy.depth} levels in step {energy.depth + 1}; nearest: {energy.depth + 1}")
    return rule
