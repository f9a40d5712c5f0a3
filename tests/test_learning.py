"""Laws of learning: what each rule's gradient equals, exactly or in a limit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from laws import RATE, STEPS, backprop, climb, compiled, energies, flat, hand, layers, learner, near, network, settled

from cora.nets import chain
from cora.pc import energy as F
from cora.pc import infer, learn, presets
from cora.pc.diagnose import cosine
from cora.pc.energy import Energy
from cora.pc.infer import Inference
from cora.pc.learn import Learner, Learning
from cora.types import Evidence

PC = Inference(steps=STEPS, optimiser=optax.sgd(RATE))


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def truth():
    """Backprop's gradient of the composed network, layer by layer."""
    _, params, evidence = network()
    return backprop(layers(params), evidence.input, evidence.goals[-1][0])


def run(name, *pace):
    hierarchy, params, evidence = network()
    return learner(Energy(hierarchy), presets.preset(name, hierarchy, *pace))(params, evidence)


@pytest.mark.parametrize("name, pace, tolerance", [
    ("exact", (), 1e-12), ("zil", (), 1e-12), ("fixed_pred", (5, 1.0), 1e-12), ("fixed_pred", (400, 0.1), 1e-9),
])
def test_equal_to_backprop(truth, name, pace, tolerance):
    """`fixed_pred` at rate 1 needs as many steps as layers: four levels and the readout."""
    near(layers(run(name, *pace)[0].params), truth, tolerance)


def test_fixed_predictions_reach_one_layer_a_step(truth):
    found = layers(run("fixed_pred", 2, 1.0)[0].params)
    near(found[:3], jax.tree.map(jnp.zeros_like, found[:3]), 0.0)
    near(found[3:], truth[3:])


def test_a_small_step_on_the_errors_is_backprop_to_first_order(truth):
    """Halving the rate halves what one error step differs by; the readout sees the output's error as it is."""
    hierarchy, params, evidence = network()

    @compiled
    def gap(rate):
        rule = Inference(variable="error", steps=1, optimiser=optax.sgd(rate)), Learning()
        found = layers(learn.learn(Energy(hierarchy), params, evidence, rule)[0].params)
        off = [jax.tree.map(lambda g, t: g / rate - t, g, t) for g, t in zip(found[:-1], truth[:-1], strict=True)]
        return optax.tree.norm(off), optax.tree.norm(F.add(found[-1], truth[-1], -1.0))

    coarse, fine = (np.array(gap(rate)) for rate in (2e-4, 1e-4))
    np.testing.assert_allclose(fine[0] / coarse[0], 0.5, rtol=2e-3)
    np.testing.assert_allclose(fine[1] / coarse[1], 0.5, rtol=1e-2)
    assert 0 < fine[0] < 0.05


def test_weights_learn_at_the_last_states():
    """... and not at those before the last step."""
    _, params, evidence = network()
    (_, before, _), (_, _, last) = hand(params, evidence)
    found = layers(settled()[0].params)
    near(found, last)
    assert float(jnp.max(jnp.abs(found[0][0] - before[0][0][-1]))) > 1e-5


def test_accumulate_sums_the_gradients_of_all_steps():
    _, params, evidence = network()
    (_, before, _), _ = hand(params, evidence)
    near(layers(run("accumulate", STEPS, RATE)[0].params), jax.tree.map(lambda g: jnp.sum(g, axis=0), before))


def test_weights_that_stay_are_not_compared(monkeypatch):
    """A sum of gradients leaves the weights alone, so that nothing asks at each step whether they are the same."""
    def refuse(*weights):
        raise AssertionError("compared")

    monkeypatch.setattr(infer, "unmoved", refuse)
    hierarchy, params, evidence = network()
    sums, both = (presets.preset(name, hierarchy, 2) for name in ("accumulate", "ipc"))
    jax.eval_shape(lambda p: learn.learn(Energy(hierarchy), p, evidence, sums)[0], params)
    tx = optax.sgd(0.1)
    with pytest.raises(AssertionError, match="compared"):
        learn.step(Energy(hierarchy), Learner(params, tx.init(params)), evidence, both, tx)


@pytest.mark.parametrize("name, due", [("ipc", [1, 1, 1, 1, 1, 1]), ("hybrid", [0, 0, 0, 1, 1, 1])])
def test_weights_that_move_while_states_settle(name, due):
    """Both move at once from the same energy; with a weight step of zero what is left is plain settling."""
    hierarchy, params, evidence = network()
    energy, rule = Energy(hierarchy), presets.preset(name, hierarchy, STEPS, RATE)

    @compiled
    def run(params, alpha):
        tx = optax.sgd(alpha)
        return learn.step(energy, Learner(params, tx.init(params)), evidence, rule, tx)

    with pytest.raises(ValueError, match="step"):
        learn.learn(energy, params, evidence, rule)
    still, trace = run(params, jnp.asarray(0.0))
    near(still.params, params, 0.0)
    near(trace.energy, settled()[2].energy[:STEPS])
    moved, trace = run(params, jnp.asarray(0.05))
    (_, _, energies), (_, after, _) = hand(params, evidence, due=jnp.array(due), alpha=0.05)
    near(layers(moved.params), after)
    near(trace.energy, energies)


TWIN = {"sgd": lambda: optax.sgd(0.05), "adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
        "decay": lambda: optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.05))}


@pytest.mark.parametrize("optimiser", TWIN)
@pytest.mark.parametrize(("period", "after"), [(1, 0), (2, 3)])
def test_weights_and_states_go_down_one_energy_together(optimiser, period, after):
    """Against a loop over plain arrays that takes both slopes of F at once, by any optimiser of the weights: decay
    moves weights that no error has reached, and the states above then have one."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sizes = (3, *rng.integers(2, 6, rng.integers(2, 5)), 2)
        x, y = (jnp.asarray(rng.normal(size=(6, width))) for width in (sizes[0], sizes[-1]))
        net = chain.mlp(tuple(map(int, sizes)), jnp.tanh)
        params = jax.tree.map(lambda leaf, rng=rng: jnp.asarray(0.7 * rng.normal(size=leaf.shape)),
                              jax.eval_shape(net.init, jax.random.key(0)))
        rule = Inference(steps=7, optimiser=optax.sgd(RATE)), Learning(when="every", period=period, after=after)
        tx, goals = TWIN[optimiser](), (*(None,) * (len(net.hierarchy) - 1), y[None])
        found, _ = learn.step(Energy(net.hierarchy), Learner(params, tx.init(params)), Evidence(x, goals), rule, tx)

        weights, ones = layers(params), jnp.ones(len(sizes) - 2)

        def total(weights, z, x=x, y=y, ones=ones):
            return jnp.sum(energies(weights, z, x, y, ones, 1.0))

        z, tx = climb(weights, x)[0], TWIN[optimiser]()
        moments, slopes = tx.init(weights), jax.jit(jax.grad(total, (0, 1)))
        for count in range(7):
            d_weights, d_z = slopes(weights, z)
            if count >= after and (count - after) % period == 0:
                update, moments = tx.update(jax.tree.map(lambda g: g / 6, d_weights), moments, weights)
                weights = optax.apply_updates(weights, update)
            z = jax.tree.map(lambda own, slope: own - RATE * slope, z, d_z)
        near(layers(found.params), weights, 1e-7)  # Adam divides by slopes that may be nearly zero


def test_nudging():
    """The goal is moved to g - β (g - t) and the gradient divided by β.

    That alone does not tend to backprop: errors at rest are S⁻¹ (g - t) however small β; a light output does.
    """
    hierarchy, params, evidence = network()
    goal = evidence.goals[-1][0]
    w, b = layers(params)[-1]
    guess = jnp.tanh(F.forward(Energy(hierarchy), params, evidence)[-1][0]) @ w.T + b[None]
    near(layers(run("nudged", STEPS, RATE)[0].params), jax.tree.map(lambda g: 10 * g, hand(
        params, evidence._replace(goals=(None, None, (guess - 0.1 * (guess - goal))[None])))[1][2]))


def test_a_light_output_is_backprop(truth):
    """λ → 0: gradients divided by λ; the slowest mode of the states needs thousands of steps to come to rest."""
    hierarchy, params, evidence = network()
    rule = replace(PC, steps=3000), Learning()
    gaps = []
    for weight in (1e-3, 1e-5):
        found = learner(Energy(hierarchy, target=weight), rule)(params, evidence)[0].params
        gaps.append(max(float(jnp.max(jnp.abs(g[0] / weight - t[0])))
                        for g, t in zip(layers(found), truth, strict=True)))
    assert gaps[1] < 1e-3 and gaps[1] < gaps[0] / 50
    # truth, stacked as one level a layer, is what cosines are taken against
    stack = lambda tree: tuple(jax.tree.map(lambda x: x[None], layer) for layer in tree)  # noqa: E731
    assert float(jnp.min(cosine(stack(layers(found)), stack(truth)))) > 1 - 1e-6


def test_repeated_levels_are_levels_one_by_one():
    """All levels of a kind at once give what each would alone."""
    hierarchy, params, evidence = network()
    first, middle, top = hierarchy
    single = middle._replace(repeat=1)
    apart = (params[0], *(jax.tree.map(lambda x, i=i: x[i : i + 1], params[1]) for i in (0, 1)), params[2])
    found, inferred, trace = learner(Energy((first, single, single, top)), (PC, Learning()))(
        apart, evidence._replace(goals=(None, None, None, evidence.goals[-1])))
    gradient, states, same = settled()
    near(layers(found.params), layers(gradient.params))
    near(flat(inferred.z), flat(states.z))
    near(trace, same)
    near(found.input, gradient.input)


def part(evidence, rows):
    return Evidence(evidence.input[rows], (None, None, evidence.goals[-1][:, rows]))


def test_the_batch_may_change_from_step_to_step():
    """Samples settle each on their own: a batch's gradient is the mean of its parts', whatever their sizes."""
    hierarchy, params, evidence = network()
    rule = learner(Energy(hierarchy), (PC, Learning()))
    five, three = (rule(params, part(evidence, rows))[0] for rows in (slice(5), slice(5, 8)))
    near(jax.tree.map(lambda a, b: (5 * a + 3 * b) / 8, five.params, three.params), settled()[0].params)


def test_two_devices_are_one():
    hierarchy, params, evidence = network()
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    split = Evidence(jax.device_put(evidence.input, rows), (None, None, jax.device_put(
        evidence.goals[-1], NamedSharding(mesh, PartitionSpec(None, "batch")))))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    found, inferred, _ = learner(Energy(hierarchy), (PC, Learning()))(params, split)
    assert len(inferred.z[0].sharding.device_set) == 2
    one = jax.tree.map(np.asarray, (found, inferred.z))
    near(one, jax.tree.map(np.asarray, (settled()[0], settled()[1].z)))


@pytest.mark.parametrize("name, up", [("bpc", 0.7), ("hpc", 0.0)])
def test_levels_that_also_decode(name, up):
    """bpc descends on both directions' errors; hpc on the decoders' and the target's alone, and its amortiser f
    learns from where the states went, at the states it had started them in."""
    net = chain.mlp((3, 4, 5, 2), jnp.tanh, decode=True, order="after")
    keys = iter(jax.random.split(jax.random.key(7), 30))
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(next(keys), p.shape), net.init(next(keys)))
    x, y = jax.random.normal(next(keys), (6, 3)), jax.random.normal(next(keys), (6, 2))
    (f1, f2), g = (jax.tree.map(lambda p: p[0], level["f"]) for level in params), params[1]["g"]
    energy, beta, lam = Energy(net.hierarchy, 0.7, 0.8, 0.6), 0.6, 0.8
    evidence = Evidence(x, (None, y[None]))

    def ups(fs, x, z):
        return [jnp.tanh(low @ f["w"].T + f["b"][None]) for f, low in zip(fs, (x, z[0]), strict=True)]

    def total(fs, g, z, weight):
        rise = sum(jnp.sum((own - f) ** 2) for own, f in zip(z, ups(fs, x, z), strict=True))
        fall = sum(jnp.sum((low - jnp.tanh(own) @ f["v"].T) ** 2) for low, own, f in zip((x, z[0]), z, fs, strict=True))
        guess = z[1] @ g["w"][0].T + g["b"]
        return weight / 2 * rise + beta / 2 * fall + lam / 2 * jnp.sum((y - guess) ** 2)

    @compiled
    def by_hand(fs, g):
        z = [jnp.tanh(x @ fs[0]["w"].T + fs[0]["b"][None])]
        z.append(jnp.tanh(z[0] @ fs[1]["w"].T + fs[1]["b"][None]))
        start = z
        for _ in range(4):
            z = jax.tree.map(lambda a, s: a - RATE * s, z, jax.grad(total, 2)(fs, g, z, up))
        d_fs, d_g = jax.grad(total, (0, 1))(fs, g, z, 0.7)
        if up == 0:  # f learns at the forward states, V at the settled ones
            amortised = jax.grad(lambda fs: 0.35 * sum(
                jnp.sum((own - f) ** 2) for own, f in zip(z, ups(fs, x, start), strict=True)))(fs)
            d_fs = [{**d, "w": a["w"], "b": a["b"]} for d, a in zip(d_fs, amortised, strict=True)]
            d_g = jax.grad(lambda g: total(fs, g, start, 0.0))(g)
        return z, jax.tree.map(lambda d: d / 6, (d_fs, d_g)), total(fs, g, z, 0.7)

    def ours(params):
        found, inferred, _ = learn.learn(energy, params, evidence, presets.preset(name, net.hierarchy, 4, RATE))
        return found, inferred, F.total(energy, params, inferred.z, evidence)

    found, inferred, at_rest = compiled(ours)(params)
    z, (d_fs, d_g), wanted = by_hand([f1, f2], g)
    near(list(flat(inferred.z)), z)
    near(at_rest, wanted)
    near([jax.tree.map(lambda p: p[0], level["f"]) for level in found.params], d_fs)
    near(found.params[1]["g"], d_g)
