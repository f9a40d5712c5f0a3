"""Laws of the linear theory, and of the general machinery on the linear networks it describes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import compiled, flat, near

from cora.nets import chain
from cora.pc import diagnose, infer, learn, theory
from cora.pc import energy as F
from cora.pc.energy import Energy
from cora.pc.infer import Errors, Settled
from cora.types import Evidence

SIZES = (4, 5, 5, 5, 3)


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("residual, precision", [(False, 1.0), (True, (0.5, 2.0, 1.5, 0.3))], ids=["plain", "residual"])
def test_rest_is_where_the_theory_says(residual, precision):
    """z* has no slope and the energy F*; H is the second derivative; dF*/dθ is what learning at z* gives."""
    net = chain.mlp(SIZES, lambda x: x, residual=residual, bias=False, clamped=True)
    energy, keys = Energy(net.hierarchy, precision), jax.random.split(jax.random.key(1), 3)
    x, y = jax.random.normal(keys[0], (6, 4)), jax.random.normal(keys[1], (6, 3))
    params, evidence = net.init(keys[2]), Evidence(x, top=y)

    @compiled
    def run(params):
        weights = flat([part["f"]["w"] for part in params])
        z1, z2, z3 = theory.equilibrium_states(weights, x, y, precision, residual)
        z = (z1[None], jnp.stack([z2, z3]), y[None])
        errors = F.add(z, F.predict(energy, params, F.below(z, x), None), -1.0)
        here = Settled(z, z, Errors(errors, infer.slopes(energy, params, z, evidence)))
        return {
            "energy": (theory.equilibrium_energy(weights, x, y, precision, residual),
                       F.total(energy, params, z, evidence) / 6),
            "slope": (diagnose.residual(energy, params, z, evidence), jnp.zeros(())),
            "hessian": (jnp.broadcast_to(theory.activity_hessian(weights, precision, residual)[None], (6, 15, 15)),
                        diagnose.activity_hessian(energy, params, z, evidence)),
            "gradient": (theory.energy_gradient(weights, x, y, precision, residual),
                         flat([part["f"]["w"] for part in learn.gradient(energy, params, here, evidence).params])),
        }

    for name, (ours, wanted) in run(params).items():
        assert name == "slope" or max(float(jnp.max(jnp.abs(v))) for v in jax.tree.leaves(wanted)) > 1e-2
        near(ours, wanted, 1e-10)


def test_scalar_chains_by_hand():
    """S = 1/π_3 + w_3²/π_2 + (w_3 w_2)²/π_1; with a residual hidden layer w_2 + 1 stands for w_2."""
    weights, precision = [jnp.full((1, 1), w) for w in (0.7, -0.4, 1.3)], (2.0, 0.5, 4.0)
    for residual, w2 in ((False, -0.4), (True, 0.6)):
        s = 1 / 4 + 1.3**2 / 0.5 + (1.3 * w2) ** 2 / 2
        assert abs(float(theory.rescaling(weights, precision, residual)[0, 0]) - s) < 1e-14
        x, y = jnp.array([[1.0], [2.0]]), jnp.array([[0.5], [-1.0]])
        r = np.array(y - 1.3 * w2 * 0.7 * x)
        energy = float(theory.equilibrium_energy(weights, x, y, precision, residual))
        assert abs(energy - (r**2).mean() / 2 / s) < 1e-14


def test_a_wrong_number_of_precisions_is_refused():
    with pytest.raises(ValueError, match="2 entries"):
        theory.rescaling([jnp.ones((1, 1))] * 3, (1.0, 1.0))
