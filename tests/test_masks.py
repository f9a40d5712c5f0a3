"""Masks: fixed sizes, no overlap, and no place or time that is favoured."""

import jax
import numpy as np
import pytest

from cora import config
from cora.pc import masks

GRID = (8, 6, 6)
KINDS = masks.kinds(config.Mask(), GRID)


@pytest.fixture(scope="module")
def drawn():
    return {name: jax.jit(masks.sample, static_argnums=(1, 2))(jax.random.key(0), blocks, 2000)
            for name, blocks in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_fixed_ids_sorted_and_sets_disjoint(drawn, kind):
    context, target = (np.asarray(x) for x in drawn[kind])
    assert context.shape[1] == KINDS[kind].context and target.shape[1] == KINDS[kind].target
    assert (np.diff(context) > 0).all() and (np.diff(target) > 0).all()
    assert context.min() >= 0 and target.max() < np.prod(GRID)
    assert all(not set(c) & set(t) for c, t in zip(context, target, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["context", "target"])
def test_every_time_is_as_likely_as_any_other(drawn, kind, which):
    ids = np.asarray(getattr(drawn[kind], which))
    counts = np.bincount(ids.ravel() // 36, minlength=8)
    # Within a clip the draws are without replacement, which only narrows the spread: a bound, not an estimate.
    assert np.abs(counts / counts.mean() - 1).max() < 0.03


def test_context_lies_outside_the_blocks(drawn):
    """With short masks there is nearly always room, so context places and hidden places must not mix."""
    context, target = (np.asarray(x) for x in drawn["short"])
    places = [len(set(c % 36) & set(t % 36)) for c, t in zip(context, target, strict=True)]
    assert np.mean([p == 0 for p in places]) > 0.6


def test_mirror_symmetry_of_space(drawn):
    for kind in KINDS:
        target = np.asarray(drawn[kind].target)
        counts = np.bincount((target % 36).ravel(), minlength=36).reshape(6, 6)
        assert np.abs(counts - counts[::-1]).max() < 0.12 * counts.mean()
        assert np.abs(counts - counts[:, ::-1]).max() < 0.12 * counts.mean()


def test_clips_and_keys_differ(drawn):
    target = np.asarray(drawn["short"].target)
    assert len({tuple(t) for t in target}) > 0.99 * len(target)
    other = masks.sample(jax.random.key(1), KINDS["short"], 4)
    assert not np.array_equal(other.target, target[:4])


def test_the_smallest_grid_still_works():
    for blocks in masks.kinds(config.Mask(), (2, 2, 2)).values():
        context, target = masks.sample_one(jax.random.key(0), blocks)
        assert len(context) >= 1 and len(target) >= 1
