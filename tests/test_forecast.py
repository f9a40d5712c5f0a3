"""Laws of the pictures of a forecast: tokens are put where they belong, and the most alike one is the most alike."""

import jax
import jax.numpy as jnp
import numpy as np

from cora import config
from cora.measure import forecast
from cora.nets.vit import patchify
from cora.pc import masks

MODEL = config.Model(frames=8, size=(16, 24), patch=8, width=24, heads=2, predictor_width=12, predictor_heads=1)


def clips_of(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 16, 24, 3)).astype(np.uint8)


def test_the_cells_of_a_clip_are_its_patches():
    clips = clips_of(2, 0)
    patches = np.asarray(patchify(jnp.asarray(clips, jnp.float32), 2, 8))
    np.testing.assert_array_equal(forecast.cells(clips, MODEL).reshape(2, 24, -1), patches)


def test_replaced_cells_stand_where_they_are_hidden_and_nothing_else_moves():
    clips, other = clips_of(2, 0), clips_of(2, 1)
    hidden = np.array([[0, 7, 23], [5, 6, 11]])
    pixels = forecast.cells(other, MODEL)[np.arange(2)[:, None], hidden]
    found = forecast.replaced(clips, hidden, pixels, MODEL)
    for clip in range(2):
        for t in range(8):
            for y in range(16):
                for x in range(24):
                    token = (t // 2) * 6 + (y // 8) * 3 + x // 8
                    source = other if token in hidden[clip] else clips
                    assert (found[clip, t, y, x] == source[clip, t, y, x]).all()


def test_the_most_alike_token_has_the_largest_cosine():
    rng = np.random.default_rng(0)
    asked, known = rng.normal(size=(7, 5)), rng.normal(size=(30, 5)) * rng.uniform(0.1, 9, (30, 1))
    plain = [max(range(30), key=lambda k: a @ known[k] / np.linalg.norm(known[k])) for a in asked]
    assert forecast.alike(asked, known).tolist() == plain


def test_a_cut_shows_so_many_steps_and_asks_for_all_later_ones():
    for seen in (1, 2, 3):
        kind = masks.kinds(forecast.cut_of(seen, MODEL), MODEL.grid)["future"]
        drawn = masks.sample(jax.random.key(0), kind, 1)
        assert np.asarray(drawn.context)[0].tolist() == list(range(6 * seen))
        assert np.asarray(drawn.target)[0].tolist() == list(range(6 * seen, 24))
