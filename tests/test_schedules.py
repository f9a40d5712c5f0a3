"""Schedules: equal to V-JEPA's own step by step, and wired to the config as it says."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cora import config, train
from cora.pc import schedules

ORACLE = np.load(Path(__file__).parent / "oracles" / "schedules.npz")
STEPS = 900
LAID_OUT = 1125
"""Steps of the schedule, 1.25 times those that run."""
TRACES = {
    "cosine_lr": schedules.warmup_cosine(2e-4, 6.25e-4, 1e-6, 120, LAID_OUT),
    "cosine_lr_whole": schedules.warmup_cosine(2e-4, 6.25e-4, 1e-6, 120, STEPS),
    "constant_lr": schedules.warmup_constant(1e-4, 5.25e-4, 120),
    "cooldown_lr": schedules.cooldown(5.25e-4, 1e-6, LAID_OUT),
    "weight_decay": schedules.cosine(0.04, 0.4, LAID_OUT),
    "momentum": schedules.linear(0.998, 1.0, float(LAID_OUT)),
}


@pytest.mark.parametrize("name", TRACES)
def test_every_step_is_as_in_vjepa(name):
    with jax.enable_x64(True):
        trace = jax.jit(jax.vmap(TRACES[name]))(jnp.arange(STEPS))
    np.testing.assert_allclose(trace, ORACLE[name], rtol=1e-7)
    single = jax.jit(jax.vmap(TRACES[name]))(jnp.arange(STEPS))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, ORACLE[name], rtol=1e-6, atol=1e-7 * ORACLE[name].max())


@pytest.mark.parametrize(("name", "end"), [("cosine_lr", 1e-6), ("cooldown_lr", 1e-6), ("weight_decay", 0.4),
                                           ("momentum", 1.0), ("constant_lr", 5.25e-4)])
def test_beyond_its_end_a_schedule_stays_there(name, end):
    for step in (LAID_OUT, 2 * LAID_OUT, 10 * LAID_OUT):
        assert float(TRACES[name](step)) == pytest.approx(end, rel=1e-5)


@pytest.mark.parametrize(("name", "chosen"), [
    ("cosine_lr", {"schedule": "cosine", "lr": 6.25e-4, "lr_start": 2e-4, "lr_end": 1e-6, "warmup": 120 / STEPS}),
    ("constant_lr", {"schedule": "constant", "lr": 5.25e-4, "lr_start": 1e-4, "warmup": 120 / STEPS}),
    ("cooldown_lr", {"schedule": "cooldown", "lr": 5.25e-4, "lr_end": 1e-6}),
])
def test_a_config_names_its_schedule(name, chosen):
    made = config.Optim(stretch=1.25, **chosen)
    trace = jax.jit(jax.vmap(train.schedule(made, STEPS)))(jnp.arange(STEPS))
    np.testing.assert_allclose(trace, ORACLE[name], rtol=2e-6, atol=1e-10)


def test_the_teacher_s_momentum_is_stretched_too():
    made = config.Pretrain(target=config.Target(momentum=(0.998, 1.0)), optim=config.Optim(stretch=1.25),
                           run=config.Run(steps=STEPS))
    trace = jax.jit(jax.vmap(lambda step: train.momentum(made, step)))(jnp.arange(STEPS))
    np.testing.assert_allclose(trace, ORACLE["momentum"], rtol=1e-6)


PARAMS = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full((3,), 2.0), "mask_token": jnp.full((1, 3), 2.0)}
GRADIENT = jax.tree.map(lambda p: p / 20, PARAMS)


def steps_of(made, gradient, steps=1):
    """The parameters after so many equal gradients of a run of 10 steps."""
    tx = train.optimiser(made, 10)

    @jax.jit
    def step(params, state):
        update, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, update), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        params, state = step(params, state)
    return params


@pytest.mark.parametrize("end", [None, 0.5])
def test_weight_decay_is_a_rate_of_matrices_alone_and_follows_its_schedule(end):
    rate, steps = 0.1, 4
    made = config.Optim(schedule="constant", warmup=0.0, lr=rate, weight_decay=0.2, weight_decay_end=end)
    still = steps_of(made, jax.tree.map(jnp.zeros_like, PARAMS), steps)
    expected = 2.0
    for i in range(steps):
        decay = 0.2 if end is None else end + (0.2 - end) * 0.5 * (1 + np.cos(np.pi * (i + 1) / 10))
        expected *= 1 - rate * decay
    np.testing.assert_allclose(still["kernel"], expected, rtol=1e-6)
    for name in ("bias", "mask_token"):
        np.testing.assert_array_equal(still[name], PARAMS[name])


def test_epsilon_and_the_largest_norm_reach_the_update():
    """Adam's first step is lr g / (|g| + eps), g already shortened to the largest norm."""
    rate, eps, clip = 0.1, 0.05, 0.2
    made = config.Optim(schedule="constant", warmup=0.0, lr=rate, weight_decay=0.0, eps=eps)
    norm = float(optax.tree.norm(GRADIENT))
    assert norm > clip
    for bound, factor in ((0.0, 1.0), (clip, clip / norm), (2 * norm, 1.0)):
        g = 0.1 * factor
        moved = steps_of(config.Optim(**(vars(made) | {"clip": bound})), GRADIENT)
        np.testing.assert_allclose(2.0 - moved["bias"], rate * g / (g + eps), rtol=1e-5)


def test_a_rescaled_run_keeps_the_teacher_s_share_and_agrees_with_the_ema_rule():
    lr, momentum = schedules.rescaled(5.25e-4, 0.99925, batch=3072 / 48, steps=252_000 / 3000)
    assert lr == pytest.approx(5.25e-4 / 8)
    assert momentum**3000 == pytest.approx(0.99925**252_000, rel=1e-9)
    k = 16.0  # as many clips as before, in batches k times as large: Busbridge et al.'s m ** k
    assert schedules.rescaled(1.0, 0.99, batch=1 / k, steps=k) == (pytest.approx(4.0), pytest.approx(0.99**k))
    assert schedules.rescaled(1e-3, 0.9, batch=1.0, steps=1.0) == (1e-3, 0.9)
