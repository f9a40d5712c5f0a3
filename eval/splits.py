"""Which rows of a corpus are learned from and which answer, where a study must not look at the test rows.

Some groups of the training split are held out; or all of its rows answer in folds, by probes of the other folds.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cora.measure import attentive, evaluation
from cora.measure.groups import folds
from cora.schema import require
from cora.video import manifest

Row = dict[str, Any]


def held_out(source: Path, groups: list[str], out: Path) -> Path:
    """Writes the training rows of a corpus as a corpus of their own, whose test rows are those of the named groups, and
    returns where it is; where none is named, the corpus as it stands."""
    if not groups:
        return source
    rows = manifest.select(manifest.load(source), "train").clips
    known = sorted({clip.group for clip in rows})
    for group in groups:
        require(group in known, "hold", group, f"no group of the training split; legal: {', '.join(known)}")
    return listed([clip._replace(split="test" if clip.group in groups else "train") for clip in rows], out)


def listed(clips: list[manifest.Clip], out: Path) -> Path:
    """Writes a list of these clips, and returns where it is."""
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "class_name", "group", "split"])
        writer.writerows([clip.path.absolute(), clip.label, clip.class_name, clip.group, clip.split] for clip in clips)
    return out


def training(source: Path, out: Path) -> Path:
    """Writes the labelled training rows of a corpus as a corpus without splits, and returns where it is."""
    rows = manifest.select(evaluation.labelled(source), "train").clips
    return listed([clip._replace(split="") for clip in rows], out)


def folded(reading: evaluation.Reading) -> list[evaluation.Reading]:
    """Returns the same rows once a fold (at most five, groups whole, classes balanced), the fold's for testing."""
    own = next(iter((reading.pooled or reading.tokens).values()))
    part = folds(own.label, own.group, 0)
    return [reading.divided(np.where(part == fold, "test", "train")) for fold in range(part.max() + 1)]


def merged(reports: Sequence[Row], methods: Sequence[str]) -> Row:
    """Returns one report of all folds' reports: of the encoder, and of all that stands beside it, the accuracy over all
    rows, and by group; where a fold names no groups it counts as one. And how many rows each group has."""
    rows = [report["n_test"] for report in reports]
    sizes = [report["rows_by_group"] or {f"fold {i}": report["n_test"]} for i, report in enumerate(reports)]
    whole = {name: sum(size.get(name, 0) for size in sizes) for size in sizes for name in size}

    def together(scores: Sequence[Row]) -> Row:
        each = [score["by_group"] or {name: score["accuracy"] for name in size}
                for score, size in zip(scores, sizes, strict=True)]
        right = {name: sum(known[name] * size[name] for known, size in zip(each, sizes, strict=True) if name in known)
                 for name in whole}
        return {"accuracy": float(np.average([score["accuracy"] for score in scores], weights=rows)),
                "by_group": {name: right[name] / whole[name] for name in whole}}

    def beside(method: str) -> Row:
        return {name: together([report[method][name] for report in reports])
                for name in evaluation.BESIDE if name in reports[0][method]}

    found = {method: together([report[method] for report in reports]) | beside(method) for method in methods}
    return found | {"rows_by_group": whole}


def probed(
    ckpt: Path, source: Path, ledger: Path, methods: Sequence[str], *, folds: bool, beside: bool, views: int,
    plan: attentive.Recipe | None = None,
) -> Row:
    """Returns what `cora probe` reports of a checkpoint on a corpus; with `folds` all of its rows answer in turn, and
    the report is `merged`. `beside`: also of what the encoder has to beat."""
    named: Any = tuple(methods)
    reading = evaluation.read(ckpt, source, methods=named, ledger=ledger, beside=beside, views=views, plan=plan)
    if not folds:
        return evaluation.judge(reading, named, plan=plan)
    return merged([evaluation.judge(part, named, plan=plan) for part in folded(reading)], methods)
