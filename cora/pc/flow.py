"""The gradient flow of the states, integrated to rest by diffrax."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from cora.pc import energy as F
from cora.pc.energy import Energy, Trees
from cora.types import Activities, Evidence


def flow(
    energy: Energy, params: Trees, evidence: Evidence, z: Activities, duration: float, tolerance: float
) -> Activities:
    """Returns the rest point of dz/dt = -dF/dz by adaptive Heun, until |dz/dt| is within tolerance or time is up.

    The event tests the derivative, not the state. Source: JPC, whose integrator this is (its event tests the state).
    """

    def field(t: Any, z: Activities, args: Any) -> Activities:
        del t, args
        g = jax.grad(F.total, argnums=2)(energy, params, z, evidence)
        return jax.tree.map(jnp.negative, g)

    rest = diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Heun(), t0=0.0, t1=duration, dt0=None, y0=z,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        event=diffrax.Event(diffrax.steady_state_event(rtol=tolerance, atol=tolerance)),
        max_steps=16**4,
    )

    def end(x: Array) -> Array:
        return x[-1]

    return jax.tree.map(end, rest.ys)
