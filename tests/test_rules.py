"""Laws of the learning rules: locality, and equality of the memory-flat scan with plain differentiation."""

from functools import partial
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import compiled, drawn

from cora import config
from cora.nets.hierarchy import build
from cora.pc import energy as F
from cora.pc import masks, presets, rules, settled
from cora.pc.learn import learn
from cora.pc.rules import energies, level_energy, start, teach
from cora.types import Encoder, Level, Params, Sight

MODEL = config.Model(frames=4, size=32, patch=8, tubelet=2, width=24, heads=2, levels=3, blocks=1,
                     predictor_width=12, predictor_heads=1)
HIERARCHY = (Level(lambda tree, z, context: z, repeat=MODEL.levels),)


@pytest.fixture(scope="module")
def case():
    network = build(MODEL)
    params, teacher = drawn(network, 0), drawn(network, 1)
    clips = jax.random.randint(jax.random.key(2), (2, 4, 32, 32, 3), 0, 256).astype(jnp.uint8)
    hidden = tuple(masks.sample(jax.random.key(i), b, 2) for i, b in
                  enumerate(masks.kinds(config.Mask(kinds=("short",)), MODEL.grid).values()))
    return network, params, teacher.encoder, Sight(network.patches(clips), hidden)


def cut_sum(network, params, teacher, sight):
    """The same objective written the plain way: a Python loop with a stop-gradient between the levels."""
    z, full = start(network, params.encoder.embed, sight), network.embed(teacher.embed, sight.patches)
    total = jnp.zeros(())
    for level in range(MODEL.levels):
        tree, predictor, above = (jax.tree.map(lambda x, at=level: x[at], t)
                                  for t in (params.encoder.levels, params.predictors, teacher.levels))
        full, goal = teach(network, above, full, sight)
        energy, (_, z) = level_energy(network, (tree, predictor), z, goal, sight)
        total, z = total + energy, jax.lax.stop_gradient(z)
    return total


def largest_gap(a, b):
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_local_is_the_gradient_of_the_cut_sum(case):
    network, params, teacher, sight = case
    ours, _ = compiled(rules.local, static_argnums=0)(*case)
    plain = compiled(jax.grad(lambda p: cut_sum(network, p, teacher, sight)))(params)
    assert largest_gap(ours, plain) < 1e-5
    assert all(float(jnp.max(jnp.abs(leaf))) > 1e-4 for leaf in jax.tree.leaves(ours.encoder.embed))


def test_local_is_local(case):
    """Moving one level's weights leaves every lower level's gradient bit for bit as it was."""
    network, params, teacher, sight = case
    rule = compiled(rules.local, static_argnums=0)
    before, energy = rule(*case)
    top = jax.tree.map(lambda x: x.at[-1].multiply(1.5), params.encoder.levels)
    after, moved = rule(network, Params(Encoder(params.encoder.embed, top), params.predictors), teacher, sight)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if x.shape[0] == MODEL.levels:
            np.testing.assert_array_equal(x[:-1], y[:-1])
    assert float(energy[-1]) != float(moved[-1])
    np.testing.assert_array_equal(energy[:-1], moved[:-1])


def test_backprop_crosses_levels(case):
    """The control differs from `local` exactly where an upper error reaches a lower level."""
    cut, energy = compiled(rules.local, static_argnums=0)(*case)
    through, same = compiled(rules.backprop_all, static_argnums=0)(*case)
    np.testing.assert_allclose(energy, same, rtol=1e-5)
    kernel = lambda g: g.encoder.levels["blocks"]["block0"]["fc1"]["linear"]["kernel"]  # noqa: E731
    assert float(jnp.max(jnp.abs(kernel(cut)[0] - kernel(through)[0]))) > 1e-4
    np.testing.assert_allclose(kernel(cut)[-1], kernel(through)[-1], atol=1e-5)
    whole, _ = compiled(partial(rules.local, reach=MODEL.levels), static_argnums=0)(*case)
    assert largest_gap(whole, through) < 1e-5  # an error that reaches all levels is backprop's


def test_an_error_reaches_so_many_levels_and_no_further(case):
    """The gradient of the sum of all energies, each in its own copy of the network that is cut two levels below."""
    network, params, teacher, sight = case
    ours, energy = compiled(partial(rules.local, reach=2), static_argnums=0)(*case)

    def windows(params):
        every = [energies(network, _frozen_below(params, top - 1), teacher, sight) for top in range(MODEL.levels)]
        return sum(one[0][top] for top, one in enumerate(every)), every[0][1]

    plain, same = compiled(jax.grad(windows, has_aux=True))(params)
    assert largest_gap(ours, plain) < 1e-5
    np.testing.assert_allclose(energy, same, rtol=1e-5)


def _frozen_below(params, level):
    """The same weights, but nothing is learned below this level."""
    if level <= 0:
        return params
    held = jax.tree.map(lambda x: jnp.concatenate([jax.lax.stop_gradient(x[:level]), x[level:]]), params.encoder.levels)
    return Params(Encoder(jax.lax.stop_gradient(params.encoder.embed), held), params.predictors)


def test_backprop_last_is_the_gradient_of_the_last_energy(case):
    network, params, teacher, sight = case
    ours, energy = compiled(rules.backprop_last, static_argnums=0)(*case)
    top, plain = compiled(jax.value_and_grad(lambda p: energies(network, p, teacher, sight)[0][-1]))(params)
    assert largest_gap(ours, plain) < 1e-5
    np.testing.assert_allclose(energy, top[None], rtol=1e-6)


def test_a_gradient_agrees_with_finite_differences(case):
    network, params, teacher, sight = case
    gradient, _ = compiled(rules.backprop_all, static_argnums=0)(*case)
    steepness = float(optax.tree.norm(gradient))

    @compiled
    def at(step):
        p = jax.tree.map(lambda x, g: x + step / steepness * g, params, gradient)
        return jnp.sum(energies(network, p, teacher, sight)[0])

    slope = float(at(5e-3) - at(-5e-3)) / 1e-2
    assert abs(slope - steepness) < 0.02 * steepness


def test_memory_of_local_does_not_grow_with_depth():
    def temporary(levels, rule):
        network = build(config.Model(**{**MODEL.__dict__, "levels": levels}))
        params = jax.eval_shape(network.init, jax.random.key(0))
        patches = jax.ShapeDtypeStruct((4, 32, 384), jnp.float32)
        hidden = (masks.Masks(*(jax.ShapeDtypeStruct((4, k), jnp.int32) for k in (8, 16))),)
        run = jax.jit(rule, static_argnums=0).lower(network, params, params.encoder, Sight(patches, hidden))
        return run.compile().memory_analysis().temp_size_in_bytes
    for reach in (1, 2):
        rule = partial(rules.local, reach=reach)
        assert temporary(12, rule) < 1.3 * temporary(3, rule)
    assert temporary(12, rules.backprop_all) > 2.5 * temporary(3, rules.backprop_all)


def test_local_is_the_preset_of_that_name(case):
    """The memory-flat scan, and one step of the general machinery linearised at the forward pass, are one rule."""
    scanned, energy = compiled(rules.local, static_argnums=0)(*case)
    general, same = compiled(settled.settled(presets.preset("local", HIERARCHY)), static_argnums=0)(*case)
    assert largest_gap(scanned, general) < 1e-5
    np.testing.assert_allclose(energy, same, rtol=1e-5)


def test_exact_is_backprop_through_all_levels(case):
    through, _ = compiled(rules.backprop_all, static_argnums=0)(*case)
    general, _ = compiled(settled.settled(presets.preset("exact", HIERARCHY)), static_argnums=0)(*case)
    assert largest_gap(through, general) < 1e-5


FAST = {"xla_backend_optimization_level": "2"}
"""The flow takes so many steps that they must not be slow."""


@pytest.mark.parametrize("name", ["pc", "epc", "pc_ode"])
def test_rules_with_inference_run_on_a_video_network(case, name):
    rule = settled.rule_of(config.Learn(rule=name), config.Infer(steps=3), MODEL, config.Target())
    gradient, energy = jax.jit(rule, static_argnums=0, compiler_options=FAST)(*case)
    assert energy.shape == (MODEL.levels,)
    for leaf in jax.tree.leaves(gradient):
        assert bool(jnp.all(jnp.isfinite(leaf))) and float(jnp.max(jnp.abs(leaf))) > 0


def test_every_rule_of_the_config_has_its_preset():
    for name in get_args(get_type_hints(config.Learn)["rule"]):
        assert callable(settled.rule_of(config.Learn(rule=name), config.Infer(), MODEL, config.Target()))


def test_what_a_run_logs_of_its_inference(case):
    """Backprop is told to be backprop; after one state step of pc only the top level's own error has moved a state."""
    look = compiled(settled.inspected, static_argnums=(0, 1))
    exact = look(presets.preset("exact", HIERARCHY), *case)
    np.testing.assert_allclose(exact["backprop_cosine"], 1, atol=1e-5)
    np.testing.assert_allclose(exact["backprop_ratio"], 1, atol=1e-5)
    pc = look(presets.preset("pc", HIERARCHY, 4, 0.1), *case)
    assert (pc["energy_last"] < pc["energy_first"]).any() and float(pc["residual"][0]) < 1
    assert pc["error_norm"].shape == (MODEL.levels,) and (pc["error_norm"] > 0).all()


def test_one_step_of_pc_leaves_a_level_what_its_lower_neighbours_step_does_not_bring(case):
    """All states move at once, so e_l = -η (δ_l - J_l δ_{l-1}), δ_l what its own error asks of z_l: where levels have
    like targets the two cancel. With predictions held at the forward pass (`local`, η = 1), e_l = -δ_l."""
    network, params, teacher, sight = case

    def errors(name, pace, params):
        energy, trees, evidence, _ = settled.problem(network, params, teacher, sight)
        z = F.forward(energy, trees, evidence)
        asked = jax.grad(lambda z: F.total(energy, trees, z, evidence))(z)

        def below(z):
            return F.predict(energy, trees, F.below(z, evidence.input), evidence.context)

        passed = jax.jvp(below, (z,), (asked,))[1]
        rest = learn(energy, trees, evidence, presets.preset(name, energy.hierarchy, *pace))[1]
        return asked, passed, rest.errors.state

    for name, pace, rate, share in (("pc", (1, 1e-2), 1e-2, 1.0), ("local", (), 1.0, 0.0)):
        asked, passed, found = compiled(partial(errors, name, pace))(params)
        expected = jax.tree.map(lambda own, low, r=rate, s=share: -r * (own - s * low), asked, passed)
        scale = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected))
        assert largest_gap(found, expected) < 2e-2 * scale
