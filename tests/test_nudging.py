"""Goals moved a little: of classifiers, where the softmax moves, and clamped tops; and errors under a clamped top."""

import jax
import jax.numpy as jnp
import pytest
from laws import RATE, SIZES, STEPS, backprop, climb, layers, learner, near, network

from cora.nets import chain
from cora.pc import energy as F
from cora.pc import learn, presets
from cora.pc.energy import Energy
from cora.types import Evidence


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def nudged_by_hand(weights, x, y, move, loss):
    """Descent by plain arrays, the goal moved to `move(g, y)` of the forward pass' g; its gradient divided by β."""
    z, guess = climb(weights, x)
    goal = move(guess, y)

    def total(weights, z):
        inner = (x, *(jnp.tanh(part) for part in z))
        guesses = [low @ w.T + b[None] for low, (w, b) in zip(inner, weights, strict=True)]
        rest = sum(jnp.sum((own - g) ** 2) / 2 for own, g in zip(z, guesses[:-1], strict=True))
        return rest + loss(guesses[-1], goal)

    slopes = jax.jit(jax.grad(total, (0, 1)))
    for _ in range(STEPS):
        z = jax.tree.map(lambda own, g: own - RATE * g, z, slopes(weights, z)[1])
    return jax.tree.map(lambda g: 10 * g / x.shape[0], slopes(weights, z)[0])


def test_nudging_a_classifier_moves_the_softmax():
    """p - β (p - t), p = softmax(g): logits and probabilities are no numbers of one kind."""
    _, params, evidence = network()
    net = chain.mlp(SIZES, jnp.tanh, chain.cross_entropy)
    labels = jax.nn.one_hot(jnp.arange(8) % 3, 3)
    found = learner(Energy(net.hierarchy), presets.preset("nudged", net.hierarchy, STEPS, RATE))(
        params, evidence._replace(goals=(None, None, labels[None])))[0].params
    expected = nudged_by_hand(layers(params), evidence.input, labels,
                              lambda g, t: jax.nn.softmax(g) - 0.1 * (jax.nn.softmax(g) - t),
                              lambda g, t: -jnp.sum(t * jax.nn.log_softmax(g)))
    near(layers(found), expected, 1e-10)


def clamped_twin():
    """`network`'s weights, its readout as a level whose value node is clamped to the goal: (net, weights, evidence)."""
    _, params, evidence = network()
    net = chain.mlp(SIZES, jnp.tanh, clamped=True)
    whole = F.stack(Energy(net.hierarchy), [{"f": {"w": w, "b": b}} for w, b in layers(params)])
    return net, whole, Evidence(evidence.input, top=evidence.goals[-1][0])


def test_nudging_moves_a_clamped_top_alike():
    net, params, evidence = clamped_twin()
    found = learner(Energy(net.hierarchy), presets.preset("nudged", net.hierarchy, STEPS, RATE))(params, evidence)[0]
    weights = tuple((part["f"]["w"][i], part["f"]["b"][i]) for part in params for i in range(len(part["f"]["w"])))
    expected = nudged_by_hand(weights, evidence.input, evidence.top, lambda g, t: g - 0.1 * (g - t),
                              lambda g, t: jnp.sum((g - t) ** 2) / 2)
    near([(part["f"]["w"][i], part["f"]["b"][i]) for part in found.params for i in range(len(part["f"]["w"]))],
         list(expected), 1e-10)


@pytest.mark.parametrize(("net", "goal", "words"), [
    (chain.mlp((4, 5, 3), loss=chain.smooth_l1), jnp.ones((1, 8, 3)), "error whose slope a moved goal does not scale"),
    (chain.mlp((4, 5, 3), loss=lambda g, t: jnp.sum(jnp.abs(g - t), axis=1)), jnp.ones((1, 8, 3)), "does not scale"),
    (chain.mlp((4, 5, 3), loss=lambda g, t: -jax.nn.log_softmax(g)[:, 0] * t), jnp.ones((1, 8)), "readout's shape"),
])
def test_nudges_that_would_teach_something_else_are_refused(net, goal, words):
    rule = presets.preset("nudged", net.hierarchy, 2)
    with pytest.raises(ValueError, match=rf"learning.nudge = 0.1: level 1 has .*{words}.*; nearest: 1.0"):
        learn.learn(Energy(net.hierarchy), net.init(jax.random.key(0)), Evidence(jnp.ones((8, 4)), (goal,)), rule)


def test_z_il_is_backprop_where_the_output_is_a_clamped_value_node_too():
    net, params, evidence = clamped_twin()
    truth = backprop(layers(network()[1]), evidence.input, evidence.top)
    found = learner(Energy(net.hierarchy), presets.preset("zil", net.hierarchy))(params, evidence)[0].params
    near([(part["f"]["w"][i], part["f"]["b"][i]) for part in found for i in range(len(part["f"]["w"]))],
         list(truth), 1e-12)
