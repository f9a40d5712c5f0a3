"""What the tests of the laws share: small networks in float64, compiled rules, and descent written out by hand."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cora.nets import chain
from cora.pc import learn
from cora.pc.energy import Energy
from cora.pc.infer import Inference
from cora.types import Evidence

compiled = jax.jit
SIZES, RATE, STEPS = (4, 5, 5, 5, 5, 3), 0.2, 6


def drawn(network, seed=0):
    """Returns parameters of a video network with every weight, bias and scale well off its initial value; compiling
    the network's own `init` would take longer than most tests."""
    rng = np.random.default_rng(seed)

    def leaf(path, like):
        kind, noise = str(getattr(path[-1], "key", "")), rng.normal(size=like.shape)
        size = like.shape[-2] ** -0.5 if kind == "kernel" else 0.2
        return jnp.array((kind == "scale") + size * noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(network.init, jax.random.key(0)))


def near(a, b, tolerance=1e-12):
    """Asserts that two trees agree."""
    gaps = [float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    assert max(gaps) <= tolerance, gaps


@cache
def network():
    """A perceptron of levels 1 + 2 (repeated) + 1 and a readout, with what it is shown; every term well off zero."""
    with jax.enable_x64(True):
        net = chain.mlp(SIZES, jnp.tanh)
        keys = iter(jax.random.split(jax.random.key(0), 99))
        params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), net.init(next(keys)))
        x, y = jax.random.normal(next(keys), (8, SIZES[0])), 2 * jax.random.normal(next(keys), (8, SIZES[-1]))
        return net.hierarchy, params, Evidence(x, (None, None, y[None]))


def learner(energy, rule):
    """Returns the compiled rule: (params, evidence) -> (gradient, settled, trace)."""
    return compiled(lambda params, evidence: learn.learn(energy, params, evidence, rule))


def layers(tree):
    """Returns the layers of `network`'s parameters (or gradient) one by one, as pairs (weight, bias)."""
    stacks = [part["f"] for part in tree] + [tree[-1]["g"]]
    return tuple((stack["w"][i], stack["b"][i]) for stack in stacks for i in range(stack["w"].shape[0]))


def flat(z):
    """Returns stacked states one level at a time."""
    return tuple(part[i] for part in z for i in range(part.shape[0]))


def climb(weights, x):
    """Returns the states of the forward pass and the output."""
    z = [x @ weights[0][0].T + weights[0][1][None]]
    for w, b in weights[1:]:
        z.append(jnp.tanh(z[-1]) @ w.T + b[None])
    return tuple(z[:-1]), z[-1]


def loss(weights, x, y):
    """Returns half the squared error of the composed network, a mean over the batch."""
    return jnp.sum(jnp.square(y - climb(weights, x)[1])) / 2 / x.shape[0]


backprop = compiled(jax.grad(loss))


def energies(weights, z, x, y, pi, lam):
    """Returns the energy of every level, the readout's with the highest, summed over the batch."""
    inner = (x, *(jnp.tanh(part) for part in z))
    guesses = [low @ w.T + b[None] for low, (w, b) in zip(inner, weights, strict=True)]
    rows = [p / 2 * jnp.sum(jnp.square(own - guess)) for p, own, guess in zip(pi, z, guesses[:-1], strict=True)]
    rows[-1] += lam / 2 * jnp.sum(jnp.square(y - guesses[-1]))
    return jnp.stack(rows)


@compiled
def by_hand(weights, x, y, pi, lam, due, alpha):
    """Descends on the states for len(due) steps; where due, the weights move with them, at rate alpha.

    Returns what stood before each step (states, weight gradients, energies) and after the last one (states, weights,
    gradients): `pi` has a row for each of both.
    """

    def slopes(weights, z, p):
        total = lambda w, z: jnp.sum(energies(w, z, x, y, p, lam))  # noqa: E731
        d_w, d_z = jax.grad(total, (0, 1))(weights, z)
        return jax.tree.map(lambda g: g / x.shape[0], d_w), d_z

    def step(carry, now):
        (z, weights), (p, due) = carry, now
        d_w, d_z = slopes(weights, z, p)
        seen = z, d_w, energies(weights, z, x, y, p, lam)
        z = jax.tree.map(lambda z, g: z - RATE * g, z, d_z)
        return (z, jax.tree.map(lambda w, g: w - alpha * due * g, weights, d_w)), seen

    (z, after), seen = jax.lax.scan(step, (climb(weights, x)[0], weights), (pi[:-1], due))
    return seen, (z, after, slopes(after, z, pi[-1])[0])


def hand(params, evidence, pi=1.0, lam=1.0, due=1.0, alpha=0.0, steps=STEPS):
    """Returns `by_hand` at these choices, numbers broadcast."""
    pi = jnp.broadcast_to(jnp.asarray(pi, float), (steps + 1, len(SIZES) - 2))
    due = jnp.broadcast_to(jnp.asarray(due, float), (steps,))
    return by_hand(layers(params), evidence.input, evidence.goals[-1][0], pi, jnp.asarray(lam, float), due,
                   jnp.asarray(alpha, float))


@cache
def settled():
    """Returns what the plain rule makes of `network`: gradient, settled states, trace."""
    hierarchy, params, evidence = network()
    rule = Inference(steps=STEPS, optimiser=optax.sgd(RATE)), learn.Learning()
    return learner(Energy(hierarchy), rule)(params, evidence)
