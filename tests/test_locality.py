"""Locality: no level's weights see another level's error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import compiled, network, settled

from cora.pc import energy as F
from cora.pc import learn
from cora.pc.energy import Energy

OWNER = (0, 1, 1, 2)
"""Which stack holds each level's weights; levels 1 and 2 are rows 0 and 1 of the middle one."""
ROW = (0, 0, 1, 0)


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def of_level(tree, level, axis=0):
    """Returns a level's share of a stacked tree as one array."""
    leaves = jax.tree.leaves(tree[OWNER[level]])
    return jnp.concatenate([jnp.take(x, ROW[level], axis=axis).reshape(*x.shape[:axis], -1) for x in leaves], axis=-1)


def test_an_energy_depends_on_its_own_weights_alone():
    """The Jacobian of the levels' energies in the parameters is block diagonal at settled states."""
    hierarchy, params, evidence = network()
    energy, z = Energy(hierarchy), settled()[1].z

    @compiled
    def jacobian(params):
        return jax.jacobian(lambda p: jnp.sum(sum(F.terms(energy, p, z, evidence)), axis=1))(params)

    found = jacobian(params)
    for level in range(4):
        block = np.abs(of_level(found, level, axis=1)).max(axis=1)
        assert block[level] > 1e-3 and np.all(np.delete(block, level) == 0), level


def test_a_gradient_sees_its_own_error_alone():
    """Changing one level's error changes that level's gradient, and of the others not a bit."""
    hierarchy, params, evidence = network()
    found = settled()[1]
    gradient = compiled(lambda errors: learn.gradient(
        Energy(hierarchy), params, found._replace(errors=errors), evidence).params)
    before = gradient(found.errors)
    for level in range(4):
        stacks = list(found.errors.state)
        stacks[OWNER[level]] = stacks[OWNER[level]].at[ROW[level]].add(1.0)
        after = gradient(found.errors._replace(state=tuple(stacks)))
        for other in range(4):
            moved = float(jnp.max(jnp.abs(of_level(after, other) - of_level(before, other))))
            assert moved > 1e-3 if other == level else moved == 0, (level, other)
