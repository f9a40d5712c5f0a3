"""Numbers made by other people's code: tests/oracles says by whose."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import compiled, near

from cora.nets import chain
from cora.pc import energy as F
from cora.pc import infer, learn, presets, theory
from cora.pc.energy import Energy
from cora.pc.infer import Inference
from cora.types import Evidence

ORACLES = Path(__file__).parent / "oracles"
SETTLED = 1.45583127653058
"""JPC's tanh network at rest, a mean over its batch of 8."""


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def load(name, bias=True):
    """The arrays of a file, and its weights as the parameters of three levels and a readout."""
    with np.load(ORACLES / f"{name}.npz") as file:
        o = {key: jnp.asarray(file[key]) for key in file}
    layers = [{"w": o[f"w{i}"][None]} | ({"b": o[f"b{i}"][None]} if bias else {}) for i in range(4)]
    return o, ({"f": layers[0]}, {"f": layers[1]}, {"f": layers[2], "g": layers[3]})


@pytest.fixture(scope="module")
def torch2pc():
    o, params = load("torch2pc_mlp")
    net = chain.mlp((5, 7, 6, 4, 3), jnp.tanh, chain.cross_entropy, order="after")
    goal = jax.nn.one_hot(o["y"], 3, dtype=jnp.float64)
    # Torch2PC's loss is a mean over its batch of 8, its other terms are sums.
    return o, Energy(net.hierarchy, target=1 / 8), params, Evidence(o["x"], (None, None, goal[None]))


RULES = {
    "exact": ("exact",),
    "fixedpred_eta1_n4": ("fixed_pred", 4, 1.0),
    "fixedpred_eta0.1_n20": ("fixed_pred", 20, 0.1),
    "strict_eta0.1_n20": ("strict", 20, 0.1),
    "strict_eta0.1_n4": ("strict", 4, 0.1),
}


@pytest.mark.parametrize("name", RULES)
def test_torch2pc(torch2pc, name):
    """Weight and bias gradients, errors (of the opposite sign there) and, where kept, states."""
    o, energy, params, evidence = torch2pc
    rule = presets.preset(RULES[name][0], energy.hierarchy, *RULES[name][1:])
    found, settled, _ = compiled(lambda p: learn.learn(energy, p, evidence, rule))(params)
    layers = [found.params[0]["f"], found.params[1]["f"], found.params[2]["f"], found.params[2]["g"]]
    for i, layer in enumerate(layers):
        near(8 * layer["w"][0], o[f"{name}_gw{i}"])
        near(8 * layer["b"][0], o[f"{name}_gb{i}"])
    for i, error in enumerate(settled.errors.state):
        near(-error[0], o[f"{name}_eps{i + 1}"])
        if name != "exact":
            near(settled.z[i][0], o[f"{name}_v{i + 1}"])
    near(settled.errors.target[2][0], o[f"{name}_eps4"])


@pytest.fixture(scope="module")
def jpc():
    o, params = load("jpc_tanh_mlp")
    net = chain.mlp((5, 7, 7, 7, 3), jnp.tanh)
    return o, Energy(net.hierarchy), params, Evidence(o["x"], (None, None, o["y"][None]))


def states(o, name):
    return tuple(o[f"{name}{i}"][None] for i in range(3))


def test_jpc_energies(jpc):
    o, energy, params, evidence = jpc
    near(F.forward(energy, params, evidence), states(o, "forward"))
    total = compiled(lambda z: F.total(energy, params, z, evidence) / 8)
    near(total(states(o, "forward")), o["energy_forward"])
    near(total(states(o, "perturbed")), o["energy_perturbed"])
    near(total(states(o, "settled")), o["energy_settled"])
    assert abs(float(o["energy_settled"]) - SETTLED) < 1e-13


@pytest.mark.parametrize("rule", [
    Inference(steps=500, optimiser=optax.sgd(0.3)),
    Inference(variable="error", steps=500, optimiser=optax.sgd(0.2)),
    Inference(variable="flow", duration=200.0, tolerance=1e-8),
], ids=lambda rule: rule.variable)
def test_jpc_at_rest(jpc, rule):
    """States, errors and the gradient flow settle at the same point, and it is JPC's."""
    o, energy, params, evidence = jpc

    def run(params):
        settled, _ = infer.settle(energy, params, evidence, rule)
        return settled, F.total(energy, params, settled.z, evidence) / 8

    settled, total = compiled(run)(params)
    exact = rule.variable != "flow"  # a flow's end is as exact as its tolerance
    near(total, jnp.asarray(SETTLED), 1e-13 if exact else 1e-11)
    near(settled.z, states(o, "settled"), 1e-9 if exact else 1e-6)
    ff = F.predict(energy, params, F.below(settled.z, evidence.input), None)
    near(settled.errors.state, F.add(settled.z, ff, -1.0), 1e-12)


def test_jpc_linear_theory():
    """The closed form of the energy at rest, and the energy and states that inference comes to rest at."""
    o, params = load("jpc_linear_mlp", bias=False)
    weights = [o[f"w{i}"] for i in range(4)]
    assert abs(float(theory.equilibrium_energy(weights, o["x"], o["y"])) - 1.3085129301213678) < 1e-10
    near(theory.equilibrium_states(weights, o["x"], o["y"]), tuple(o[f"settled{i}"] for i in range(3)), 1e-9)
    net = chain.mlp((5, 7, 7, 7, 3), lambda x: x, bias=False)
    energy, evidence = Energy(net.hierarchy), Evidence(o["x"], (None, None, o["y"][None]))
    settled, trace = compiled(lambda p: infer.settle(
        energy, p, evidence, Inference(steps=500, optimiser=optax.sgd(0.3))))(params)
    near(jnp.sum(trace.energy[0]) / 8, o["energy_forward"])
    near(jnp.sum(trace.energy[-1]) / 8, o["energy_settled"])
    near(settled.z, states(o, "settled"), 1e-9)
