"""Laws of the learning rules: locality, and equality of the memory-flat scan with plain differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cora import config
from cora.nets.hierarchy import build
from cora.pc import learn, masks
from cora.pc.energy import energies, level_energy, start, teach
from cora.types import Encoder, Evidence, Params

MODEL = config.Model(frames=4, size=32, patch=8, tubelet=2, width=24, heads=2, levels=3, blocks=1,
                     predictor_width=12, predictor_heads=1)


@pytest.fixture(scope="module")
def case():
    hierarchy = build(MODEL)
    init = jax.jit(hierarchy.init)
    params, teacher = (init(jax.random.key(s)) for s in (0, 1))
    # Weights well away from their small initial values, so that no term is negligible.
    params, teacher = (jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), p)
                       for p in (params, teacher))
    clips = jax.random.randint(jax.random.key(2), (2, 4, 32, 32, 3), 0, 256).astype(jnp.uint8)
    drawn = tuple(masks.sample(jax.random.key(i), b, 2) for i, b in
                  enumerate(masks.kinds(config.Mask(), MODEL.grid).values()))
    return hierarchy, params, teacher.encoder, Evidence(hierarchy.patches(clips), drawn)


def cut_sum(hierarchy, params, teacher, evidence):
    """The same objective written the plain way: a Python loop with a stop-gradient between the levels."""
    z, full = start(hierarchy, params.encoder.embed, evidence), hierarchy.embed(teacher.embed, evidence.patches)
    total = jnp.zeros(())
    for level in range(MODEL.levels):
        tree, predictor, above = (jax.tree.map(lambda x, at=level: x[at], t)
                                  for t in (params.encoder.levels, params.predictors, teacher.levels))
        full, goal = teach(hierarchy, above, full)
        energy, z = level_energy(hierarchy, tree, predictor, z, goal, list(evidence.masks))
        total, z = total + energy, jax.lax.stop_gradient(z)
    return total


def largest_gap(a, b):
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_local_is_the_gradient_of_the_cut_sum(case):
    hierarchy, params, teacher, evidence = case
    ours, _ = jax.jit(learn.local, static_argnums=0)(*case)
    plain = jax.jit(jax.grad(lambda p: cut_sum(hierarchy, p, teacher, evidence)))(params)
    assert largest_gap(ours, plain) < 1e-5
    assert all(float(jnp.max(jnp.abs(leaf))) > 1e-4 for leaf in jax.tree.leaves(ours.encoder.embed))


def test_local_is_local(case):
    """Moving one level's weights leaves every lower level's gradient bit for bit as it was."""
    hierarchy, params, teacher, evidence = case
    rule = jax.jit(learn.local, static_argnums=0)
    before, energy = rule(*case)
    top = jax.tree.map(lambda x: x.at[-1].multiply(1.5), params.encoder.levels)
    after, moved = rule(hierarchy, Params(Encoder(params.encoder.embed, top), params.predictors), teacher, evidence)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if x.shape[0] == MODEL.levels:
            np.testing.assert_array_equal(x[:-1], y[:-1])
    assert float(energy[-1]) != float(moved[-1])
    np.testing.assert_array_equal(energy[:-1], moved[:-1])


def test_backprop_crosses_levels(case):
    """The control differs from `local` exactly where an upper error reaches a lower level."""
    cut, energy = jax.jit(learn.local, static_argnums=0)(*case)
    through, same = jax.jit(learn.backprop_all, static_argnums=0)(*case)
    np.testing.assert_allclose(energy, same, rtol=1e-5)
    kernel = lambda g: g.encoder.levels["blocks"]["block0"]["fc1"]["linear"]["kernel"]  # noqa: E731
    assert float(jnp.max(jnp.abs(kernel(cut)[0] - kernel(through)[0]))) > 1e-4
    np.testing.assert_allclose(kernel(cut)[-1], kernel(through)[-1], atol=1e-5)


def test_backprop_last_is_the_gradient_of_the_last_energy(case):
    hierarchy, params, teacher, evidence = case
    ours, energy = jax.jit(learn.backprop_last, static_argnums=0)(*case)
    plain = jax.jit(jax.grad(lambda p: energies(hierarchy, p.encoder, p.predictors, teacher, evidence)[-1]))(params)
    assert largest_gap(ours, plain) < 1e-5
    top = jax.jit(energies, static_argnums=0)(hierarchy, params.encoder, params.predictors, teacher, evidence)[-1]
    np.testing.assert_allclose(energy, top[None], rtol=1e-6)


def test_a_gradient_agrees_with_finite_differences(case):
    hierarchy, params, teacher, evidence = case
    gradient, _ = jax.jit(learn.backprop_all, static_argnums=0)(*case)
    steepness = float(optax.tree.norm(gradient))

    @jax.jit
    def at(step):
        p = jax.tree.map(lambda x, g: x + step / steepness * g, params, gradient)
        return jnp.sum(energies(hierarchy, p.encoder, p.predictors, teacher, evidence))

    slope = float(at(5e-3) - at(-5e-3)) / 1e-2
    assert abs(slope - steepness) < 0.02 * steepness


def test_memory_of_local_does_not_grow_with_depth():
    def temporary(levels, rule):
        hierarchy = build(config.Model(**{**MODEL.__dict__, "levels": levels}))
        params = jax.eval_shape(hierarchy.init, jax.random.key(0))
        patches = jax.ShapeDtypeStruct((4, 32, 384), jnp.float32)
        drawn = (masks.Masks(*(jax.ShapeDtypeStruct((4, k), jnp.int32) for k in (8, 16))),)
        run = jax.jit(rule, static_argnums=0).lower(hierarchy, params, params.encoder, Evidence(patches, drawn))
        return run.compile().memory_analysis().temp_size_in_bytes
    assert temporary(12, learn.local) < 1.3 * temporary(3, learn.local)
    assert temporary(12, learn.backprop_all) > 2.5 * temporary(3, learn.backprop_all)
