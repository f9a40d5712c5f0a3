"""Weights, evidence and rules that do not fit are refused where they are handed over, by level, with both shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cora
from cora import Energy, Evidence, Level
from cora.nets import chain

pytestmark = pytest.mark.usefixtures("as_users_have_it")
B = 6
KEY = jax.random.key(0)
X, Y = jax.random.normal(KEY, (B, 4)), jax.random.normal(KEY, (B, 3))
TX = optax.sgd(0.1)
NET = chain.mlp((4, 5, 5, 3), jnp.tanh)
ONE = chain.mlp((4, 5, 5, 1), jnp.tanh)
WORDS = chain.mlp((4, 5, 5, B), jnp.tanh, chain.cross_entropy)
CLAMPED = chain.mlp((4, 5, 5, 3), jnp.tanh, clamped=True)
DEEP = chain.mlp((4, 5, 5, 5, 5, 3), jnp.tanh)
RIGHT = Evidence(X, (None, Y[None]))
PC = cora.Inference(steps=2), cora.Learning()


def linear(theta, x, context):
    return jnp.einsum("bi,oi->bo", x, theta["w"])


def own(error=chain.squared, outputs=3, lead=(1,), goal=None, encode=linear, decode=None):
    """A net of one's own levels, written without `chain`: (hierarchy, weights)."""
    w = np.random.default_rng(0).normal
    top = Level(lambda t, x, c: linear(t["f"], x, c), lambda t, x, c: linear(t["g"], x, c), error)
    weights = ({"w": jnp.array(w(size=(*lead, 5, 4)), jnp.float32)},
               {"f": {"w": jnp.array(w(size=(*lead, 5, 5)), jnp.float32)},
                "g": {"w": jnp.array(w(size=(*lead, outputs, 5)), jnp.float32)}})
    return (Level(encode, decode=decode), top), weights


def step(net, evidence, rule=PC, tx=TX, params=None, optimiser=None):
    params = net.init(KEY) if params is None else params
    learner = cora.Learner(params, tx.init(params) if optimiser is None else optimiser)
    return cora.step(Energy(net.hierarchy), learner, evidence, rule, tx)


def learn(hierarchy, weights, evidence, rule=PC):
    return cora.learn(Energy(hierarchy), weights, evidence, rule)


BROADCASTS = {
    "a column's axis": (ONE, Evidence(X, (None, Y[None, :, 0])), r"level 2 .*float32\[1, 6\].*float32\[1, 6, 1\]"),
    "width 1": (NET, Evidence(X, (None, Y[None, :, :1])), r"level 2 .*float32\[1, 6, 1\].*float32\[1, 6, 3\]"),
    "batch 1": (NET, Evidence(X, (None, Y[None, :1])), r"level 2 .*float32\[1, 1, 3\].*6 samples"),
    "labels": (WORDS, Evidence(X, (None, jnp.arange(B)[None])), r"level 2 .*int32\[1, 6\].*one_hot"),
    "a top's width": (CLAMPED, Evidence(X, top=Y[:, :1]), r"evidence.top: float32\[6, 1\].*float32\[6, 3\]"),
    "a top's batch": (CLAMPED, Evidence(X, top=Y[:1]), r"evidence.top: float32\[1, 3\].*float32\[6, 3\]"),
}
UNHEARD = {
    "nothing reads out": (NET, Evidence(X, (X[None], Y[None])), "level 1 has goal .*nothing hears it; nearest: None"),
    "for a top": (CLAMPED, Evidence(X, (None, None, Y[None])), "level 3 has goal .*Evidence.top=...."),
    "nothing at all": (CLAMPED, Evidence(X), "nothing is known but the input"),
    "omitted": (NET, Evidence(X), r"level 2 has none, but reads out float32\[6, 3\]; nearest: .*\[1, 6, 3\]"),
    "None": (NET, Evidence(X, (None, None)), "level 2 has none, but reads out"),
}
UNFIT = {
    "too few": (NET, Evidence(X, (Y[None],)), "evidence.goals: 1 entries; .*2 Levels"),
    "too many": (NET, Evidence(X, (None, None, Y[None])), "evidence.goals: 3 entries; .*2 Levels"),
    "one a level": (DEEP, Evidence(X, (None, None, None, Y[None])), r"4 entries; .*3 Levels \(repeated \[1, 2, 1\]"),
    "no leading axis": (NET, Evidence(X, (None, Y)), r"level 2 has goal float32\[6, 3\].*nearest: goal\[None\]"),
    "no tuple": (NET, Evidence(X, Y), r"evidence.goals: float32\[6, 3\].*nearest: \(None, goal\[None\]\)"),
    "empty batch": (NET, Evidence(X[:0], (None, Y[None, :0])), r"evidence.input: float32\[0, 4\]"),
    "whole numbers": (NET, Evidence(jnp.ones((B, 4), int), (None, Y[None])), r"evidence.input: int32\[6, 4\].*astype"),
    "bytes": (NET, Evidence(jnp.ones((B, 4), jnp.uint8), (None, Y[None])), r"evidence.input: uint8\[6, 4\].*astype"),
    "a list": (NET, Evidence([[1.0, 2.0]], (None, Y[None])), "evidence.input: float.*expected floating-point"),
    "width": (NET, Evidence(X[:, :3], (None, Y[None])), r"level 1: encode cannot take float32\[6, 3\].*\[5, 4\]"),
    "another batch": (NET, Evidence(X[:5], (None, Y[None])), r"level 2 has goal float32\[1, 6, 3\].*5 samples"),
    "no evidence": (NET, (X, (None, Y[None])), "evidence: of type tuple"),
}


@pytest.mark.parametrize("name", [*BROADCASTS, *UNHEARD, *UNFIT])
def test_evidence_that_does_not_fit_is_refused(name):
    net, evidence, words = (BROADCASTS | UNHEARD | UNFIT)[name]
    with pytest.raises(ValueError, match=words):
        step(net, evidence)
    with pytest.raises(ValueError, match=words):
        cora.learn(Energy(net.hierarchy), net.init(KEY), evidence, PC)
    if name != "nothing at all":
        with pytest.raises(ValueError, match=words):
            cora.settle(Energy(net.hierarchy), net.init(KEY), evidence, PC[0])
    with pytest.raises(ValueError, match=words):  # in compiled code, where it is traced, too
        jax.jit(lambda params: cora.learn(Energy(net.hierarchy), params, evidence, PC))(net.init(KEY))


@pytest.mark.parametrize("name", [*BROADCASTS, *UNFIT])
def test_predictions_are_refused_alike(name):
    net, evidence, words = (BROADCASTS | UNFIT)[name]
    for rule in (None, PC[0]):
        with pytest.raises(ValueError, match=words):
            cora.predict(Energy(net.hierarchy), net.init(KEY), evidence, rule)


def test_a_prediction_needs_no_goal_and_settles_nowhere_without_one():
    found = cora.predict(Energy(NET.hierarchy), NET.init(KEY), Evidence(X), PC[0])
    theta = jax.tree.map(np.asarray, NET.init(KEY))
    z = np.asarray(X) @ theta[0]["f"]["w"][0].T
    z = np.tanh(z) @ theta[1]["f"]["w"][0].T
    np.testing.assert_allclose(found, np.tanh(z) @ theta[1]["g"]["w"][0].T, rtol=1e-5)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: step(NET, RIGHT, "pc"), "rule: of type str; .*nearest: preset.'pc', hierarchy"),
    (lambda: step(NET, RIGHT, PC[0]), "rule: of type Inference; .*nearest: .rule, Learning"),
    (lambda: cora.learn(Energy(NET.hierarchy), NET.init(KEY), RIGHT, "pc"), "rule: of type str"),
    (lambda: cora.settle(Energy(NET.hierarchy), NET.init(KEY), RIGHT, PC), r"rule: of type tuple; .*rule\[0\]"),
    (lambda: cora.predict(Energy(NET.hierarchy), NET.init(KEY), RIGHT, PC), r"rule: of type tuple; .*rule\[0\]"),
    (lambda: cora.learn(NET.hierarchy, NET.init(KEY), RIGHT, PC), "energy: of type tuple; .*nearest: Energy"),
    (lambda: cora.step(Energy(NET.hierarchy), NET.init(KEY), RIGHT, PC, TX), "learner: of type tuple"),
    (lambda: step(NET, RIGHT, optimiser=optax.adam(1e-3).init(NET.init(KEY))), "ScaleByAdamState, EmptyState with"),
    (lambda: step(NET, RIGHT, optimiser=()), "learner.optimiser: .*expected EmptyState, EmptyState"),
    (lambda: step(NET, RIGHT, tx=optax.adam(1e-3), optimiser=optax.adam(1e-3).init(ONE.init(KEY))),
     r"learner.optimiser: .*\[1, 1, 5\].*expected .*\[1, 3, 5\]"),
    (lambda: step(NET, RIGHT, params=(*NET.init(KEY), {})), "params: 3 entries; .*2 Levels"),
    (lambda: step(NET, RIGHT, params=({}, NET.init(KEY)[1])), "level 1: encode cannot take .*weights {}: KeyError"),
    (lambda: Energy(tuple(level._replace(error=None) for level in NET.hierarchy)), r"hierarchy\[1\].error = None"),
    (lambda: Energy((NET.hierarchy[0]._replace(error=chain.squared),)), r"energy.hierarchy\[0\].readout = None"),
    (lambda: Energy(NET), "energy.hierarchy = .*its .hierarchy is"),
    (lambda: Energy(NET.hierarchy, precision=[1.0, 2.0, 3.0]), "energy.precision = .*2 levels"),
    (lambda: chain.mlp((64, 10)), "mlp.sizes = .*no hidden layer"),
    (lambda: learn(*own(lead=()), RIGHT), r"params: level 1 has \{w: float32\[5, 4\]\}; expected a leading axis of 1"),
    (lambda: learn(*own(encode=lambda t, x, c: linear(t, x, c)[0]), RIGHT), r"level 1: encode returns float32\[5\];"),
    (lambda: learn(*own(error=lambda g, t: jnp.sum((g - t) ** 2)), RIGHT), r"level 2: error returns float32\[\];"),
    (lambda: learn(*own(decode=lambda t, z, c: z[:, :1]), RIGHT), r"decode returns float32\[6, 1\]; .*float32\[6, 4\]"),
    (lambda: learn((Level(linear, repeat=2),), ({"w": jnp.ones((2, 5, 4))},), Evidence(X, top=jnp.ones((B, 5)))),
     r"levels 1 to 2: encode returns float32\[6, 5\] of float32\[6, 4\]"),
])
def test_what_else_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("learning", [cora.Learning(when="every", after=2), cora.Learning(when="every", after=7)])
def test_weights_that_would_never_learn_are_refused(learning):
    with pytest.raises(ValueError, match=r"learning.after = .*no weight learns in inference.steps = 2; nearest: 1"):
        step(NET, RIGHT, (PC[0], learning))


def test_a_sum_over_no_steps_is_refused():
    with pytest.raises(ValueError, match=r"no weight learns in inference.steps = 0"):
        step(NET, RIGHT, (cora.Inference(steps=0), cora.Learning(when="sum")))


def test_losses_of_one_s_own_take_goals_of_their_own_shape():
    """Labels that are numbers, and a normal density with a mean and a deviation: the energy as NumPy has it."""
    hierarchy, weights = own(lambda g, t: -jnp.take_along_axis(jax.nn.log_softmax(g), t[:, None], axis=1)[:, 0])
    labels = np.arange(B) % 3
    found = learn(hierarchy, weights, Evidence(X, (None, jnp.asarray(labels)[None])), (cora.Inference(steps=0), PC[1]))
    w = jax.tree.map(np.asarray, weights)
    out = np.asarray(X) @ w[0]["w"][0].T @ w[1]["f"]["w"][0].T @ w[1]["g"]["w"][0].T
    surprise = np.log(np.sum(np.exp(out - out.max(1, keepdims=True)), 1)) + out.max(1) - out[np.arange(B), labels]
    np.testing.assert_allclose(np.sum(found[2].energy[-1]), np.sum(surprise), rtol=1e-4)

    def density(g, t):
        return jnp.sum(0.5 * jnp.square((t - g[:, :3]) / jnp.exp(g[:, 3:])) + g[:, 3:], axis=1)

    hierarchy, weights = own(density, outputs=6)
    found = learn(hierarchy, weights, Evidence(0.1 * X, (None, Y[None])), (cora.Inference(steps=0), PC[1]))
    w = jax.tree.map(np.asarray, weights)
    out = 0.1 * np.asarray(X) @ w[0]["w"][0].T @ w[1]["f"]["w"][0].T @ w[1]["g"]["w"][0].T
    surprise = 0.5 * ((np.asarray(Y) - out[:, :3]) / np.exp(out[:, 3:])) ** 2 + out[:, 3:]
    np.testing.assert_allclose(np.sum(found[2].energy[-1]), np.sum(surprise), rtol=1e-4)


def test_settling_under_decoders_that_are_not_there_is_refused():
    with pytest.raises(ValueError, match=r"inference.forward_only = True: no level of this hierarchy decodes"):
        learn(NET.hierarchy, NET.init(KEY), RIGHT, (cora.Inference(steps=2, forward_only=True), cora.Learning()))


def test_a_rule_for_a_shallower_net_is_refused():
    with pytest.raises(ValueError, match=r"inference.steps = 2: with keep = 'arrival' .*lowest of 2 levels in step 3"):
        learn(NET.hierarchy, NET.init(KEY), RIGHT, (cora.Inference(steps=2, keep="arrival"), cora.Learning()))
