"""The gradient flow of the states, integrated by diffrax until they rest or time is up.

    dz_l/dt = -dF/dz_l           of every sample's own F: samples do not slow one another
    dz_l/dt = -dF/dz_l / B       with pace = 1/B: of the mean over the batch, JPC's time (its 20 is 20/B of the other)

Held values stay, as F puts them in their places first. States rest where |dz/dt|, a root mean square over all units of
the batch, is within the tolerance.
"""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cora.pc import energy as F
from cora.pc.energy import Energy, Trees
from cora.types import Activities, Evidence

LONGEST = 16**4
"""Steps, refused ones too, after which an integration is given up."""
ENDS = (
    "the time was up before the states came to rest",
    "the states came to rest",
    f"{LONGEST} steps were taken before the time was up; nearest: a larger tolerance, or a solver of higher order",
    "the step-size controller asked for no step at all; nearest: a larger tolerance",
    "the states are no longer finite, or an implicit step has no solution; nearest: a smaller step, or dt = 0.0",
)
"""How an integration ends, in words; from the third on it has failed."""
FAILED = 2


class Path(NamedTuple):
    """How a flow went: energy of each level, norm of dF/dz and time at each record and at the end; a place of ENDS."""

    energy: Float[Array, "K L"]
    residual: Float[Array, " K"]
    time: Float[Array, " K"]
    ended: Int[Array, ""]


def flow(
    energy: Energy, params: Trees, evidence: Evidence, z: Activities, *, duration: float, tolerance: float,
    solver: str, dt: float, pace: float, records: int,
) -> tuple[Activities, Path]:
    """Returns where dz/dt = -pace dF/dz leads from z within `duration`, and how it went.

    `dt` is the step, 0 one that holds the error of each step within `tolerance` (relative and absolute, a root mean
    square over the batch). The path has rows at `records` times from 0 on, evenly spaced, and one at the end; those
    that lie after it repeat it. Raises ValueError where the tolerance is finer than the states' floating point, and,
    outside compiled code, where the integration failed; compiled, `Path.ended` tells. Source: JPC, whose default
    integrator is Heun (its event tests the state instead of its change).
    """
    dtype = jnp.result_type(*jax.tree.leaves(z))
    least = 8 * float(jnp.finfo(dtype).eps)
    if tolerance < least:
        raise ValueError(f"tolerance = {tolerance}: {dtype} states resolve no less than {least:.1g}; nearest: "
                         f"{least:.1g}" + ("" if dtype == jnp.float64 else ", or jax_enable_x64"))

    def field(t: Any, z: Activities, args: Any) -> Activities:
        del t, args
        g = jax.grad(F.total, argnums=2)(energy, params, z, evidence)
        return jax.tree.map(lambda x: -pace * x, g)

    def row(t: Any, z: Activities, args: Any) -> tuple[Array, Array, Array]:
        parts = F.terms(energy, params, z, evidence)
        speed = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(field(t, z, args))))
        return jnp.sum(sum(parts[1:], parts[0]), axis=1), speed / pace, jnp.asarray(t, dtype)

    method = getattr(diffrax, solver)
    implicit = issubclass(method, diffrax.AbstractImplicitSolver)
    method = method(root_finder=diffrax.VeryChord(rtol=tolerance, atol=tolerance)) if implicit else method()
    controller: Any = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    end = diffrax.SubSaveAt(t1=True, fn=lambda t, z, args: (z, row(t, z, args)))
    times = jnp.arange(1, records, dtype=dtype) * (duration / max(records, 1))
    along = [diffrax.SubSaveAt(ts=times, fn=row)] if records > 1 else []  # whose order diffrax checks by a callback
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(field), method, t0=0.0, t1=duration, dt0=dt or None, y0=z,
        stepsize_controller=diffrax.ConstantStepSize() if dt else controller,
        event=diffrax.Event(diffrax.steady_state_event(tolerance, tolerance, controller.norm)),
        saveat=diffrax.SaveAt(subs=[end, *along]), max_steps=LONGEST, throw=False,
    )
    start, ((z, last), *rows) = z, found.ys
    z = jax.tree.map(lambda x: x[-1], z)
    if records:
        rows = [jax.tree.map(lambda x: x[None], row(0.0, start, None)), *rows]
    for some in reversed(rows):  # what was not reached is infinite
        there = some[2] <= last[2][-1]
        last = jax.tree.map(lambda x, after, there=there: jnp.concatenate(
            [jnp.where(there.reshape(-1, *(1,) * (x.ndim - 1)), x, after[-1:]), after]), some, last)
    path = Path(last[0], last[1], last[2], _ended(found.result))
    if not isinstance(path.ended, jax.core.Tracer) and int(path.ended) >= FAILED:
        raise ValueError(f"solver = {solver!r}, tolerance = {tolerance}, dt = {dt}: at time "
                         f"{float(path.time[-1]):.3g} of {duration:g} {ENDS[int(path.ended)]}")
    return z, path


def _ended(result: Any) -> Int[Array, ""]:
    """The place in ENDS of what diffrax reports."""
    known = (diffrax.RESULTS.successful, diffrax.RESULTS.event_occurred, diffrax.RESULTS.max_steps_reached,
             diffrax.RESULTS.dt_min_reached)
    return jnp.select([jnp.asarray(result == one) for one in known], list(range(len(known))), len(known))
