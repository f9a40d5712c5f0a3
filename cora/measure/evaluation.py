"""The probe verb: a checkpoint and a labelled corpus in, accuracies beside their baselines out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as Lines

from cora import config
from cora.measure import features
from cora.measure.probe import Method, evaluate, plain, principal
from cora.measure.probe import probe as compare
from cora.measure.table import SPLITS, Table
from cora.store.weights import Pretrained
from cora.video import manifest
from cora.video.ledger import Ledger


def labelled(source: Path) -> manifest.Manifest:
    """Returns the rows of a corpus that a probe can use: labelled ones, of the splits train and test if it has splits.

    Raises manifest.ManifestError if there is none.
    """
    whole = manifest.load(source)
    has_splits = any(clip.split for clip in whole.clips)
    rows = tuple(c for c in whole.clips if c.label is not None and (not has_splits or c.split in SPLITS))
    if not rows:
        raise manifest.ManifestError(f"{source}: no labelled clip in the splits {' and '.join(SPLITS)}; "
                                     "a probe needs labels, pretraining does not")
    return manifest.Manifest(rows, whole.classes)


def tables(ckpt: Path, source: Path, ledger: Path, against: Path | None = None) -> dict[str, Table]:
    """Returns the tables `trained`, `random`, `pixels`, `motion` (and `against`) of one corpus, each file read once."""
    settings, encoder = features.trained(ckpt)
    readers = {
        "trained": features.pooled(encoder),
        "random": features.pooled(features.untrained(settings)),
        "pixels": features.ordered_pixels,
        "motion": features.motion,
    }
    if against is not None:
        readers["against"] = features.pooled(_matching(settings, against))
    rows = labelled(source)
    return features.tables(readers, rows, settings, Ledger(ledger, len(rows.clips), settings.corpus.max_bad))


def _matching(settings: config.Pretrain, against: Path) -> Pretrained:
    other, encoder = features.trained(against)
    shape = (settings.model.frames, settings.model.size)
    if (other.model.frames, other.model.size) != shape:
        raise ValueError(f"{against} reads clips of {(other.model.frames, other.model.size)} frames and pixels, "
                         f"the first checkpoint {shape}: both must read the same clips")
    return encoder


def probe(
    ckpt: Path, source: Path, *, methods: Sequence[Method], ledger: Path, against: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Returns the JSON of the probe verb, as `cora.measure.probe.probe` does, with `motion` (and `against`) beside."""
    found = tables(ckpt, source, ledger, against)
    report = compare(found["trained"], found["random"], found["pixels"], methods, seed=seed)
    for name in ("motion", "against"):
        for method in methods if name in found else ():
            report[method][name] = plain(evaluate(found[name], method, seed=seed, prepare=principal))
    return report


def as_table(report: Mapping[str, Any]) -> Lines:
    """Returns the report as a table for people: accuracy and interval of the encoder and of what it must beat."""
    lines = Lines("probe", "features", "accuracy", "95 % interval", "level", "per level")
    for method, own in report.items():
        if not isinstance(own, dict):
            continue
        others = {name: own[name] for name in ("random", "pixels", "motion", "against") if name in own}
        for name, score in {"trained": own, **others}.items():
            low, high = score["ci95"]
            each = " ".join(f"{x:.3f}" for x in score["per_level"])
            cells = f"{score['accuracy']:.3f}", f"{low:.3f} to {high:.3f}", str(score["level"])
            lines.add_row(method, name, *cells, each)
    return lines
