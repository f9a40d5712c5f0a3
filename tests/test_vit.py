"""The transformer: equality with an independent float64 implementation, and the laws of positions."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cora import config
from cora.nets import vit
from cora.nets.hierarchy import build
from cora.types import Masks

GRID = (2, 3, 4)


def slow_block(p, x, ids, heads, style):
    """One block for one clip in NumPy float64 loops, from the definition and not from the code under test."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)

    def norm(y, q):
        return (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6) * q["scale"] + q["bias"]

    def dense(y, q):
        return y @ q["linear"]["kernel"] + q["linear"]["bias"]

    n, width = x.shape
    d = width // heads
    run = 2 * ((d // 3) // 2)

    def turn(v, token):
        out = v.copy()
        for axis, pos in enumerate((token // 12, token % 12 // 4, token % 4)):
            for k in range(run // 2):
                even, odd = axis * run + 2 * k, axis * run + 2 * k + 1
                index = [(2 * k) % (run // 2), (2 * k + 1) % (run // 2)] if style == "tiled" else [k, k]
                a, b = (pos * 10000 ** (-i / (run / 2)) for i in index)
                out[even] = v[even] * math.cos(a) - v[odd] * math.sin(a)
                out[odd] = v[odd] * math.cos(b) + v[even] * math.sin(b)
        return out

    qkv = dense(norm(x, p["norm1"]), p["qkv"]).reshape(n, 3, heads, d)
    mixed = np.zeros((n, heads, d))
    for h in range(heads):
        q = np.stack([turn(qkv[i, 0, h], ids[i]) for i in range(n)])
        k = np.stack([turn(qkv[i, 1, h], ids[i]) for i in range(n)])
        score = np.exp(q @ k.T / math.sqrt(d))
        mixed[:, h] = score / score.sum(1, keepdims=True) @ qkv[:, 2, h]
    x = x + dense(mixed.reshape(n, width), p["proj"])
    hidden = dense(norm(x, p["norm2"]), p["fc1"])
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))
    return x + dense(gelu(hidden), p["fc2"])


@pytest.mark.parametrize("style", ["tiled", "interleaved"])
def test_block_equals_an_independent_implementation(style):
    block = vit.Block(vit.Style(2, GRID, rope=style))
    ids = np.array([[0, 3, 7, 12, 18, 23]])
    x = jax.random.normal(jax.random.key(0), (1, 6, 28))
    p = block.init(jax.random.key(1), x, jnp.array(ids))["params"]
    # Amplified weights: with small ones a missing rotation hides under any tolerance.
    p = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), p)
    np.testing.assert_allclose(block.apply({"params": p}, x, jnp.array(ids))[0],
                               slow_block(p, np.asarray(x[0], np.float64), ids[0], 2, style), atol=2e-4, rtol=1e-4)


def test_interleaved_positions_are_relative_and_tiled_ones_are_not():
    def score(style, shift):
        cos, sin = vit.rotary_table(vit.Style(2, (8, 8, 8), rope=style), 24)
        q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 24))
        token = lambda t, h, w: t * 64 + h * 8 + w  # noqa: E731
        a, b = token(1 + shift, 2 + shift, 3), token(3 + shift, 1 + shift, 4)
        return float(jnp.sum(vit.rotate(q, cos[None, a : a + 1], sin[None, a : a + 1])
                             * vit.rotate(k, cos[None, b : b + 1], sin[None, b : b + 1])))

    assert abs(score("interleaved", 0) - score("interleaved", 3)) < 1e-5
    assert abs(score("tiled", 0) - score("tiled", 3)) > 1e-2


def test_a_stack_does_not_care_for_the_order_of_its_tokens():
    stack = vit.Stack(2, vit.Style(2, GRID))
    x, ids = jax.random.normal(jax.random.key(0), (2, 8, 24)), jnp.tile(jnp.arange(8)[None], (2, 1))
    p = stack.init(jax.random.key(1), x, ids)
    order = jnp.array([3, 1, 7, 0, 2, 6, 5, 4])
    np.testing.assert_allclose(stack.apply(p, x[:, order], ids[:, order]), stack.apply(p, x, ids)[:, order], atol=1e-5)


def test_patchify_puts_every_pixel_where_its_token_stands():
    clip = np.arange(4 * 6 * 6 * 3).reshape(1, 4, 6, 6, 3).astype(np.float32)
    tokens = np.asarray(vit.patchify(jnp.array(clip), 2, 3))
    assert tokens.shape == (1, 8, 54)
    for token in range(8):
        t, h, w = token // 4 * 2, token % 4 // 2 * 3, token % 2 * 3
        np.testing.assert_array_equal(tokens[0, token], clip[0, t : t + 2, h : h + 3, w : w + 3].ravel())


def test_gelu_is_exact():
    x = jnp.linspace(-5, 5, 101)
    np.testing.assert_allclose(vit.gelu(x), [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in np.asarray(x, float)],
                               atol=1e-6)


@pytest.mark.parametrize("style", [{"remat": True}, {"attention": "xla"}, {"dtype": "bfloat16"}])
def test_how_a_stack_is_computed_does_not_matter(style):
    """Recomputing is the same to rounding, gradients included; bfloat16 is near, and leaves parameters in float32."""
    x, ids = jax.random.normal(jax.random.key(0), (2, 8, 24)), jnp.tile(jnp.arange(8)[None], (2, 1))
    plain, other = (vit.Stack(2, vit.Style(2, GRID, **how)) for how in ({}, style))
    p = other.init(jax.random.key(1), x, ids)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(p)} == {jnp.dtype("float32")}

    def found(stack):
        total = lambda p: jnp.sum(jnp.square(vit.apply(stack, p, x, ids)))  # noqa: E731
        return jax.jit(jax.value_and_grad(total))(p)

    tolerance = 0.05 if "dtype" in style else 1e-4
    for a, b in zip(jax.tree.leaves(found(plain)), jax.tree.leaves(found(other)), strict=True):
        assert b.dtype == jnp.float32
        assert float(jnp.max(jnp.abs(a - b))) <= tolerance * float(jnp.max(jnp.abs(a)))
    if "dtype" in style:
        assert float(jnp.max(jnp.abs(found(plain)[0] - found(other)[0]))) > 0


def test_scaled_positions_end_where_the_grid_they_are_scaled_to_ends():
    """V-JEPA 2.1: row i of H stands at i (g - 1) / (H - 1); so the table of g rows is met at the ends, and time is not
    scaled."""
    coarse, fine = (vit.rotary_table(vit.Style(2, (2, n, n), rope="interleaved", rope_grid=4), 24)[1] for n in (4, 7))
    plain = vit.rotary_table(vit.Style(2, (2, 4, 4), rope="interleaved"), 24)[1]
    np.testing.assert_allclose(coarse, plain, atol=1e-6)
    np.testing.assert_allclose(fine.reshape(2, 7, 7, 24)[:, ::2, ::2], plain.reshape(2, 4, 4, 24), atol=1e-6)


@pytest.mark.parametrize(("name", "millions"), [("tiny", 5.6), ("small", 21.8), ("base", 86.3), ("large", 303.9),
                                                ("huge", 631), ("giant", 1012), ("gigantic", 1845)])
def test_encoders_are_as_large_as_their_names(name, millions):
    shapes = jax.eval_shape(build(config.sized(name)).init, jax.random.key(0)).encoder
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert abs(size - millions) < 0.02 * millions


def test_scaled_init_divides_what_a_block_adds_by_its_depth():
    model = config.Model(size=32, levels=2, blocks=2, width=24, heads=2)
    plain, scaled = (jax.jit(build(replace(model, scaled_init=s)).init)(jax.random.key(0)) for s in (False, True))
    for level in range(2):
        for block in range(2):
            for layer, divided in (("fc2", True), ("proj", True), ("fc1", False), ("qkv", False)):
                a, b = (p.encoder.levels["blocks"][f"block{block}"][layer]["linear"]["kernel"][level]
                        for p in (plain, scaled))
                by = math.sqrt(2 * (2 * level + block + 1)) if divided else 1.0
                np.testing.assert_allclose(a, b * by, rtol=1e-5)


def heard(near):
    """How much a hidden token's first prediction hangs on a neighbour, over how much on a token anywhere."""
    model = config.Model(width=24, heads=2, levels=1, predictor_width=48, predictor_heads=2, predictor_near=near)
    network, (hidden, *seen) = build(model), (36, *(i for i in range(model.tokens) if i != 36))
    tree = jax.tree.map(lambda leaf: leaf[0], jax.jit(network.init)(jax.random.key(0)).predictors)
    asked = Masks(jnp.array([seen]), jnp.array([[hidden]]))
    z = jax.random.normal(jax.random.key(1), (1, len(seen), model.width))
    slope = jax.jit(jax.jacobian(lambda z: network.predict(tree, z, asked, 0)[0, 0]))(z)[:, 0]
    size = np.linalg.norm(slope, axis=(0, 2))
    places = np.stack(np.unravel_index(np.arange(model.tokens), model.grid), axis=1)
    apart = np.abs(places[np.array(seen)] - places[hidden]).sum(1)
    return size[apart == 1].mean() / size.mean()


def test_a_predictor_that_begins_near_hears_its_neighbours_first():
    assert 0.9 < heard(0.0) < 1.1
    assert heard(2.0) > 2.0
    with pytest.raises(config.ConfigError, match="predictor_near = -1"):
        config.Model(predictor_near=-1.0)


@pytest.mark.parametrize(("rope", "width"), [("tiled", 64), ("interleaved", 96)])
def test_heads_that_look_around_each_agree_best_with_another_neighbour(rope, width):
    """Where queries and keys are their biases alone, the place of the best score is known by counting tokens."""
    model = config.Model(levels=1, predictor_width=width, predictor_heads=8, predictor_near=3.0, rope=rope,
                         predictor_gaze="around")
    bias = build(model).init(jax.random.key(0)).predictors["stack"]["block0"]["qkv"]["linear"]["bias"][0]
    query, key, value = np.asarray(bias).reshape(3, 8, width // 8)
    assert not value.any()
    style = vit.Style(8, (6, 4, 4), rope=rope)  # times of less than one turn, so that none looks like another
    cos, sin = (np.asarray(x) for x in vit.rotary_table(style, width // 8))

    def turned(x):
        other = np.stack([-x[1::2], x[::2]], axis=1).ravel()
        return x * cos + other * sin

    places = np.indices(style.grid).reshape(3, -1).T
    for head, away in enumerate([(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1), None,
                                 (-2, 0, 0)]):
        if away is None:  # its own place at any time
            score = (turned(query[head]) @ turned(key[head]).T).reshape(96, 6, 16)
            np.testing.assert_allclose(score - score[:, :1], 0, atol=1e-3)
            np.testing.assert_array_equal(np.argmax(score[:, 0], axis=1), np.arange(96) % 16)
            continue
        best = places[np.argmax(turned(query[head]) @ turned(key[head]).T, axis=1)]
        wanted = places + away
        inside = ((wanted >= 0) & (wanted < style.grid)).all(1)
        np.testing.assert_array_equal(best[inside], wanted[inside])


def test_mask_tokens_begin_as_wide_as_the_model_says_and_at_zero_unless_it_does():
    made = {wide: build(config.Model(levels=2, predictor_width=96, mask_tokens=8, predictor_tokens=wide)).init(
        jax.random.key(0)).predictors["mask_tokens"] for wide in (0.0, 0.5)}
    assert not made[0.0].any()
    np.testing.assert_allclose(made[0.5].std(), 0.5, rtol=0.1)


def test_a_gaze_without_biases_is_refused():
    with pytest.raises(config.ConfigError, match="predictor_gaze = 'around'"):
        config.Model(predictor_gaze="around")


def test_plain_attention_in_bfloat16_errs_no_more_than_jax_own_at_peaked_logits():
    """Against softmax(q kᵀ / √d) v in float64 of the same rounded q, k and v."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(scale * rng.normal(size=(2, 48, 2, 32)), jnp.bfloat16) for scale in (6, 6, 1))
    x, y, z = (np.asarray(a, np.float64) for a in (q, k, v))
    logits = np.einsum("bqhd,bkhd->bhqk", x, y) / 32**0.5
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    wanted = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), z)
    error = [np.abs(np.asarray(found, np.float64) - wanted).mean() for found in (
        vit.attend(q, k, v), jax.nn.dot_product_attention(q, k, v, implementation="xla"))]
    assert vit.attend(q, k, v).dtype == jnp.bfloat16 and error[0] < 1.1 * error[1]
