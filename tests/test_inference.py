"""Laws of settling: what moves, how far and where to, each against a formula or a descent written out by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from laws import RATE, STEPS, compiled, flat, hand, layers, learner, near, network, settled

from cora.nets import chain, vit
from cora.pc import energy as F
from cora.pc import infer, learn, presets
from cora.pc.energy import Energy
from cora.pc.infer import Errors, Inference, Memory, Settled
from cora.pc.learn import Learning
from cora.types import Evidence, Level

PC = Inference(steps=STEPS, optimiser=optax.sgd(RATE))


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def identity_chain(depth):
    """Levels z_l = z_{l-1} and a readout of the last: scalar, linear, of weight 1."""
    net = chain.mlp((1,) * (depth + 2), lambda x: x, bias=False)
    return net.hierarchy, jax.tree.map(jnp.ones_like, net.init(jax.random.key(0)))


@pytest.mark.parametrize("where", ["current", "forward"])
def test_wavefront_on_an_identity_chain(where):
    """The output's error spreads one level a step and is exactly zero beyond.

    While states move freely errors diffuse, e(t) = (1 - ηΛ)^t e(0), Λ the Laplacian of the path of all errors. With
    predictions held at the forward pass, i levels below the output stands P(Binomial(t, η) >= i) times its error.
    """
    depth, steps, x, y = 5, 3, 0.3, 2.0
    hierarchy, params = identity_chain(depth)
    evidence = Evidence(jnp.full((1, 1), x), (None, None, jnp.full((1, 1, 1), y)))
    rule = replace(PC, steps=steps, linearise=where)
    found, _ = compiled(lambda p: infer.settle(Energy(hierarchy), p, evidence, rule))(params)
    errors = np.append(np.concatenate([part.ravel() for part in found.errors.state]), -found.errors.target[-1].ravel())
    laplace = 2 * np.eye(depth + 1) - np.eye(depth + 1, k=1) - np.eye(depth + 1, k=-1)
    laplace[0, 0] = laplace[-1, -1] = 1
    wanted = np.linalg.matrix_power(np.eye(depth + 1) - RATE * laplace, steps)[:, -1]
    if where == "forward":
        rises = np.eye(depth + 1) * (1 - RATE) + np.eye(depth + 1, k=1) * RATE
        rises[-1, -1] = 1  # the output's error stays
        wanted = np.linalg.matrix_power(rises, steps)[:, -1]
        t, eta = steps, RATE
        tail = [1, 1 - (1 - eta) ** t, 1 - (1 - eta) ** t - t * eta * (1 - eta) ** (t - 1), eta**3, 0, 0]
        np.testing.assert_allclose(wanted[::-1], tail, atol=1e-15)
    np.testing.assert_allclose(errors, (y - x) * wanted, atol=1e-14)
    np.testing.assert_allclose(errors[-1 - steps], (y - x) * RATE**steps, rtol=1e-12)
    assert np.all(errors[: depth - steps] == 0)


@pytest.mark.parametrize("sizes", [(8, *(16,) * 12, 4), (8, 9, 10, 11)], ids=["repeated", "one by one"])
def test_the_forward_pass_has_zero_energy_bit_for_bit(sizes):
    """In float32 a scanned and a parallel level round differently; no rule may take that for a signal."""
    with jax.enable_x64(False):
        net = chain.mlp(sizes, jnp.tanh, clamped=True)
        energy, evidence = Energy(net.hierarchy), Evidence(jax.random.normal(jax.random.key(1), (4, 8)))
        params = net.init(jax.random.key(0))

        def run(params):
            return infer.settle(energy, params, evidence, replace(PC, steps=3))

        found, trace = jax.jit(run)(params)
        assert found.z[0].dtype == jnp.float32
        assert float(jnp.max(trace.energy)) == 0 and float(jnp.max(trace.residual)) == 0
        near(found.errors.state, jax.tree.map(jnp.zeros_like, found.z), 0.0)


def test_errors_and_states_are_one_energy():
    """E(e) = F(z(e)) at random errors; the map is unit lower triangular, so that its determinant is 1."""
    hierarchy, params, evidence = network()
    energy = Energy(hierarchy, precision=(0.5, 1.0, 2.0, 3.0), target=0.7)
    keys = iter(jax.random.split(jax.random.key(5), 9))
    errors = jax.tree.map(lambda z: jax.random.normal(next(keys), z.shape), settled()[1].z)
    one = Evidence(evidence.input[:1], (None, None, evidence.goals[2][:, :1]))
    point, unravel = ravel_pytree(jax.tree.map(lambda e: e[:, :1], errors))

    @compiled
    def run(errors, point):
        z = F.forward(energy, params, evidence, errors)
        gap = F.add(z, F.predict(energy, params, F.below(z, evidence.input), None), -1.0)
        jacobian = jax.jacfwd(lambda e: ravel_pytree(F.forward(energy, params, one, unravel(e)))[0])(point)
        guess = jax.nn.tanh(z[-1][0]) @ params[-1]["g"]["w"][0].T + params[-1]["g"]["b"]
        return F.total(energy, params, z, evidence), gap, guess, jacobian

    total, gap, guess, jacobian = run(errors, point)
    near(gap, errors)
    own = sum(p / 2 * float(jnp.sum(e**2)) for p, e in zip(energy.precision, flat(errors), strict=True))
    assert abs(float(total) - own - 0.35 * float(jnp.sum((guess - evidence.goals[2][0]) ** 2))) < 1e-10
    assert abs(np.linalg.det(jacobian) - 1) < 1e-12
    assert np.all(np.triu(jacobian, 1) == 0) and np.all(np.diag(jacobian) == 1)
    assert np.abs(np.tril(jacobian, -1)).max() > 0.1


def test_every_step_is_the_one_by_hand():
    _, params, evidence = network()
    _, found, trace = settled()
    (z, _, energies), (last, *_) = hand(params, evidence)
    near(flat(found.z), last)
    near(trace.energy[:STEPS], energies)
    assert float(jnp.max(jnp.abs(last[0] - z[0][-1]))) > 1e-5
    assert np.all(np.diff(np.sum(trace.energy, axis=1)) < 0)


def test_settling_stops_where_the_slope_is_small():
    hierarchy, params, evidence = network()
    residual = settled()[2].residual
    threshold = 1.001 * float(residual[4] / jnp.max(residual))
    assert np.all(residual[:4] > threshold * jnp.max(residual))
    found, trace = compiled(lambda p: infer.settle(Energy(hierarchy), p, evidence, replace(PC, stop=threshold)))(params)
    near(flat(found.z), tuple(z[4] for z in hand(params, evidence)[0][0]))
    near(trace.residual[:5], residual[:5])
    near(trace.residual[5:], jnp.broadcast_to(residual[4:5], (STEPS - 4,)))


def test_a_schedule_weighs_each_step():
    """π_l of step t stands in every term of that step, and π of step K in the weights' gradient."""
    hierarchy, params, evidence = network()
    schedule = 0.5 + jax.random.uniform(jax.random.key(2), (STEPS + 1, 4))
    rule = replace(PC, precision=lambda step: schedule[step]), Learning()
    gradient, found, trace = learner(Energy(hierarchy, target=0.7), rule)(params, evidence)
    (_, _, energies), (z, _, wanted) = hand(params, evidence, pi=schedule, lam=0.7)
    near(flat(found.z), z)
    near(trace.energy[:STEPS], energies, 1e-11)
    near(layers(gradient.params), wanted)


def test_a_clamped_top_is_a_readout_with_a_squared_error():
    """The same network with a value node held at the goal: the same states at each step and, by error descent, rest."""
    hierarchy, params, evidence = network()
    *lower, top = params
    held = Energy((*hierarchy[:-1], Level(hierarchy[-1].encode), Level(lambda t, x, c: hierarchy[-1].readout(t, x, c))))
    whole = (*lower, {"f": top["f"]}, {"g": top["g"]})
    clamped = Evidence(evidence.input, top=evidence.goals[2][0])
    # The states' slowest mode takes ten times the steps of the errors', whose curvature is at least 1.
    runs = [PC, replace(PC, steps=3000), Inference(variable="error", steps=400, optimiser=optax.sgd(0.05))]
    found = [compiled(lambda p, rule=rule: infer.settle(held, p, clamped, rule))(whole) for rule in runs]
    (z, _), (rest, path), (same, other) = found
    near(flat(z.z)[:-1], flat(settled()[1].z))
    near(z.z[-1][0], clamped.top, 0.0)
    near(z.errors.state[-1], -settled()[1].errors.target[-1])
    near(jnp.sum(path.energy[-1]), jnp.sum(other.energy[-1]), 1e-6)
    near(rest.z, same.z, 1e-3)
    near(rest.errors.state, same.errors.state, 1e-3)


def test_langevin_steps_sample_the_posterior():
    """One Gaussian unit between two others: precision H = 1 + w²; a step of finite length widens it by 1/(1 - ηH/2)."""
    net = chain.mlp((1, 1, 1), lambda x: x, bias=False)
    params = ({"f": {"w": jnp.full((1, 1, 1), 0.8)}, "g": {"w": jnp.full((1, 1, 1), 1.2)}},)
    evidence = Evidence(jnp.ones((20000, 1)), (jnp.full((1, 20000, 1), 0.5),))
    rule, _ = presets.preset("mcpc", net.hierarchy, 60, 0.1)
    found, _ = compiled(lambda p, k: infer.settle(Energy(net.hierarchy), p, evidence, rule, k))(
        params, jax.random.key(3))
    h = 1 + 1.2**2
    assert abs(float(jnp.mean(found.z[0])) - (0.8 + 1.2 * 0.5) / h) < 0.02
    assert abs(float(jnp.var(found.z[0])) * h * (1 - 0.1 * h / 2) - 1) < 0.05
    with pytest.raises(ValueError, match="key"):
        infer.settle(Energy(net.hierarchy), params, evidence, rule)


def attention(theta, x, context):
    """Self-attention of two heads with a residual path."""
    q, k, v = ((x @ theta[name].T).reshape(*x.shape[:2], 2, -1) for name in "qkv")
    return x + vit.attend(q, k, v).reshape(x.shape)


def test_slopes_agree_with_finite_differences():
    """In states, weights and input: attention, repeated levels, readouts, decoders and every weight of a term."""
    hierarchy = (
        Level(lambda t, x, c: x @ t["w"].T),
        Level(attention, lambda t, z, c: jnp.tanh(z) @ t["r"].T, chain.squared,
              lambda t, z, c: jnp.tanh(z) @ t["d"].T, repeat=2),
    )
    energy = Energy(hierarchy, (0.5, 1.5, 2.0), (1.0, 0.7, 0.3), (1.0, 0.4, 0.6))
    keys = iter(jax.random.split(jax.random.key(4), 30))
    draw = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    params = ({"w": draw(1, 4, 2)}, {name: draw(2, 4, 4) for name in "qkvrd"})
    z, memory = (draw(1, 2, 3, 4), draw(2, 2, 3, 4)), (jnp.zeros((1, 2, 3, 4)), jnp.zeros((2, 2, 3, 4)))
    x, goals = draw(2, 3, 2), (None, draw(2, 2, 3, 4))

    @compiled
    def slopes(params, z, x):
        evidence = Evidence(x, goals)
        errors = F.add(z, F.predict(energy, params, F.below(z, x), None), -1.0)
        here = Settled(z, z, Errors(errors, infer.slopes(energy, params, z, evidence)))
        slope = infer.state_slope(energy, PC, evidence, jax.tree.map(lambda z: z + 1, z))  # far from any forward pass
        d_z = slope(params, z, Memory(memory, z), jnp.asarray(1))[0]
        found = learn.gradient(energy, params, here, evidence)
        return jax.tree.map(lambda g: 2 * g, found.params), d_z, 2 * found.input  # sums over the batch of 2

    total = compiled(lambda params, z, x: F.total(energy, params, z, Evidence(x, goals)))
    point = params, z, x
    for slot, slope in enumerate(slopes(*point)):
        way = jax.tree.map(lambda g: draw(*g.shape), slope)
        ends = [total(*(*point[:slot], F.add(point[slot], way, h), *point[slot + 1:])) for h in (1e-5, -1e-5)]
        wanted = sum(float(jnp.vdot(g, w)) for g, w in zip(jax.tree.leaves(slope), jax.tree.leaves(way), strict=True))
        assert abs(float(ends[0] - ends[1]) / 2e-5 - wanted) < 1e-7 * max(1.0, abs(wanted)), slot


def test_a_shortcut_adds_the_error_so_many_levels_above():
    e, g = jnp.arange(12.0).reshape(4, 1, 3), jnp.ones((4, 1, 3))
    (found,) = infer.shorten((e,), (g,), 2, 0.5)
    near(found, jnp.concatenate([g[:2] - 0.5 * e[2:], g[2:]]))
    near(infer.shorten((e[:2],), (g[:2],), 2, 0.5), (g[:2],), 0.0)


def test_what_has_not_moved_has_no_error_however_predictions_round():
    """Sample by sample: an error counts only where the level's state or the one below has left the forward pass."""
    ff = (jnp.ones((2, 3, 4)), jnp.ones((1, 3, 4)))
    mu = jax.tree.map(lambda x: x + 1e-7, ff)  # the same prediction, compiled apart
    z = (ff[0].at[1, 2].add(0.5), ff[1])
    found = infer.missed(z, mu, ff)
    moved = [jnp.zeros((2, 3), bool).at[1, 2].set(True), jnp.zeros((1, 3), bool).at[0, 2].set(True)]
    for e, x, m, there in zip(found, z, mu, moved, strict=True):
        near(e, jnp.where(there[..., None], x - m, 0.0), 0.0)
    assert float(found[1][0, 2, 0]) != 0
