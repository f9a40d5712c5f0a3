"""Laws of folds, splits and intervals: groups stay whole, and what varies is what the interval covers."""

import itertools

import numpy as np
import pytest

from cora.measure import groups


def test_no_fold_divides_a_group_and_none_is_empty() -> None:
    rng = np.random.default_rng(0)
    for many, seed in itertools.product((2, 3, 5, 6, 17), range(3)):
        number = np.concatenate([np.arange(many), rng.integers(many, size=60)])
        group, label = number.astype(str), rng.integers(4, size=len(number))
        fold = groups.folds(label, group, seed)
        assert set(fold.tolist()) == set(range(min(many, groups.FOLDS)))
        assert all(len(set(fold[group == name].tolist())) == 1 for name in np.unique(group))
        assert np.array_equal(fold, groups.folds(label, group, seed))


@pytest.mark.parametrize("group", [np.full(60, "one"), np.full(60, ""), np.arange(60).astype(str)])
def test_without_groups_every_fold_has_its_share_of_every_class(group: np.ndarray) -> None:
    label = np.repeat([0, 1, 2], [30, 20, 10])
    fold = groups.folds(label, group, 0)
    counts = np.array([[((fold == f) & (label == c)).sum() for c in range(3)] for f in range(5)])
    assert np.array_equal(counts, np.tile([6, 4, 2], (5, 1)))


def test_clips_without_a_group_are_no_group_of_their_own() -> None:
    group = np.array(["", "a", "", "b", "a", ""])
    unit = groups.units(group)
    assert len(np.unique(unit)) == 5 and unit[1] == unit[4]


def test_groups_of_one_class_are_spread_over_folds() -> None:
    label = np.repeat(np.arange(4), 30)  # as in UCF-101: a group is one video, of one class
    group = np.array([f"{c}-{i % 10}" for i, c in enumerate(label)])
    fold = groups.folds(label, group, 1)
    assert all(((fold == f) & (label == c)).sum() == 6 for f in range(5) for c in range(4))


def test_drawn_split_is_stratified_seeded_and_keeps_groups_whole() -> None:
    label = np.repeat([0, 1, 2], [40, 20, 10])
    single = groups.split_rows(label, np.full(70, ""), 0)
    assert [int((single[label == c] == "test").sum()) for c in range(3)] == [12, 6, 3]
    assert np.array_equal(single, groups.split_rows(label, np.full(70, ""), 0))
    assert not np.array_equal(single, groups.split_rows(label, np.full(70, ""), 1))
    label, group = np.tile(np.repeat(np.arange(3), 4), 10), np.repeat(np.arange(10), 12).astype(str)
    whole = groups.split_rows(label, group, 0)
    assert sum(len(set(whole[group == g].tolist())) for g in np.unique(group)) == 10
    assert len(np.unique(group[whole == "test"])) == 3


def test_interval_covers_and_comes_from_the_seed() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(30), 6).astype(str)
    covered = 0
    for trial in range(200):
        chance = np.repeat(rng.beta(4, 2, size=30), 6)  # groups differ; their mean is 2/3
        (low, high), over = groups.interval(rng.random(180) < chance, group, trial)
        assert over == "groups"
        covered += low <= 2 / 3 <= high
    assert 0.88 <= covered / 200 <= 0.99
    right, uneven = rng.random(180) < 0.5, rng.integers(30, size=180).astype(str)
    assert groups.interval(right, uneven, 4) == groups.interval(right, uneven, 4) != groups.interval(right, uneven, 5)


def test_interval_over_groups_is_wider_where_groups_agree_and_needs_three_of_them() -> None:
    right = np.repeat(np.arange(12) % 2 == 0, 10)
    group = np.repeat(np.arange(12), 10).astype(str)
    (low, high), _ = groups.interval(right, group, 0)
    (inner_low, inner_high), over = groups.interval(right, np.arange(120).astype(str), 0)
    assert over == "clips" and low < inner_low - 0.05 and high > inner_high + 0.05
    assert groups.interval(right, np.where(right, "a", "b"), 0) == ((inner_low, inner_high), "clips")


def test_each_named_group_is_judged_by_its_own_rows() -> None:
    right, group = np.array([1, 1, 0, 0, 1, 0], bool), np.array(["b", "b", "b", "a", "a", ""])
    found = groups.judged(right, group, 0)
    assert found.accuracy == 0.5 and found.by_group == {"a": 0.5, "b": pytest.approx(2 / 3)}
    assert groups.sizes(group) == {"a": 2, "b": 3}
    assert groups.judged(right, np.arange(6).astype(str), 0).by_group == {}  # a row each: nothing to add
    assert groups.sizes(np.arange(6).astype(str)) == {}


def test_a_lead_covers_seeds_and_groups() -> None:
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):  # seeds differ, groups differ, and each pair of them; the mean is .1
        gaps = 0.1 + rng.normal(size=(8, 1)) / 20 + rng.normal(size=(1, 12)) / 20 + rng.normal(size=(8, 12)) / 20
        mean, (low, high) = groups.lead(gaps, np.full(12, 5), trial)
        assert mean == pytest.approx(gaps.mean()) and low <= mean <= high
        covered += low <= 0.1 <= high
    assert 0.86 <= covered / 200 <= 0.995
    mean, (low, high) = groups.lead(np.full((3, 4), 0.25), np.array([1, 2, 3, 9]), 0)
    assert (mean, low, high) == pytest.approx((0.25,) * 3)
    for gaps in (np.repeat(np.eye(3)[:, :1], 4, axis=1), np.repeat(np.eye(4)[:1], 3, axis=0)):
        low, high = groups.lead(gaps, np.ones(gaps.shape[1], int), 0)[1]
        assert low < high - 0.3  # seeds are drawn, and so are groups


def test_a_lead_is_the_difference_of_accuracies_however_uneven_groups_are() -> None:
    """One person with many clips weighs as much as those clips do in the accuracies; three with few, little."""
    gaps, rows = np.array([[0.1, -0.2, -0.2, -0.2]]), np.array([100, 5, 5, 5])
    mean, (low, high) = groups.lead(gaps, rows, 0)
    assert mean == pytest.approx((10 - 3) / 115) and low == pytest.approx(-0.2) and high > mean
    apart = groups.lead(np.repeat(gaps, [100, 5, 5, 5], axis=1), np.ones(115, int), 0)[0]
    assert apart == pytest.approx(mean)


def test_two_accuracies_are_paired_row_by_row() -> None:
    """The lead is the difference of the two accuracies; where the gap is everywhere the same it has no interval, and
    where groups disagree theirs is wide."""
    rng, group = np.random.default_rng(0), np.repeat(np.arange(10), [60, *[4] * 9]).astype(str)
    own, other = rng.random(96) < 0.7, rng.random(96) < 0.5
    found = groups.paired(own, other, group, 0)
    assert found["ahead"] == pytest.approx(own.mean() - other.mean())
    assert found["ahead_ci95"][0] < found["ahead"] < found["ahead_ci95"][1]
    assert groups.paired(own, own, group, 0) == {"ahead": 0.0, "ahead_ci95": [0.0, 0.0]}
    better = np.repeat([True, False], 48)  # right where the other is wrong, in half of the groups
    (a, b), (c, d) = (groups.paired(better, ~better, by, 0)["ahead_ci95"]
                      for by in (np.repeat(np.arange(8), 12).astype(str), np.full(96, "")))
    assert b - a > 1.5 * (d - c)
