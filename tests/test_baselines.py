"""Laws of the pixel baselines: against block means, under reversal, for odd sizes."""

import numpy as np
import pytest

from cora.measure import baselines


def films(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_pixels_are_grey_block_means_in_order() -> None:
    video = films(3, 16, 64, 64)
    grey = (video[:, 1::2] * np.array([0.299, 0.587, 0.114])).sum(-1) / 255
    means = grey.reshape(3, 8, 32, 2, 32, 2).mean((3, 5))
    np.testing.assert_allclose(baselines.pixels(video), means.reshape(3, -1), atol=1e-5)
    reverse = baselines.pixels(video[:, ::-1]).reshape(3, 8, -1)
    assert not np.allclose(reverse, baselines.pixels(video).reshape(3, 8, -1))


@pytest.mark.parametrize("size", [20, 32, 45, 112])
def test_shrinking_keeps_the_mean_and_never_enlarges(size: int) -> None:
    image = np.random.default_rng(0).random((2, size, size)).astype(np.float32)
    small = baselines._shrink(image, 32)
    assert small.shape == (2, min(size, 32), min(size, 32))
    np.testing.assert_allclose(small.mean((1, 2)), image.mean((1, 2)), rtol=1e-5)


def test_motion_energy_is_blind_to_direction_and_to_still_images() -> None:
    video = films(2, 5, 32, 32)
    energy = baselines.motion_energy(video)
    np.testing.assert_allclose(energy, baselines.motion_energy(video[:, ::-1]), atol=1e-6)
    assert not baselines.motion_energy(np.repeat(video[:, :1], 4, axis=1)).any()
    blink = np.zeros((1, 3, 32, 32, 3), np.uint8)
    blink[0, 1, 4, 9] = 255
    expected = np.zeros((32, 32))
    expected[4, 9] = 1.0  # on and off: two differences of 1 in two steps
    np.testing.assert_allclose(baselines.motion_energy(blink)[0], expected.ravel(), atol=1e-6)


def test_short_clips_repeat_frames_and_wrong_ones_are_refused() -> None:
    assert baselines.pixels(films(1, 1, 32, 32)).shape == (1, 8 * 32 * 32)
    with pytest.raises(ValueError, match="at least 2"):
        baselines.motion_energy(films(1, 1, 32, 32))
    with pytest.raises(ValueError, match="must be uint8"):
        baselines._require_clips(films(1, 8, 32, 32).astype(np.float32))
