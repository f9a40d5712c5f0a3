"""Laws of what states begin with, of what is held while others settle, and of nets that are kept or share weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import compiled, flat, learner, near, network

import cora
from cora.nets import chain
from cora.pc.infer import Inference, settle
from cora.pc.learn import Learner, Learning, learn, step
from cora.types import Evidence, Hold, Level

MOMENTUM = Inference(steps=4, optimiser=optax.sgd(0.1, momentum=0.9))
RULES = {
    "state": MOMENTUM,
    "adam": replace(MOMENTUM, optimiser=optax.adam(0.05)),
    "wave": replace(MOMENTUM, wave=True),
    "error": replace(MOMENTUM, variable="error"),
    "forward": replace(MOMENTUM, linearise="forward"),
    "flow": Inference(variable="flow", duration=0.4, dt=0.1, solver="Euler"),
}


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", RULES)
def test_half_the_steps_twice_are_all_of_them(name):
    """States and momentum go on from where they ended, and learning follows."""
    hierarchy, params, evidence = network()
    energy, rule = cora.Energy(hierarchy), RULES[name]
    twice = replace(rule, duration=0.8) if name == "flow" else replace(rule, steps=8)

    @compiled
    def run(params):
        end = settle(energy, params, evidence, rule)[0].end
        again = learn(energy, params, evidence, (rule, Learning()), start=end)[:2]
        return again, learn(energy, params, evidence, (twice, Learning()))[:2]

    (gradient, found), (wanted, whole) = run(params)
    near(found.z, whole.z, 1e-12)
    near(gradient, wanted, 1e-12)
    near(found.errors, whole.errors, 1e-12)


def test_states_are_kept_from_batch_to_batch():
    """`kept` is by hand: each batch's settling starts where the last one's ended, with weights that have moved."""
    hierarchy, params, evidence = network()
    energy, tx = cora.Energy(hierarchy), optax.adam(1e-2)
    rule, begun = (MOMENTUM, Learning()), Learner(params, tx.init(params))

    @compiled
    def kept(learner):
        for _ in range(2):
            learner, _ = step(energy, learner, evidence, rule, tx, start="kept")
        return learner

    @compiled
    def by_hand(params, moments):
        start = "forward"
        for _ in range(2):
            found, settled, _ = learn(energy, params, evidence, rule, start=start)
            update, moments = tx.update(found.params, moments, params)
            params, start = optax.apply_updates(params, update), settled.end
        return params, start

    learner, (wanted, end) = kept(begun), by_hand(*begun[:2])
    near(learner.params, wanted)
    near(learner.states, end)
    few = evidence._replace(input=evidence.input[:3], goals=(None, None, evidence.goals[2][:, :3]))
    with pytest.raises(ValueError, match=r"start: value nodes of shapes .*\[\(1, 3, 5\)"):
        step(energy, learner, few, rule, tx, start="kept")


def test_states_start_at_zero_normal_or_anywhere():
    """No step is made: the errors are those of the states that were asked for."""
    hierarchy, params, evidence = network()
    energy, still = cora.Energy(hierarchy), Inference(steps=0)

    @compiled
    def run(params):
        drawn = settle(energy, params, evidence, still, jax.random.key(0), "normal")[0].z
        return (settle(energy, params, evidence, still, start="zeros")[0], drawn,
                settle(energy, params, evidence, still, start=cora.Start(drawn))[0].z)

    zero, drawn, again = run(params)
    near(flat(zero.z), [jnp.zeros((8, 5))] * 4, 0.0)
    near(zero.errors.state[0][0], -(evidence.input @ params[0]["f"]["w"][0].T + params[0]["f"]["b"]))
    near(zero.errors.state[1], -jnp.broadcast_to(params[1]["f"]["b"][:, None], (2, 8, 5)))
    assert 0.04 < float(jnp.std(jnp.stack(flat(drawn)))) < 0.06
    near(again, drawn, 0.0)
    with pytest.raises(ValueError, match=r"start = 'zero'.*nearest: 'zeros'"):
        cora.predict(energy, params, evidence, still, start="zero")
    with pytest.raises(ValueError, match="needs a key"):
        settle(energy, params, evidence, still, start="normal")
    with pytest.raises(ValueError, match="forward pass alone"):
        settle(energy, params, evidence, cora.preset("zil", energy.hierarchy)[0], start="zeros")


def test_a_part_is_filled_in_with_its_conditional_mean():
    """z ~ N(0, I), y = W z + noise: what is hidden of y settles at its mean given what is seen, and so does z.

    In the other direction a part of z is held and y is seen: the rest of z explains it.
    """
    net = chain.mlp((3, 6), lambda x: x, bias=False, prior="zero", clamped=True)
    params = net.init(jax.random.key(0))
    w, rng = np.array(params[1]["f"]["w"][0]), np.random.default_rng(1)
    y, z, seen = rng.normal(size=(4, 6)), rng.normal(size=(4, 3)), rng.random((4, 6)) < 0.6
    energy, rule = cora.Energy(net.hierarchy), Inference(steps=4000, optimiser=optax.sgd(0.1, momentum=0.9))
    bare = jnp.zeros((4, 1))

    @compiled
    def fill(value, mask):
        return settle(energy, params, Evidence(bare, held=(None, Hold(value[None], mask[None]))), rule)[0].z

    found = fill(jnp.array(y), jnp.array(seen))
    joint = np.block([[np.eye(3), w.T], [w, w @ w.T + np.eye(6)]])  # covariance of (z, y)
    for i in range(4):
        known = np.concatenate([np.zeros(3, bool), seen[i]])
        mean = joint[np.ix_(~known, known)] @ np.linalg.solve(joint[np.ix_(known, known)], y[i, seen[i]])
        settled = np.concatenate([found[0][0, i], found[1][0, i][~seen[i]]])
        np.testing.assert_allclose(settled, mean, atol=1e-8)
        np.testing.assert_array_equal(found[1][0, i][seen[i]], y[i, seen[i]])

    part = jnp.array([[[True, False, False]]])
    evidence = Evidence(bare, top=jnp.array(y), held=(Hold(jnp.array(z)[None], part), None))
    with pytest.raises(ValueError, match=r"value \(4, 3\) and float64 mask"):
        cora.predict(energy, params, evidence._replace(held=(Hold(jnp.array(z)[None], jnp.ones((1, 4, 3))), None)))
    free = compiled(lambda p: settle(energy, p, evidence, rule)[0].z)(params)[0][0]
    wanted = np.linalg.solve(np.eye(2) + w[:, 1:].T @ w[:, 1:], w[:, 1:].T @ (y - z[:, :1] @ w[:, :1].T).T).T
    np.testing.assert_allclose(free, np.concatenate([z[:, :1], wanted], axis=1), atol=1e-8)


def test_an_input_with_a_level_underneath_is_filled_in_from_above():
    """Half of x and the output of y = W x are given: the other half is least squares, as its prior is flat."""
    net = chain.under(chain.mlp((4, 3), lambda x: x, bias=False, clamped=True), (4,))
    params, rng = net.init(jax.random.key(0)), np.random.default_rng(3)
    w, x, y = np.array(params[1]["f"]["w"][0]), rng.normal(size=(5, 4)), rng.normal(size=(5, 3))
    held = (Hold(jnp.array(x)[None], jnp.array([[[True, True, False, False]]])), None)
    energy = cora.Energy(net.hierarchy, precision=(0.0, 1.0))
    rule = Inference(steps=4000, optimiser=optax.sgd(0.1, momentum=0.9))
    evidence = Evidence(jnp.zeros((5, 1)), top=jnp.array(y), held=held)
    found = compiled(lambda p: settle(energy, p, evidence, rule)[0].z)(params)[0][0]
    rest = np.linalg.lstsq(w[:, 2:], (y - x[:, :2] @ w[:, :2].T).T)[0].T
    np.testing.assert_allclose(found, np.concatenate([x[:, :2], rest], axis=1), atol=1e-8)


def test_a_memory_recalls_what_half_of_it_belongs_to():
    """A linear net that holds one pattern a latent: half of one calls up the other half, as far as the prior lets."""
    patterns = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 3)))[0].T
    net = chain.mlp((3, 8), lambda x: x, bias=False, prior="zero", clamped=True)
    params = ({"f": {}}, {"f": {"w": jnp.array(patterns.T)[None]}})
    energy = cora.Energy(net.hierarchy, precision=(1e-6, 1.0))  # almost no prior: no shrinking
    half = jnp.arange(8) < 4
    held = (None, Hold(jnp.array(patterns)[None], jnp.broadcast_to(half, (1, 3, 8))))
    rule = Inference(steps=4000, optimiser=optax.sgd(0.2, momentum=0.95))
    found = compiled(lambda p: cora.predict(energy, p, Evidence(jnp.zeros((3, 1)), held=held), rule))(params)
    np.testing.assert_allclose(found, patterns, atol=1e-3)


@pytest.mark.parametrize("which", ["state", "wave", "error", "forward"])
def test_a_whole_level_that_is_held_is_the_input_of_those_above(which):
    """Levels above settle as a net of their own on that input; a top held by a mask is a clamped top."""
    net = chain.mlp((3, 4, 4, 4, 4, 2), jnp.tanh)
    params, keys = net.init(jax.random.key(0)), jax.random.split(jax.random.key(1), 3)
    x, v, y = (jax.random.normal(key, (5, n)) for key, n in zip(keys, (3, 4, 2), strict=True))
    energy, rule = cora.Energy(net.hierarchy), (RULES[which], Learning())
    goals = cora.stack(energy, (None, None, None, y))
    whole, nothing = Hold(v, jnp.ones((5, 4), bool)), Hold(v, jnp.zeros((5, 4), bool))
    full = Evidence(x, goals, held=cora.stack(energy, (None, whole, nothing, None)))
    gradient, found, _ = learner(energy, rule)(params, full)
    upper = cora.Energy((net.hierarchy[1]._replace(repeat=1), net.hierarchy[2]))
    own = (jax.tree.map(lambda w: w[1:], params[1]), params[2])
    wanted, rest, _ = learner(upper, rule)(own, Evidence(v, goals[1:]))
    near(flat(found.z)[2:], flat(rest.z), 1e-12)
    near(gradient.params[2], wanted.params[1], 1e-12)
    near(found.z[1][0], v, 0.0)


def test_a_top_held_by_a_mask_is_a_clamped_top():
    net = chain.mlp((3, 4, 4, 2), jnp.tanh, clamped=True)
    params, (a, b) = net.init(jax.random.key(0)), jax.random.split(jax.random.key(1))
    x, y = jax.random.normal(a, (5, 3)), jax.random.normal(b, (5, 2))
    named = (cora.preset(name, net.hierarchy)[0] for name in ("epc", "bp"))
    for rule in (MOMENTUM, replace(MOMENTUM, wave=True), *named):
        run = learner(cora.Energy(net.hierarchy), (rule, Learning()))
        held = Evidence(x, held=(None, None, Hold(y[None], jnp.ones((1, 5, 2), bool))))
        near(run(params, held)[:2], run(params, Evidence(x, top=y))[:2], 1e-12)


def test_predict_is_the_readout_the_top_or_what_settles():
    hierarchy, params, evidence = network()
    energy = cora.Energy(hierarchy)
    z = np.array(evidence.input) @ np.array(params[0]["f"]["w"][0]).T + np.array(params[0]["f"]["b"])
    for part, i in ((params[1], 0), (params[1], 1), (params[2], 0)):
        z = np.tanh(z) @ np.array(part["f"]["w"][i]).T + np.array(part["f"]["b"][i])
    wanted = np.tanh(z) @ np.array(params[2]["g"]["w"][0]).T + np.array(params[2]["g"]["b"])
    np.testing.assert_allclose(cora.predict(energy, params, Evidence(evidence.input)), wanted, atol=1e-12)
    silent = cora.Energy((*hierarchy[:2], Level(hierarchy[2].encode)))
    np.testing.assert_allclose(cora.predict(silent, params, Evidence(evidence.input)), z, atol=1e-12)


def test_stacks_hold_what_is_given_level_by_level():
    hierarchy, _, _ = network()
    energy, rows = cora.Energy(hierarchy), [np.full((2, 3), i) for i in range(4)]
    whole = cora.stack(energy, rows)
    assert [part.shape for part in whole] == [(1, 2, 3), (2, 2, 3), (1, 2, 3)]
    near(cora.unstack(energy, whole), tuple(map(jnp.array, rows)), 0)
    assert cora.stack(energy, (None, None, None, rows[0]))[:2] == (None, None)
    with pytest.raises(ValueError, match="3 entries for a hierarchy of 4 levels"):
        cora.stack(energy, rows[:3])
    with pytest.raises(ValueError, match="level 3: None, while others of levels 2 to 3"):
        cora.stack(energy, (None, rows[0], None, None))


@pytest.mark.parametrize("when", ["settled", "every"])
def test_levels_that_share_weights_get_the_sum_of_their_gradients(when):
    """Three equal levels made of one: the shared weights move by the sum, and stay one."""
    hierarchy, params, evidence = network()
    energy, tx = cora.Energy(hierarchy), optax.sgd(0.1)
    rule = replace(MOMENTUM, steps=1), Learning(when=when)
    shared = {"in": params[0], "mid": jax.tree.map(lambda x: x[:1], params[1]), "out": params[2]}

    def share(tree):
        return tree["in"], jax.tree.map(lambda x: jnp.concatenate([x, x]), tree["mid"]), tree["out"]

    once = compiled(lambda t: step(energy, Learner(t, tx.init(t)), evidence, rule, tx, share=share)[0].params)(shared)
    plain = compiled(lambda p: step(energy, Learner(p, tx.init(p)), evidence, rule, tx)[0].params)(share(shared))
    moved = [np.array(new) - np.array(old) for new, old in zip(
        jax.tree.leaves(plain[1]), jax.tree.leaves(share(shared)[1]), strict=True)]
    for now, old, two in zip(jax.tree.leaves(once["mid"]), jax.tree.leaves(shared["mid"]), moved, strict=True):
        np.testing.assert_allclose(now - old, two.sum(axis=0, keepdims=True), atol=1e-12)
    near((once["in"], once["out"]), (plain[0], plain[2]))


def test_dropout_is_a_level_told_a_key_and_one_energy_while_states_settle():
    """A mask drawn from the context: the gradient is that of the net without the units that were dropped."""
    keep = lambda key: jax.random.bernoulli(key, 0.5, (4,))  # noqa: E731
    net = chain.mlp((3, 4, 2), jnp.tanh)
    dropped = net.hierarchy[0]._replace(
        readout=lambda t, x, key: net.hierarchy[0].readout(t, jnp.where(keep(key)[None], 2 * x, 0), None))
    params, x, y = net.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.ones((1, 5, 2))
    run = learner(cora.Energy((dropped,)), (MOMENTUM, Learning()))
    seen = set()
    for key in jax.random.split(jax.random.key(2), 3):
        stays = np.array(keep(key))
        found = run(params, Evidence(x, (y,), key))[0].params[0]
        seen.add(tuple(stays))
        assert not np.any(found["g"]["w"][0][:, ~stays]) and not np.any(found["f"]["w"][0][~stays])
        assert np.all(np.any(np.array(found["f"]["w"][0][stays]), axis=1))
    assert len(seen) > 1


def test_nets_come_back_as_they_were_saved(tmp_path):
    _, params, _ = network()
    tx = optax.adam(1e-3)
    odd = {"half": jnp.arange(3, dtype=jnp.bfloat16), "none": None, "count": 3}
    learner = Learner((params, odd), tx.init((params, jnp.ones(2, jnp.float32))), cora.Start((jnp.ones((1, 2)),)))
    cora.save(tmp_path / "net.safetensors", learner)
    again = cora.restore(tmp_path / "net.safetensors", jax.eval_shape(lambda: learner))
    assert jax.tree.structure(again) == jax.tree.structure(learner)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(learner), strict=True):
        assert a.dtype == jnp.asarray(b).dtype and np.array(a).tobytes() == np.array(jnp.asarray(b)).tobytes()
    cora.save(tmp_path / "params.safetensors", params)
    other = chain.mlp((4, 5, 5, 5, 5, 2), jnp.tanh).init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"2\.g\.w: wanted \(1, 2, 5, 'float64'\), file has \(1, 3, 5, 'float64'\)"):
        cora.restore(tmp_path / "params.safetensors", other)
    with pytest.raises(ValueError, match=r"0\.f\.w: wanted .*float32.*file has .*float64"):
        cora.restore(tmp_path / "params.safetensors", jax.tree.map(lambda x: x.astype(jnp.float32), params))
    with pytest.raises(ValueError, match="no such file"):
        cora.restore(tmp_path / "nothing.safetensors", params)
    with pytest.raises(ValueError, match="no array of numbers"):
        cora.save(tmp_path / "key.safetensors", {"key": jax.random.key(0)})
