"""Weights that learn while states settle, against a loop in NumPy that knows nothing of Cora."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cora.nets import chain
from cora.pc import learn
from cora.pc.energy import Energy
from cora.pc.infer import Inference
from cora.pc.learn import Learner, Learning
from cora.types import Evidence

RATE, STEPS, BATCH, LR, DECAY = 0.08, 9, 6, 1e-2, 0.1


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def slopes(weights, z, x, y):
    """Returns F's slopes in weights [(W, b)] (a mean over the batch) and in states (of the sum), by hand: layers
    z_l = W_l tanh(z_{l-1}) + b_l, the first without tanh, and a squared error on the last."""
    below = [x, *(np.tanh(part) for part in z)]
    errors = [own - (low @ w.T + b) for own, low, (w, b) in zip([*z, y], below, weights, strict=True)]
    d_weights = [(-e.T @ low / len(x), -e.mean(axis=0)) for e, low in zip(errors, below, strict=True)]
    d_z = [e - (1 - np.tanh(own) ** 2) * (above @ w)
           for e, own, above, (w, _) in zip(errors, z, errors[1:], weights[1:], strict=False)]
    return d_weights, d_z


class Sgd:
    def __init__(self, decay):
        self.decay = decay

    def move(self, weights, found):
        return [tuple(p - LR * (g + self.decay * p) for p, g in zip(own, d, strict=True))
                for own, d in zip(weights, found, strict=True)]


class AdamW:
    def __init__(self, decay):
        self.decay, self.count, self.m, self.v = decay, 0, None, None

    def move(self, weights, found):
        flat = [g for pair in found for g in pair]
        self.m = self.m or [0.0] * len(flat)
        self.v = self.v or [0.0] * len(flat)
        self.count += 1
        self.m = [0.9 * m + 0.1 * g for m, g in zip(self.m, flat, strict=True)]
        self.v = [0.999 * v + 0.001 * g * g for v, g in zip(self.v, flat, strict=True)]
        steps = iter([m / (1 - 0.9**self.count) / (np.sqrt(v / (1 - 0.999**self.count)) + 1e-8)
                      for m, v in zip(self.m, self.v, strict=True)])
        return [tuple(p - LR * (next(steps) + self.decay * p) for p in own) for own in weights]


def forward(weights, x):
    z = [x @ weights[0][0].T + weights[0][1]]
    for w, b in weights[1:-1]:
        z.append(np.tanh(z[-1]) @ w.T + b)
    return z


def every(weights, x, y, optimiser, period, after):
    """States and weights go down F at once, the weights at every `period`-th step from `after` on."""
    z = forward(weights, x)
    for t in range(STEPS):
        found, d_z = slopes(weights, z, x, y)
        z = [own - RATE * g for own, g in zip(z, d_z, strict=True)]
        if t >= after and (t - after) % period == 0:
            weights = optimiser.move(weights, found)
    return weights


def total(weights, x, y, optimiser):
    """States go down F alone; the weights then move by the sum of their slopes before each step."""
    z, whole = forward(weights, x), [tuple(np.zeros_like(p) for p in own) for own in weights]
    for _ in range(STEPS):
        found, d_z = slopes(weights, z, x, y)
        z = [own - RATE * g for own, g in zip(z, d_z, strict=True)]
        whole = [tuple(a + g for a, g in zip(own, d, strict=True)) for own, d in zip(whole, found, strict=True)]
    return optimiser.move(weights, whole)


NETS = [(i, sizes, name, decay, period, after) for i, (sizes, name, decay, period, after) in enumerate(
    (sizes, name, decay, period, after)
    for sizes in ((3, 5, 4, 2), (4, 6, 6, 6, 6, 3)) for period, after in ((1, 0), (2, 0), (3, 1), (2, 4), (1, 5))
    for name, decay in (("sgd", 0.0), ("adamw", DECAY)))]


@pytest.mark.parametrize(("seed", "sizes", "name", "decay", "period", "after"), NETS)
def test_states_and_weights_go_down_at_once(seed, sizes, name, decay, period, after):
    """With decay, and Adam's memory, weights move where errors are still zero: those below must see it."""
    rng = np.random.default_rng(seed)
    weights = [(rng.normal(size=(o, i)) * i**-0.5, 0.3 * rng.normal(size=o))
               for i, o in pairwise(sizes)]
    x, y = rng.normal(size=(BATCH, sizes[0])), 2 * rng.normal(size=(BATCH, sizes[-1]))
    decay = DECAY if seed % 4 == 2 else decay
    net = chain.mlp(sizes, jnp.tanh)
    flat = iter(weights)
    params = tuple(
        {"f": {k: jnp.stack(part) for k, part in zip("wb", zip(*(next(flat) for _ in range(level.repeat)), strict=True),
                                                     strict=True)}}
        for level in net.hierarchy)
    params[-1]["g"] = dict(zip("wb", (jnp.asarray(p)[None] for p in weights[-1]), strict=True))
    evidence = Evidence(jnp.asarray(x), (*(None,) * (len(net.hierarchy) - 1), jnp.asarray(y)[None]))
    tx = optax.adamw(LR, weight_decay=decay) if name == "adamw" else \
        optax.chain(optax.add_decayed_weights(decay), optax.sgd(LR))
    plain = (AdamW if name == "adamw" else Sgd)

    def both(params):
        inference = Inference(steps=STEPS, optimiser=optax.sgd(RATE))
        rules = [Learning(when="every", period=period, after=after), Learning(when="sum")][: 1 + (period == 1)]
        return [learn.step(Energy(net.hierarchy), Learner(params, tx.init(params)), evidence, (inference, rule), tx)[0]
                for rule in rules]

    wanted = every(weights, x, y, plain(decay), period, after), total(weights, x, y, plain(decay))
    for found, truth in zip(jax.jit(both)(params), wanted, strict=False):
        stacks = [part["f"] for part in found.params] + [found.params[-1]["g"]]
        ours = [(stack["w"][i], stack["b"][i]) for stack in stacks for i in range(len(stack["w"]))]
        for own, true in zip(ours, truth, strict=True):
            for a, b in zip(own, true, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)  # Adam divides rounding by 1e-8
