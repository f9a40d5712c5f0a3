"""The wavefront: levels that no error has reached are left out, and nothing else changes."""

from dataclasses import replace
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import SIZES, compiled, learner, near, network

from cora.nets import chain
from cora.pc import wave
from cora.pc.energy import Energy
from cora.pc.infer import Inference
from cora.pc.learn import Learning
from cora.pc.presets import preset
from cora.types import Evidence

DEPTH = len(SIZES) - 2
PLAIN = Inference(steps=2, optimiser=optax.sgd(0.2))


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def goal_within(hierarchy, evidence):
    """The same goal asked of the second Level (a stack of two) as well."""
    read = hierarchy[-1]
    taught = hierarchy[1]._replace(readout=lambda tree, z, context: z[:, :3], error=read.error)
    both = jnp.stack([evidence.goals[-1][0]] * 2)
    return (hierarchy[0], taught, *hierarchy[2:]), evidence._replace(goals=(None, both, evidence.goals[-1]))


def clamped_top(hierarchy, evidence):
    """The highest value node is clamped in place of a goal."""
    silent = hierarchy[-1]._replace(readout=None, error=None)
    return (*hierarchy[:-1], silent), evidence._replace(goals=(), top=jnp.ones((8, SIZES[-2])))


@pytest.mark.parametrize("steps", [0, 2, DEPTH + 2])
@pytest.mark.parametrize("asked", [None, goal_within, clamped_top])
def test_what_is_left_out_is_zero(steps, asked):
    """Gradients, states, errors and traces are those of the whole computation, before, when and after errors arrive."""
    hierarchy, params, evidence = network()
    if asked is not None:
        hierarchy, evidence = asked(hierarchy, evidence)
    energy, rule = Energy(hierarchy, precision=(0.5, 1.0, 2.0, 1.5)), replace(PLAIN, steps=steps)
    whole = learner(energy, (rule, Learning()))(params, evidence)
    near(learner(energy, (replace(rule, wave=True), Learning()))(params, evidence), whole, 1e-14)
    if asked is None and steps == 2:
        assert not np.any(whole[1].errors.state[0]) and np.any(whole[1].errors.state[1][1])


@pytest.mark.parametrize("fields", [
    {"optimiser": optax.adam(0.05), "precision": lambda step: jnp.arange(1.0, DEPTH + 1) + step, "stop": 0.5},
    {"optimiser": optax.sgd(0.1, momentum=0.9, nesterov=True), "keep": "stale"},
    {"linearise": "forward", "shortcut": (2, 0.3)}, {"keep": "arrival", "steps": DEPTH + 1},
])
def test_so_it_is_under_the_other_choices_of_a_rule(fields):
    hierarchy, params, evidence = network()
    rule = replace(PLAIN, **fields)
    whole, part = (learner(Energy(hierarchy), (replace(rule, wave=on), Learning()))(params, evidence)
                   for on in (False, True))
    near(part, whole, 1e-13)


@pytest.mark.parametrize("steps", [1, 5, 40])
@pytest.mark.parametrize("reach", [1, 3])
def test_stages_cover_every_step_once_and_never_leave_out_a_level_that_moves(steps, reach):
    hierarchy, _, evidence = network()
    deep = Energy((hierarchy[0], hierarchy[1]._replace(repeat=18), hierarchy[2]))
    found = list(wave.stages(deep, evidence, reach, steps))
    assert [step for part, _ in found for step in part] == list(range(steps))
    for part, stand in found:
        assert all(stand <= max(0, deep.depth - 1 - reach * step) for step in part)
        assert deep.depth - stand <= wave.GROWTH * (deep.depth - wave.standing(deep, evidence, reach, part[0]))


def test_the_products_saved_are_those_of_levels_not_reached():
    """Twelve equal levels and four steps: the work of settling and learning is near (1 + 2 + 3 + 4 + 5) / (5 * 12)."""
    net = chain.mlp((32,) * 14, jnp.tanh, bias=False)
    params = jax.eval_shape(net.init, jax.random.key(0))
    goal = jax.ShapeDtypeStruct((1, 64, 32), jnp.float32)
    evidence = Evidence(goal, (*(None,) * (len(net.hierarchy) - 1), goal))
    evidence = evidence._replace(input=jax.ShapeDtypeStruct((64, 32), jnp.float32))

    def flops(rule):
        with mock.patch.object(jax.lax, "scan", partial(jax.lax.scan, unroll=True)):
            lowered = learner(Energy(net.hierarchy), rule).lower(params, evidence)
        return lowered.compile().cost_analysis()["flops"]

    forward = compiled(lambda p, x: [x := jnp.tanh(x) @ w for w in p])
    pass_ = forward.lower([jax.ShapeDtypeStruct((32, 32), jnp.float32)] * 12, evidence.input).compile()
    pass_ = pass_.cost_analysis()["flops"]
    rule, learning = preset("pc", net.hierarchy, 4, 0.1)
    assert rule.wave
    with_wave, without = (flops((replace(rule, wave=on), learning)) - pass_ for on in (True, False))
    assert 0.2 < with_wave / without < 0.36


def test_noise_moves_every_level_at_once():
    with pytest.raises(ValueError, match="wave = True"):
        Inference(wave=True, noise=0.1)
    with pytest.raises(ValueError, match="wave = True"):
        Inference(wave=True, variable="error")


def test_a_decoder_pulls_at_its_own_level_and_the_one_below_from_the_start():
    hierarchy, _, evidence = network()
    back = [level._replace(decode=lambda tree, z, context: z) for level in hierarchy]
    assert wave.standing(Energy(hierarchy), evidence, 1, 0) == DEPTH - 1
    assert wave.standing(Energy((*hierarchy[:-1], back[-1])), evidence, 1, 0) == DEPTH - 2
    assert wave.standing(Energy(tuple(back)), evidence, 1, 0) == 0
