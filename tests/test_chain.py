"""Laws of the builders: what a chain computes is the plain network, and its exact gradient that network's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cora.nets import chain
from cora.pc import energy as F
from cora.pc.learn import learn
from cora.pc.presets import preset
from cora.types import Evidence

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def evidence(built, x, goal):
    return Evidence(x, (*(None,) * (len(built.hierarchy) - 1), goal[None]))


def output(built, params, x):
    """The readout of the forward pass."""
    energy = F.Energy(built.hierarchy)
    return F.read(energy, params, F.forward(energy, params, Evidence(x)), None)[-1][-1]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def drawn(built):
    """Parameters of the built net's shapes with nothing zero and no scale one; drawn by numpy, to compile nothing."""
    shapes, rng = jax.eval_shape(built.init, KEY), np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.standard_normal(p.shape) / max(p.shape[-1], 4) ** 0.5, shapes)


def gap(a, b):
    return max(np.abs(np.asarray(x) - np.asarray(y)).max()
               for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def at(tree, i=0):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def plain_mlp(params, x):
    """act before weight, written out: 6-5-5-5-3, the two middle layers one repeated Level."""
    z = x @ params[0]["f"]["w"][0].T + params[0]["f"]["b"]
    for part, i in ((params[1], 0), (params[2], 0)):
        z = jnp.tanh(z) @ part["f"]["w"][i].T + part["f"]["b"][i][None]
    return jnp.tanh(z) @ params[2]["g"]["w"][0].T + params[2]["g"]["b"]


def plain_cnn(params, x):
    """Convolutions as sums over shifted pictures, then a linear map of everything."""
    for part in params:
        w, b = part["f"]["w"][0], part["f"]["b"][0]
        n = -(-x.shape[1] // 2)
        pad = max(2 * (n - 1) + 3 - x.shape[1], 0)
        x = jnp.pad(x, ((0, 0), (pad // 2, 3), (pad // 2, 3), (0, 0)))
        x = jnp.tanh(b[None, None, None] + sum(
            jnp.einsum("bhwi,io->bhwo", x[:, r : r + 2 * n : 2, c : c + 2 * n : 2], w[r, c])
            for r in range(3) for c in range(3)))
    g = at(params[-1]["g"])
    return x.reshape(len(x), -1) @ g["w"].T + g["b"][None]


def plain_transformer(params, x, heads=2, branch=1.0, power=-0.5):
    """Pre-norm blocks, one head at a time."""

    def norm(t, v):
        centred = v - v.mean(-1, keepdims=True)
        scaled = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * t["scale"][None, None] + t["shift"][None, None]

    def linear(t, v):
        return jnp.einsum("...i,oi->...o", v, t["w"]) + t["b"][None, None]

    first = at(params[0]["f"])
    x = linear(first["in"], x) + first["place"][None]
    d = x.shape[-1] // heads
    for t in [at(part["f"], i) for part in params[1:] for i in range(part["f"]["qkv"]["b"].shape[0])]:
        q, k, v = jnp.split(linear(t["qkv"], norm(t["norm1"], x)), 3, axis=-1)
        own = [slice(h * d, (h + 1) * d) for h in range(heads)]
        mixed = [jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q[..., s], k[..., s]) * d**power) @ v[..., s] for s in own]
        x = x + branch * linear(t["proj"], jnp.concatenate(mixed, -1))
        x = x + branch * linear(t["fc2"], jax.nn.gelu(linear(t["fc1"], norm(t["norm2"], x)), approximate=False))
    g = at(params[-1]["g"])
    return norm(g["norm"], x).mean(1) @ g["out"]["w"].T + g["out"]["b"][None]


CASES = {
    "mlp": (chain.mlp((6, 5, 5, 5, 3), jnp.tanh), (4, 6), plain_mlp),
    "cnn": (chain.cnn((7, 7, 2), (3, 4), 3, jnp.tanh), (4, 7, 7, 2), plain_cnn),
    "transformer": (chain.transformer(5, 6, 8, 2, 2, 3), (4, 5, 6), plain_transformer),
}


@pytest.mark.parametrize("name", CASES)
def test_exact_is_the_gradient_of_the_plain_network(name):
    built, shape, plain = CASES[name]
    params, x, goal = drawn(built), normal(1, *shape), normal(2, 4, 3)

    def loss(p):
        out = plain(p, x)
        return jnp.sum((goal - out) ** 2) / 2 / 4, out

    energy = F.Energy(built.hierarchy)
    clamps, rule = evidence(built, x, goal), preset("exact", energy.hierarchy)

    def both(p):
        return learn(energy, p, clamps, rule)[0].params, jax.grad(loss, has_aux=True)(p), output(built, p, x)

    ours, (theirs, out), read = jax.jit(both)(params)
    assert gap(out, read) < 1e-12 and gap(ours, theirs) < 1e-10
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(theirs))


def test_a_transformer_scaled_with_depth_has_branches_of_one_over_blocks():
    built, x = chain.transformer(5, 6, 8, 2, 3, 3, scaling="depth"), normal(1, 4, 5, 6)
    ours, theirs = jax.jit(lambda p: (output(built, p, x), plain_transformer(p, x, branch=1 / 3, power=-1.0)))(
        drawn(built))
    assert gap(ours, theirs) < 1e-12


def test_equal_hidden_layers_are_one_level_and_compute_the_same_as_apart():
    built = chain.mlp((6, 5, 5, 5, 5, 5, 3), jnp.tanh, residual=True)
    assert [level.repeat for level in built.hierarchy] == [1, 3, 1]
    params, x = drawn(built), normal(1, 4, 6)
    middle = built.hierarchy[1]
    apart = (built.hierarchy[0], *(middle._replace(repeat=1),) * 3, built.hierarchy[2])
    spread = (params[0], *(jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], params[1]) for i in range(3)), params[2])
    together, split = F.Energy(built.hierarchy), F.Energy(apart)
    goal = normal(2, 1, 4, 3)

    def both(energy, params):
        z = F.forward(energy, params, Evidence(x))
        noisy = jax.tree.map(lambda v: v + 0.3, z)
        return z, F.total(energy, params, noisy, Evidence(x, (*(None,) * (len(params) - 1), goal)))

    (z, total), (zs, totals) = (jax.jit(lambda p, e=e: both(e, p))(p) for e, p in ((together, params), (split, spread)))
    assert gap(z[1], np.concatenate(zs[1:4])) < 1e-14
    assert abs(float(total - totals)) < 1e-10


@pytest.mark.parametrize("residual, how, expected", [
    (False, "sp", (1, 1, 1, 1)),
    (False, "ntp", (16**-0.5, 0.5, 0.5, 0.5)),
    (False, "mupc", (16**-0.5, 0.5, 0.5, 0.25)),
    (True, "ntp", (16**-0.5, 0.25, 0.25, 0.5)),
    (True, "mupc", (16**-0.5, 0.25, 0.25, 0.25)),
])
def test_factors_are_those_of_jpc(residual, how, expected):
    """Four layers of 4 units on 16 inputs: 1/√D, 1/√N or 1/√(N L), and 1/√N or 1/N."""
    assert np.allclose(chain.factors((16, 4, 4, 4, 2), how, residual), expected)
    built = chain.mlp((16, 4, 4, 4, 2), lambda z: z, parameterisation=how, residual=residual, bias=False)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), jax.eval_shape(built.init, KEY))
    z = 16 * expected[0]
    for a in expected[1:3]:
        z = 4 * a * z + (z if residual else 0)
    assert np.allclose(jax.jit(lambda p: output(built, p, jnp.ones((1, 16))))(params), 4 * expected[3] * z)


@pytest.mark.parametrize("how, variance", [("lecun", 1 / 300), ("xavier", 2 / 500), ("settled", 1 / 60000**0.5)])
def test_weights_are_drawn_with_the_stated_variance(how, variance):
    assert abs(np.var(chain.draw(KEY, 200, 300, how)) / variance - 1) < 0.03


def test_shapes_of_the_value_nodes():
    def shapes(net, x):
        energy = F.Energy(net.hierarchy)
        return [v.shape for v in jax.eval_shape(lambda k: F.forward(energy, net.init(k), Evidence(x)), KEY)]

    picture, sequence = jnp.ones((2, 9, 7, 2)), jnp.ones((2, 5, 6))
    net = chain.cnn((9, 7, 2), (3, 4, 5), 6)
    assert shapes(net, picture) == [(1, 2, 5, 4, 3), (1, 2, 3, 2, 4), (1, 2, 2, 1, 5)]
    assert jax.eval_shape(lambda k: output(net, net.init(k), picture), KEY).shape == (2, 6)
    for blocks, repeats in ((1, [1, 1]), (2, [1, 1, 1]), (4, [1, 3, 1])):
        net = chain.transformer(5, 6, 8, 2, blocks, 3)
        assert [level.repeat for level in net.hierarchy] == repeats
        assert shapes(net, sequence) == [(n, 2, 5, 8) for n in repeats]


def test_depth_scaling_keeps_a_deep_transformer_near_its_embedding():
    """With branches of 1/L the sum over L blocks does not grow with L."""
    def growth(scaling):
        net = chain.transformer(5, 6, 8, 2, 16, 3, scaling=scaling)
        x = Evidence(normal(0, 2, 5, 6))
        z = jax.jit(lambda p: F.forward(F.Energy(net.hierarchy), p, x))(drawn(net))
        return np.std(z[-1]) / np.std(z[0])

    assert growth("depth") < 1.5 < 2.5 < growth("sp")


@pytest.mark.parametrize("prior", ["zero", "learned"])
def test_a_generative_net_predicts_its_latent_from_nothing(prior):
    net = chain.mlp((3, 5, 8), jnp.tanh, prior=prior)
    energy, params = F.Energy(net.hierarchy), drawn(net)
    if prior == "learned":
        params[0]["f"]["mean"] = np.array([[1.0, 2.0, 3.0]])
    climb = jax.jit(lambda p, x: F.forward(energy, p, Evidence(x)))
    z = [climb(params, x) for x in (jnp.zeros((4, 1)), jnp.ones((4, 1)))]
    assert gap(z[0], z[1]) == 0
    mean = [1.0, 2.0, 3.0] if prior == "learned" else [0.0] * 3
    assert np.array_equal(z[0][0][0], np.tile(mean, (4, 1)))
    picture = normal(3, 4, 8)
    found, settled, trace = jax.jit(lambda p: learn(energy, p, evidence(net, jnp.zeros((4, 1)), picture),
                                                    preset("pc", net.hierarchy, 50, 0.05)))(params)
    assert np.std(settled.z[0][0], axis=0).min() > 0, "every sample finds a latent of its own"
    assert np.sum(trace.energy[-1]) < np.sum(trace.energy[0])
    if prior == "learned":  # the slope of |z - mean|²/2, a mean over the batch
        drift = np.asarray(settled.z[0][0]) - np.array([mean])
        assert np.allclose(found.params[0]["f"]["mean"][0], -np.mean(drift, axis=0))


def test_a_clamped_chain_holds_its_output_as_a_value_node():
    free, held = (chain.mlp((4, 5, 3), jnp.tanh, clamped=c) for c in (False, True))
    assert [len(free.hierarchy), len(held.hierarchy)] == [1, 2]
    x, goal = jnp.ones((2, 4)), jnp.ones((2, 3))

    def totals(params):
        same = ({"f": params[0]["f"], "g": params[1]["f"]},)
        z = F.forward(F.Energy(held.hierarchy), params, Evidence(x))
        return (F.total(F.Energy(held.hierarchy), params, z, Evidence(x, top=goal)),
                F.total(F.Energy(free.hierarchy), same, z[:1], evidence(free, x, goal)))

    assert np.isclose(*jax.jit(totals)(drawn(held)), rtol=1e-14)
