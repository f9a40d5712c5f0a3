"""Masks: fixed counts, no overlap, no favoured place or time, and Meta's collator where that is asked for."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import compiled

from cora import config, train
from cora.nets.hierarchy import build
from cora.options import KINDS
from cora.pc import masks

GRID = (4, 10, 10)
CLIPS = 1000
CHOSEN = {"short": (0.25, 0.25), "short_scale": 0.06, "long": (0.15, 0.5)}
"""Blocks that leave room for the context on so small a grid."""
ONE_BLOCK = {"kinds": ("long",), "short": (0.25, 0.5), "short_scale": 0.15, "long_blocks": 1,
             "long_scale": 0.25, "long": (0.15, 0.16), "compat": "meta"}
ORACLE = np.load(Path(__file__).parent / "oracles" / "masks.npz")
draw = compiled(masks.sample, static_argnums=(1, 2))


def kinds(grid=GRID, **fields):
    return masks.kinds(config.Mask(**({"kinds": KINDS} | CHOSEN | fields)), grid)


@pytest.fixture(scope="module")
def drawn():
    """(kind, masks, state of every token) of each kind; block masks also as Meta would cut them."""
    every = kinds() | {"short, meta": kinds(compat="meta")["short"], "one, meta": kinds(**ONE_BLOCK)["long"]}
    found = {name: (kind, draw(jax.random.key(0), kind, CLIPS)) for name, kind in every.items()}
    return {name: (kind, made, masks.states(made, GRID)) for name, (kind, made) in found.items()}


NAMES = (*KINDS, "short, meta", "one, meta")
UNBIASED = [name for name in KINDS if name != "future"]


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_fixed_ids_sorted_and_sets_disjoint(drawn, name):
    kind, made, state = drawn[name]
    context, target = (np.asarray(x) for x in made)
    assert context.shape == (CLIPS, kind.context) and target.shape == (CLIPS, kind.target)
    assert (np.diff(context) > 0).all() and (np.diff(target) > 0).all()
    assert context.min() >= 0 and target.max() < np.prod(GRID)
    for which, count in ((1, kind.context), (2, kind.target)):
        assert (np.sum(state == which, (1, 2, 3)) == count).all()


@pytest.mark.parametrize("name", KINDS)
def test_counts_are_the_fractions_that_the_config_gives(drawn, name):
    kind = drawn[name][0]
    seen, asked = (0.5, 0.5) if name == "future" else getattr(config.Mask(kinds=KINDS, **CHOSEN), name)
    assert (kind.context, kind.target) == (seen * 400, asked * 400)


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("which", [1, 2])
def test_every_time_is_as_likely_as_any_other(drawn, name, which):
    counts = np.sum(drawn[name][2] == which, (0, 2, 3))
    # Within a clip the draws are without replacement, which only narrows the spread: a bound, not an estimate.
    assert np.abs(counts / counts.mean() - 1).max() < 0.03


@pytest.mark.parametrize(("name", "border"), [("tube", 0), ("random", 0), ("future", 0), ("short", 2)])
def test_every_place_is_as_likely_as_any_other(drawn, name, border):
    """Of blocks only off the border, which fewer positions of a block reach."""
    state = drawn[name][2][:, :, border : 10 - border, border : 10 - border]
    for which in (1, 2):
        share = np.mean(state == which, (0, 1))
        once = np.sqrt(share.mean() / CLIPS)  # a bound on the spread: a place counts once a clip at the least
        assert np.abs(share - share.mean()).max() < 4 * once


def test_large_blocks_are_mirror_symmetric(drawn):
    counts = np.sum(drawn["long"][2] == 2, (0, 1))
    for mirrored in (counts[::-1], counts[:, ::-1]):
        assert np.abs(counts - mirrored).max() < 0.15 * counts.mean()


def test_context_lies_outside_the_blocks(drawn):
    """With short masks there is nearly always room, so context places and hidden places must not mix."""
    state = drawn["short"][2]
    mixed = np.any((state == 1).any(1) & (state == 2).any(1), (1, 2))
    assert mixed.mean() < 0.1


def test_a_tube_lasts_the_whole_clip(drawn):
    state = drawn["tube"][2]
    assert (state == state[:, :1]).all()
    assert len({clip.tobytes() for clip in state}) > 0.99 * CLIPS


@pytest.mark.parametrize("cut", [0.25, 0.7])
def test_the_future_is_not_seen_and_only_it_is_predicted(cut):
    kind = kinds(cut=cut, future=(1.0, 0.5))["future"]
    state = masks.states(draw(jax.random.key(0), kind, 16), GRID)
    first = round(cut * 4)
    assert (state[:, :first] == 1).all() and (state[:, first:] != 1).all()
    assert np.mean(state[:, first:] == 2) == 0.5


def test_clips_keys_and_kinds_named_twice_differ(drawn):
    target = np.asarray(drawn["short"][1].target)
    assert len({tuple(t) for t in target}) > 0.99 * len(target)
    other = draw(jax.random.key(1), drawn["short"][0], CLIPS)
    assert not np.array_equal(other.target[:4], target[:4])
    made = config.Pretrain(mask=config.Mask(kinds=("random", "random", "future")))
    network = build(made.model, made.target, made.learn)
    sight = compiled(lambda video: train.look(network, made, jnp.asarray(3), video))(
        jnp.zeros((4, 16, 64, 64, 3), jnp.uint8))
    assert len(sight.masks) == 3 and not np.array_equal(sight.masks[0].target, sight.masks[1].target)
    assert sight.masks[2].context.max() < sight.masks[2].target.min()


@pytest.mark.parametrize("name", ["long", "tube", "future"])
def test_the_smallest_grid_still_works(name):
    kind = kinds((2, 2, 1))[name]
    state = masks.states(draw(jax.random.key(0), kind, 2), kind.grid)
    assert (state == 1).any((1, 2, 3)).all() and (state == 2).any((1, 2, 3)).all()


def test_a_grid_that_cannot_be_parted_is_refused():
    with pytest.raises(config.ConfigError, match="future"):
        kinds((1, 4, 4))
    with pytest.raises(config.ConfigError, match="tube"):
        kinds((4, 1, 1))


# ------------------------------------------------------------------------------------------------------------ Meta's


@pytest.mark.parametrize("name", ["short", "long"])
@pytest.mark.parametrize("side", [4, 16])
def test_blocks_have_the_sides_that_meta_gives_them(name, side):
    kind = masks.kinds(config.Mask(), (8, side, side))[name]
    aspects = ORACLE[f"{name}_{side}_aspect"]
    for found in (masks.sides(aspects, kind, np), masks.sides(jnp.asarray(aspects), kind)):
        np.testing.assert_array_equal(np.stack(found, 1), ORACLE[f"{name}_{side}_sides"])


@pytest.mark.parametrize("name", ["short", "long"])
def test_a_batch_is_cut_as_meta_cuts_it(name):
    context, target = masks.cut(ORACLE[f"{name}_hidden"], 8)
    np.testing.assert_array_equal(context, ORACLE[f"{name}_context"])
    np.testing.assert_array_equal(target, ORACLE[f"{name}_target"])


@pytest.mark.parametrize(("name", "batch", "seen", "asked", "first", "last"), [
    ("short", 24, 0.240, 0.472, 97.7, 4.2),
    ("long", 24, 0.059, 0.703, 47.3, 1.4),
    ("short", 1, 0.380, 0.620, 97.3, 97.3),
    ("long", 1, 0.188, 0.812, 48.1, 48.1),
])
def test_statistics_of_meta_s_collator(name, batch, seen, asked, first, last):
    """Shares, and tokens seen in the first and last time step, of Meta's own generator at 256 pixels and 16 frames."""
    rng, kind = np.random.default_rng(0), masks.kinds(config.Mask(), (8, 16, 16))[name]
    rows = []
    for _ in range(60 if batch > 1 else 200):
        context, target = (np.asarray(ids) for ids in masks.collate(rng, kind, batch))
        rows.append((context.shape[1] / 2048, target.shape[1] / 2048, np.sum(context < 256) / batch,
                     np.sum(context >= 7 * 256) / batch))
    means, error = np.mean(rows, 0), np.std(rows, 0) / np.sqrt(len(rows))
    # The published means are themselves means of as many batches: the difference has twice the variance of one.
    assert (np.abs(means - (seen, asked, first, last)) < 3 * np.sqrt(2) * error + 1e-3).all(), (means, error)


def test_under_meta_clips_share_one_size_and_the_end_is_starved(drawn):
    for name in ("short, meta", "one, meta"):
        frames = np.mean(np.sum(drawn[name][2] == 1, (2, 3)), 0)
        assert frames[0] > 4 * frames[-1] and (np.diff(frames) <= 0).all(), frames
    sizes = []
    for key in range(4):
        state = masks.states(draw(jax.random.key(key), drawn["one, meta"][0], CLIPS), GRID)[:, 0] == 2
        sizes.append({(int(clip.any(1).sum()), int(clip.any(0).sum())) for clip in state})
    assert [len(size) for size in sizes] == [1] * 4 and len(set.union(*sizes)) > 1
