"""Laws of the gradient flow: the same equation integrated by scipy and by a plain loop, and where it comes to rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import compiled, near
from scipy.integrate import solve_ivp

from cora.nets import chain
from cora.pc import flow, infer, learn, theory
from cora.pc.energy import Energy
from cora.pc.infer import Inference
from cora.types import Evidence

SIZES, BATCH = (4, 3, 2), 5
NET = chain.mlp(SIZES, lambda x: x, bias=False)


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def draws():
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(3, 4)), rng.normal(size=(2, 3))
    return w, v, rng.normal(size=(BATCH, 4)), rng.normal(size=(BATCH, 2))


def problem():
    w, v, x, y = draws()
    params = ({"f": {"w": jnp.array(w)[None]}, "g": {"w": jnp.array(v)[None]}},)
    return Energy(NET.hierarchy), params, Evidence(jnp.array(x), (jnp.array(y)[None],))


def by_scipy(duration, pace=1.0):
    """z, F of the batch and |dF/dz| at that time: F = |z - W x|²/2 + |y - V z|²/2, summed over the samples."""
    w, v, x, y = draws()

    def slope(z):
        return (z - x @ w.T) - (y - z @ v.T) @ v

    end = solve_ivp(lambda t, z: -pace * slope(z.reshape(BATCH, 3)).ravel(), (0, duration), (x @ w.T).ravel(),
                    rtol=1e-11, atol=1e-11).y[:, -1].reshape(BATCH, 3)
    energy = (np.sum((end - x @ w.T) ** 2) + np.sum((y - end @ v.T) ** 2)) / 2
    return end, energy, np.linalg.norm(slope(end))


def settle(rule):
    energy, params, evidence = problem()
    return compiled(lambda p: infer.settle(energy, p, evidence, rule))(params)


@pytest.mark.parametrize("solver, time", [("Heun", "sample"), ("Tsit5", "batch"), ("Kvaerno3", "sample")])
def test_the_flow_is_the_equation_that_scipy_integrates(solver, time):
    """States, energies and slopes on the way: of each sample's F, or of the mean over the batch."""
    rule = Inference(variable="flow", duration=0.5, tolerance=1e-7, solver=solver, time=time, records=2)
    found, trace = settle(rule)
    assert trace.energy.shape == (3, 1) and trace.words == flow.ENDS[0]
    near(trace.time, jnp.array([0, 0.25, 0.5]))
    for row, duration in enumerate((1e-12, 0.25, 0.5)):
        z, energy, slope = by_scipy(duration, 1 / BATCH if time == "batch" else 1.0)
        np.testing.assert_allclose(trace.energy[row, 0], energy, rtol=1e-4)  # between steps it is interpolated
        np.testing.assert_allclose(trace.residual[row], slope, rtol=1e-3)
    np.testing.assert_allclose(found.z[0][0], z, atol=1e-5)


def test_fixed_steps_of_euler_are_descent():
    w, v, x, y = draws()
    z = x @ w.T
    for _ in range(4):
        z = z - 0.05 * ((z - x @ w.T) - (y - z @ v.T) @ v)
    found, _ = settle(Inference(variable="flow", duration=0.2, dt=0.05, solver="Euler"))
    np.testing.assert_allclose(found.z[0][0], z, atol=1e-12)


@pytest.mark.parametrize("dt", [0.0, 0.1])
def test_rest_is_the_closed_form_and_the_rows_after_it_repeat(dt):
    """With a clamped top, which the flow leaves where it is while all below comes to rest."""
    sizes = (4, 3, 3, 2)
    net = chain.mlp(sizes, lambda x: x, bias=False, clamped=True)
    params, keys = net.init(jax.random.key(0)), jax.random.split(jax.random.key(1))
    x, y = (jax.random.normal(key, (BATCH, n)) for key, n in zip(keys, (4, 2), strict=True))
    rule = Inference(variable="flow", duration=500.0, tolerance=1e-7, dt=dt, records=50)
    found, trace = compiled(lambda p: infer.settle(Energy(net.hierarchy), p, Evidence(x, top=y), rule))(params)
    weights = [part["f"]["w"][0] for part in params]
    near([part[0] for part in found.z], [*theory.equilibrium_states(weights, x, y), y], 1e-5)
    wanted = theory.equilibrium_energy(weights, x, y)
    near(jnp.sum(trace.energy[-1]) / BATCH, wanted, 1e-9)
    assert trace.words == flow.ENDS[1] and float(trace.time[-1]) < 400
    near(trace.energy[-2], trace.energy[-1], 0.0)
    assert bool(jnp.all(jnp.isfinite(trace.energy)))


def test_hybrid_flow_moves_under_decoders_alone():
    """The decoder's error falls to zero where it can; amortiser learns, at the forward pass, from where states went."""
    net = chain.mlp((2, 3), lambda x: x, bias=False, decode=True, clamped=True)
    params, x = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (BATCH, 2))
    energy, rule = Energy(net.hierarchy), Inference(variable="flow", forward_only=True, duration=100.0, tolerance=1e-9)
    found, settled, _ = compiled(lambda p: learn.learn(energy, p, Evidence(x), (rule, learn.Learning())))(params)
    w, v = np.array(params[0]["f"]["w"][0]), np.array(params[0]["f"]["v"][0])
    start = np.array(x) @ w.T
    rest = start + (np.array(x) - start @ v.T) @ np.linalg.pinv(v).T  # descent moves in the rows of v alone
    np.testing.assert_allclose(settled.z[0][0], rest, atol=1e-5)
    np.testing.assert_allclose(found.params[0]["f"]["w"][0], -(rest - start).T @ np.array(x) / BATCH, atol=1e-5)


def test_a_generative_net_flows_to_its_posterior_mean():
    """z ~ N(0, I), y = V z + noise of variance 1: the mean of z given y is (I + V'V)^-1 V'y."""
    net = chain.mlp((3, 2), lambda x: x, bias=False, prior="zero", clamped=True)
    params, y = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (BATCH, 2))
    rule = Inference(variable="flow", duration=100.0, tolerance=1e-8)
    evidence = Evidence(jnp.zeros((BATCH, 1)), top=y)
    found, _ = compiled(lambda p: infer.settle(Energy(net.hierarchy), p, evidence, rule))(params)
    v = np.array(params[1]["f"]["w"][0])
    np.testing.assert_allclose(found.z[0][0], np.linalg.solve(np.eye(3) + v.T @ v, v.T @ np.array(y).T).T, atol=1e-6)


def test_a_flow_that_cannot_go_on_says_why(monkeypatch):
    """In words, compiled or not, in place of an error out of a callback; a tolerance too fine is refused at once."""
    energy, params, evidence = problem()
    monkeypatch.setattr(flow, "LONGEST", 8)
    rule = Inference(variable="flow", tolerance=1e-9)
    with pytest.raises(ValueError, match=r"tolerance = 1e-09.*steps were taken"):
        infer.settle(energy, params, evidence, rule)
    _, trace = compiled(lambda p: infer.settle(energy, p, evidence, rule))(params)
    assert int(trace.ended) >= flow.FAILED and "larger tolerance" in trace.words
    text = compiled(lambda p: infer.settle(energy, p, evidence, rule)).lower(params).as_text()
    assert "callback" not in text
    single = jax.tree.map(lambda x: x.astype(jnp.float32), (params, evidence))
    with pytest.raises(ValueError, match=r"1e-09: float32 states resolve no less than 1e-06"):
        infer.settle(energy, *single, rule)
    with pytest.raises(ValueError, match=r"solver = 'Euler'.*dt must be set"):
        Inference(variable="flow", solver="Euler")
    with pytest.raises(ValueError, match=r"inference\.dt = 1e-05: makes more than"):
        Inference(variable="flow", dt=1e-5)
