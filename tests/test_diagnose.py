"""Laws of the diagnoses of settling and learning (health's are in test_targets)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from laws import compiled, near, network, settled

from cora.pc import diagnose
from cora.pc import energy as F
from cora.pc.energy import Energy
from cora.types import Evidence


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_gradients_are_compared_level_by_level():
    a = ({"w": jnp.array([[3.0]]), "b": jnp.array([[4.0]])}, {"w": jnp.array([[[1.0, 0.0]], [[1.0, 1.0]]])},
         {"w": jnp.zeros((1, 2))})
    b = ({"w": jnp.array([[6.0]]), "b": jnp.array([[8.0]])}, {"w": jnp.array([[[0.0, 2.0]], [[-1.0, -1.0]]])},
         {"w": jnp.ones((1, 2))})
    near(diagnose.cosine(a, b), jnp.array([1.0, 0.0, -1.0, 0.0]))
    near(diagnose.norm_ratio(a, b), jnp.array([0.5, 0.5, 1.0, 0.0]))


def test_norms_are_a_mean_over_the_batch():
    """Rows (3, 4) and (0, 0): a norm of 5 in half of the batch."""
    errors = (jnp.array([[[3.0, 4.0], [0.0, 0.0]]]), jnp.stack([jnp.zeros((2, 1)), jnp.ones((2, 1))]))
    near(diagnose.norms(errors), jnp.array([12.5**0.5, 0.0, 1.0]))


def test_wavefront():
    at = lambda *sizes: (jnp.zeros((1, 2, 3)), jnp.broadcast_to(  # noqa: E731
        jnp.array(sizes)[:, None, None], (len(sizes), 2, 3)))
    assert int(diagnose.wavefront(at(0.0, 0.0, 0.0))) == -1
    assert int(diagnose.wavefront(at(0.0, 0.0, 1.0))) == 0
    assert int(diagnose.wavefront(at(0.0, -1e-200, 1.0))) == 1
    assert int(diagnose.wavefront(at(1e-300, 0.0, 1.0))) == 2
    assert int(diagnose.wavefront(at(1e-3, 0.1, 1.0), 0.01)) == 1
    assert int(diagnose.wavefront(at(1e-3, 0.1, 1.0), 1e-4)) == 2
    assert int(diagnose.wavefront(at(0.0, 0.0, 0.0), 0.01)) == -1


def test_energy_slope_and_curvature_of_a_network():
    """The levels' energies and the slope are the trace's; the curvature is plain jax.hessian of one sample's F."""
    hierarchy, params, evidence = network()
    energy, (_, found, trace) = Energy(hierarchy), settled()
    one = Evidence(evidence.input[3:4], (None, None, evidence.goals[2][:, 3:4]))
    point, unravel = ravel_pytree(jax.tree.map(lambda x: x[:, 3:4], found.z))

    @compiled
    def run(z, point):
        return (diagnose.level_energy(energy, params, z, evidence), diagnose.residual(energy, params, z, evidence),
                diagnose.activity_hessian(energy, params, z, evidence),
                jax.hessian(lambda v: F.total(energy, params, unravel(v), one))(point))

    energies, slope, curvature, wanted = run(found.z, point)
    near(8 * energies, trace.energy[-1])
    near(slope, trace.residual[-1])
    near(curvature[3], wanted)
    values = np.linalg.svd(np.asarray(wanted), compute_uv=False)
    np.testing.assert_allclose(diagnose.condition(curvature)[3], values.max() / values.min(), rtol=1e-9)


def test_condition_takes_magnitudes():
    near(diagnose.condition(jnp.stack([jnp.diag(jnp.array([-4.0, 2.0])), jnp.eye(2)])), jnp.array([2.0, 1.0]))


@pytest.mark.parametrize(("rank", "rows", "width"), [(1, 64, 1024), (1, 512, 256), (5, 128, 1024), (5, 300, 64)])
def test_rank_in_float32_is_that_of_singular_values_in_float64(rank, rows, width):
    rng = np.random.default_rng(rank)
    x = (rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, width)) + 3).astype(np.float32)
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    share = np.linalg.svd(centred, compute_uv=False)
    share = share[share > 0] / share.sum()
    wanted = np.exp(-np.sum(share * np.log(share)))
    np.testing.assert_allclose(jax.jit(diagnose.effective_rank)(jnp.asarray(x)), wanted, atol=2e-3)
