"""Groups of clips that are never divided: folds, splits, and what an accuracy is worth when clips of one group err
together.

A group is a person, a place or a long video. Nothing here knows a classifier.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cora.measure.table import Table, require

FOLDS = 5
"""At most so many folds; with fewer training groups, one group is held out at a time."""
TEST_SHARE = 0.3
"""Of the rows, where the corpus has no split of its own."""
RESAMPLES = 2000


class Judged(NamedTuple):
    """How many of the test rows are answered rightly."""

    accuracy: float
    ci95: tuple[float, float]
    ci_over: Literal["groups", "clips"]
    """What the interval resamples; clips where there are fewer than three test groups."""
    by_group: dict[str, float]
    """Accuracy on the rows of each named group."""


def units(group: np.ndarray) -> Int[np.ndarray, "n"]:
    """Returns the number of the unit of each row, which is never divided: its group; or the row itself where it has
    none, and for all rows where there is but one group."""
    own = np.array([f"\0{i}" for i in range(len(group))])
    if len(np.unique(group)) == 1:
        return np.arange(len(group))
    return np.unique(np.where(group == "", own, group), return_inverse=True)[1]


def divide(label: Int[np.ndarray, "n"], group: np.ndarray, shares: Sequence[float], seed: int,
           ) -> Int[np.ndarray, "n"]:
    """Returns the part of each row: parts of about the given shares of every class, no unit in two of them.

    Units go largest first (equals in an order from `seed`) to the part p where they add least to
    sum_p sum_class count[p, class]^2 / (share[p] total[class]). No part stays empty that has the same share as
    the others, if there are enough units.
    """
    unit = units(group)
    classes, dense = np.unique(label, return_inverse=True)
    counts = np.zeros((unit.max() + 1, len(classes)))
    np.add.at(counts, (unit, dense), 1)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    total, share = counts.sum(0), np.asarray(shares, float)
    filled, part = np.zeros((len(share), len(classes))), np.zeros(len(counts), int)
    for one in order:
        cost = (filled + counts[one] / 2) @ (counts[one] / total) / share
        part[one] = np.lexsort((filled.sum(1) / share, cost.round(9)))[0]  # rounded: equal costs are ties
        filled[part[one]] += counts[one]
    return part[unit]


def folds(label: Int[np.ndarray, "n"], group: np.ndarray, seed: int) -> Int[np.ndarray, "n"]:
    """Returns the fold in which each training row is held out: at most FOLDS, groups whole, classes balanced."""
    count = min(FOLDS, len(np.unique(units(group))))
    return divide(label, group, [1.0] * count, seed)


def training_folds(table: Table, seed: int) -> Int[np.ndarray, "n"]:
    """Returns `folds` of the training rows of a settled table. Raises ValueError if there are too few to hold any out.
    """
    train = table.split == "train"
    label, group = table.label[train], table.group[train]
    if len(np.unique(label)) < 2 or len(label) < 3:
        raise ValueError(f"{len(label)} training clips in {len(np.unique(label))} class(es): "
                         "to hold some out, at least 3 clips in 2 classes are needed")
    return folds(label, group, seed)


def split_rows(label: Int[np.ndarray, "n"], group: np.ndarray, seed: int) -> np.ndarray:
    """Returns `train` or `test` for each row: TEST_SHARE of every class to test, as near as whole groups allow.

    Raises ValueError if the corpus is too small to have both.
    """
    part = divide(label, group, [1 - TEST_SHARE, TEST_SHARE], seed)
    if len(np.unique(part)) < 2:
        raise ValueError(f"{len(label)} clips in {len(np.unique(units(group)))} groups cannot be split into train "
                         "and test: some class needs clips in at least 2 groups")
    return np.array(["train", "test"])[part]


def settle_split(table: Table, seed: int) -> Table:
    """Returns the table with a split in every row, drawn by `split_rows` where the corpus has none.

    Raises ValueError as `table.require` does, and if no row is for training or none for testing.
    """
    require(table)
    if (table.split == "").all():
        return table._replace(split=split_rows(table.label, table.group, seed))
    for name in ("train", "test"):
        if not (table.split == name).any():
            raise ValueError(f"no row has split {name!r}: name some, or leave the column empty to have one drawn")
    return table


def sizes(group: np.ndarray) -> dict[str, int]:
    """Returns how many rows each named group has; nothing where every row is a group of its own."""
    names, counts = np.unique(group[group != ""], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True)) if len(names) < len(group) else {}


def judged(right: Bool[np.ndarray, "n"], group: np.ndarray, seed: int) -> Judged:
    """Returns the accuracy of answers to test rows, its interval, and that of each named group, unless every row is a
    group of its own."""
    each = {name: float(right[group == name].mean()) for name in sizes(group)}
    return Judged(float(right.mean()), *interval(right, group, seed), each)


def interval(right: Bool[np.ndarray, "n"] | Float[np.ndarray, "n"], group: np.ndarray, seed: int,
             ) -> tuple[tuple[float, float], Literal["groups", "clips"]]:
    """Returns the 95 % interval of an accuracy, or of any mean over rows, by the percentile bootstrap, and what was
    resampled.

    Whole groups are drawn with replacement, because clips of one group err together; with fewer than three
    groups, or groups of one clip, clips are drawn (Field and Welsh, 2007: the cluster bootstrap).
    """
    unit = units(group)
    clips = unit.max() + 1 < 3 or unit.max() + 1 == len(right)
    unit = np.arange(len(right)) if clips else unit
    size, hits = np.bincount(unit), np.bincount(unit, weights=right)
    drawn = np.random.default_rng(seed).multinomial(len(size), np.full(len(size), 1 / len(size)), RESAMPLES)
    low, high = np.quantile(drawn @ hits / (drawn @ size), [0.025, 0.975])
    return (float(low), float(high)), "clips" if clips else "groups"


def lead(gaps: Float[np.ndarray, "S G"], rows: Int[np.ndarray, "G"], seed: int) -> tuple[float, tuple[float, float]]:
    """Returns the mean over all rows of differences of accuracy [seed, group], a group having so many rows, and its
    95 % interval over seeds and groups.

    Seeds and groups are each drawn with replacement, and the two crossed: a little wide rather than narrow (the
    pigeonhole bootstrap, Owen 2007, arXiv 0712.1111).
    """
    rng = np.random.default_rng(seed)
    seeds, groups = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in gaps.shape)
    share = groups * rows / (groups @ rows)[:, None]
    low, high = np.quantile(np.einsum("rs,sg,rg->r", seeds / len(gaps), gaps, share), [0.025, 0.975])
    return float(np.average(gaps.mean(0), weights=rows)), (float(low), float(high))


def paired(own: Bool[np.ndarray, "n"], other: Bool[np.ndarray, "n"], group: np.ndarray, seed: int) -> dict[str, Any]:
    """Returns {ahead: by how much of the rows `own` is right more often than `other`, ahead_ci95: its interval}, which
    is narrower than two intervals tell, for both answer to the same rows."""
    gap = own.astype(float) - other
    return {"ahead": float(gap.mean()), "ahead_ci95": list(interval(gap, group, seed)[0])}
