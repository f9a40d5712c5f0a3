"""Laws of the targets, of the health numbers and of the readout: what each must not see, and known values."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cora import config
from cora.measure import features
from cora.pc import diagnose, targets
from cora.store.weights import Pretrained


@pytest.fixture
def z():
    return 3 + 2 * jax.random.normal(jax.random.key(0), (5, 8 * 6, 7))


def test_whole_targets_have_unit_variance_in_every_token(z):
    t = np.asarray(targets.of(config.Target(of="whole"), 8)(z))
    np.testing.assert_allclose(t.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(t.std(-1), 1, atol=1e-3)


def test_change_does_not_see_what_stands_still(z):
    goal = targets.of(config.Target(of="change"), 8)
    still = jnp.tile(jax.random.normal(jax.random.key(1), (5, 6, 7)), (1, 8, 1))
    np.testing.assert_allclose(goal(z + 10 * still), goal(z), atol=2e-4)
    np.testing.assert_allclose(goal(still), 0, atol=1e-3)


def test_change_has_unit_mean_square_in_every_channel_whatever_its_scale(z):
    goal = targets.of(config.Target(of="change"), 8)
    t = np.asarray(goal(z))
    np.testing.assert_allclose(np.square(t).mean((0, 1)), 1, atol=1e-3)
    np.testing.assert_allclose(goal(z * jnp.arange(1.0, 8.0)[None, None]), t, atol=1e-4)


def test_errors_against_hand_values():
    a, b = jnp.array([[[1.0, -2.0]]]), jnp.array([[[0.5, 2.0]]])
    for name, value in {"absolute": 4.5 / 2, "smooth": (0.5**2 / 2 + 3.5) / 2, "squared": (0.5**2 + 16) / 4}.items():
        assert targets.error(config.Target(error=name))(a, b).tolist() == [value]


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_effective_rank_of_a_sample_of_known_rank(rank):
    left, right = jax.random.normal(jax.random.key(0), (4000, rank)), jax.random.orthogonal(jax.random.key(1), 12)
    found = float(diagnose.effective_rank(left @ right[:rank] + 5.0))
    assert abs(found - rank) < 0.03 * rank + 0.02


def test_a_collapsed_sample_has_no_spread():
    assert float(diagnose.spread(jnp.full((50, 4), 7.0))) == 0
    assert abs(float(diagnose.spread(jax.random.normal(jax.random.key(0), (5000, 4)))) - 1) < 0.02


class Still(Pretrained):
    """An encoder whose latents do not depend on the clip; `shift` is what a clip has in common with itself."""

    model = config.Model(frames=8, size=32, patch=8, width=24, heads=2, levels=2)

    def __init__(self, shift):
        self.shift = shift

    def __call__(self, video):
        z = np.random.default_rng(0).normal(size=(2, len(video), 4, 16, 24)) + self.shift
        return z.reshape(2, len(video), 64, 24).astype(np.float32)


def test_the_readout_sees_change_and_only_change():
    video = np.zeros((3, 8, 32, 32, 3), np.uint8)
    place = np.random.default_rng(1).normal(size=(1, 3, 1, 16, 24))
    plain, shifted = (features.pooled(Still(shift))(video) for shift in (0.0, 4 * place))
    assert plain.shape == (2, 3, 4 * 4 * 24 + 16 * 24)
    np.testing.assert_allclose(plain, shifted, atol=1e-5)
    assert plain.std() > 0.1


def test_a_clip_of_one_time_step_is_read_by_what_it_shows():
    """Nothing changes in it, and nothing but zeros would be left."""
    class Picture(Still):
        model = replace(Still.model, frames=2)

        def __call__(self, video):
            return super().__call__(video)[:, :, :16]

    read, z = features.pooled(Picture(0.0))(np.zeros((3, 2, 32, 32, 3), np.uint8)), Picture(0.0)(np.zeros(3))
    assert read.shape == (2, 3, 4 * 24) and read.std() > 0.1
    np.testing.assert_allclose(read[..., :24], z.reshape(2, 3, 4, 4, 24)[:, :, :2, :2].mean((2, 3)), rtol=1e-5)
