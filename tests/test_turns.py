"""Weights that learn in turns while states settle, then all together: PCX's sixth tutorial, by a plain loop."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import near

from cora.nets import chain
from cora.pc.energy import Energy
from cora.pc.infer import Inference
from cora.pc.learn import Learner, Learning, learn, step
from cora.pc.presets import preset
from cora.types import Evidence

T, B = 8, 6
TWIN = {"tutorial": lambda: optax.sgd(0.2, momentum=0.9, nesterov=True), "adamw": lambda: optax.adamw(1e-2)}


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def climb(weights, x, order):
    """All layers' outputs; the net's own order of weight and activation."""
    out = []
    for i, (w, b) in enumerate(weights):
        inner = jnp.tanh(x) if order == "before" and i else x
        x = inner @ w.T + b[None]
        x = jnp.tanh(x) if order == "after" and i < len(weights) - 1 else x
        out.append(x)
    return out


def energy_of(weights, z, x, y, order, loss):
    """The sum of all layers' errors over the batch; the output stands at y."""
    total = 0.0
    for i, (layer, low, own) in enumerate(zip(weights, (x, *z), (*z, None), strict=True)):
        inner = jnp.tanh(low) if order == "before" and i else low
        guess = inner @ layer[0].T + layer[1][None]
        guess = jnp.tanh(guess) if order == "after" and own is not None else guess
        total += loss(guess, y) if own is None else jnp.sum((own - guess) ** 2) / 2
    return total


def tutorial(weights, optimisers, states, x, y, order, loss):
    """One batch: L layers, T steps; in step t the states from L - t - 2 up move and layer L - t - 1 learns."""
    slopes = jax.jit(jax.grad(lambda w, z: energy_of(w, z, x, y, order, loss), (0, 1)))
    count, z = len(weights), climb(weights, x, order)[:-1]
    moved = [False] * len(z)

    def learn_layer(i, d_w):
        update, states[i] = optimisers[i].update(jax.tree.map(lambda g: g / B, d_w[i]), states[i], weights[i])
        weights[i] = optax.apply_updates(weights[i], update)

    for t in range(T):
        d_w, d_z = slopes(weights, z)
        for j in range(max(0, count - t - 2), count - 1):
            z[j] = z[j] - (0.1 if moved[j] else 1.0) * d_z[j]
            moved[j] = True
        if count - t - 1 >= 0:
            learn_layer(count - t - 1, d_w)
    d_w, _ = slopes(weights, z)
    for i in range(count):
        learn_layer(i, d_w)
    return z


def squares(guess, y):
    return jnp.sum((guess - y) ** 2) / 2


def surprise(guess, y):
    return -jnp.sum(y * jax.nn.log_softmax(guess))


@pytest.mark.parametrize("optimiser", TWIN)
@pytest.mark.parametrize(("clamped", "order", "loss"), [
    (False, "after", "cross_entropy"), (False, "before", "squared"), (True, "before", "squared"),
])
def test_z_il_then_pc_is_the_tutorial_s_loop(optimiser, clamped, order, loss):
    """Over two batches, so that every layer's own momentum counts; five layers of which the middle two repeat."""
    sizes = (3, 4, 5, 5, 5, 2)
    net = chain.mlp(sizes, jnp.tanh, getattr(chain, loss), order=order, clamped=clamped)
    rng = np.random.default_rng(0)
    weights = [(jnp.asarray(0.6 * rng.normal(size=(o, i))), jnp.asarray(0.3 * rng.normal(size=o)))
               for i, o in pairwise(sizes)]
    params, first = [], 0
    for level in net.hierarchy:
        rows = weights[first : first + level.repeat]
        params.append({"f": {"w": jnp.stack([w for w, _ in rows]), "b": jnp.stack([b for _, b in rows])}})
        first += level.repeat
    if not clamped:
        params[-1]["g"] = {"w": weights[-1][0][None], "b": weights[-1][1][None]}
    tx, rule = TWIN[optimiser](), preset("zil_pc", net.hierarchy)
    learner = Learner(tuple(params), tx.init(tuple(params)))
    optimisers = [TWIN[optimiser]() for _ in weights]
    states = [own.init(layer) for own, layer in zip(optimisers, weights, strict=True)]
    for batch in range(2):
        x, y = jnp.asarray(rng.normal(size=(B, 3))), jax.nn.one_hot(jnp.asarray(rng.integers(0, 2, B)), 2)
        evidence = Evidence(x, top=y) if clamped else Evidence(x, (*(None,) * (len(params) - 1), y[None]))
        learner, trace = step(Energy(net.hierarchy), learner, evidence, rule, tx)
        tutorial(weights, optimisers, states, x, y, order, squares if loss == "squared" else surprise)
        stacks = [part["f"] for part in learner.params] + ([] if clamped else [learner.params[-1]["g"]])
        found = [(s["w"][i], s["b"][i]) for s in stacks for i in range(s["w"].shape[0])]
        near(found, weights, 1e-10)
        assert trace.energy.shape[0] == T, batch


def test_what_cannot_learn_in_turns_is_refused():
    net = chain.mlp((3, 4, 4, 2), jnp.tanh)
    params, tx = net.init(jax.random.key(0)), optax.sgd(0.1)
    given = Energy(net.hierarchy), Learner(params, tx.init(params)), Evidence(jnp.ones((2, 3)), (
        *(None,) * (len(params) - 1), jnp.ones((1, 2, 2))))
    with pytest.raises(ValueError, match="share: levels that share weights cannot learn in turns"):
        step(*given, preset("zil_pc", net.hierarchy), tx, share=lambda tree: tree)
    with pytest.raises(ValueError, match=r"3 layers without decoders take turns in inference.steps = 2"):
        step(*given, (Inference(steps=2), Learning(when="turns")), tx)
    with pytest.raises(ValueError, match="when = 'turns': such a rule has no one gradient"):
        learn(given[0], params, given[2], preset("zil_pc", net.hierarchy))
