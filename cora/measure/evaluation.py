"""The probe verb: a checkpoint and a labelled corpus in, accuracies beside their baselines out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from rich.table import Table as Lines

from cora import config
from cora.meaning import Natural
from cora.measure import attentive, features
from cora.measure.groups import settle_split, training_folds
from cora.measure.probe import METHODS, Method, Score
from cora.measure.probe import beside as set_beside
from cora.measure.probe import probe as compare
from cora.measure.table import SPLITS, Table
from cora.schema import choice, guard, require
from cora.store.probes import Probe, save_probe
from cora.store.weights import Pretrained
from cora.video import manifest
from cora.video.ledger import Ledger

ATTENTIVE = "attentive"
TOKENS = " tokens"
"""Ends the names of tables that an attentive probe reads."""
BESIDE = ("random", "targets", "pixels", "motion", "against")
"""What a trained encoder is compared with, by the names that they have in a report."""
VIEWS = 24
"""Random views of a clip beside the plain one, as many as V-JEPA reads of a clip of Kinetics: a single one, cut as
training cuts, tells much less than the whole clip, and the mean over many more (eval/README.md)."""
Named = Method | Literal["attentive"]


def labelled(source: Path) -> manifest.Manifest:
    """Returns the rows of a corpus that a probe can use: labelled ones, of the splits train and test if it has splits;
    where no labelled row is of the split test, those of val are its test rows.

    Raises manifest.ManifestError if there is none.
    """
    whole = manifest.load(source)
    known = [clip for clip in whole.clips if clip.label is not None]
    if not any(clip.split == "test" for clip in known):
        known = [clip._replace(split="test") if clip.split == "val" else clip for clip in known]
    has_splits = any(clip.split for clip in whole.clips)
    rows = tuple(clip for clip in known if not has_splits or clip.split in SPLITS)
    if not rows:
        raise manifest.ManifestError(f"{source}: no labelled clip in the splits {' and '.join(SPLITS)}; "
                                     "a probe needs labels, pretraining does not")
    _require_training(source, whole, rows)
    missing = [place for place, clip in zip(whole.places, whole.clips, strict=True) if clip.label is None]
    others = sum(clip.split not in (*SPLITS, "val") for clip in known)  # val is known to be left out: data/README.md
    said = [f"{source}: {len(missing)} of {len(whole.clips)} rows have no label and are left out (the first: "
            f"{missing[0]})"] if missing else []
    if others and has_splits:
        names = sorted({clip.split for clip in known} - {*SPLITS, "val"})
        said.append(f"{source}: {others} of {len(whole.clips)} rows are left out, whose split is "
                    f"{', '.join(map(repr, names))}")
    return manifest.told(manifest.Manifest(rows, whole.classes, notes=whole.notes), *said)


def _require_training(source: Path, whole: manifest.Manifest, rows: Sequence[manifest.Clip]) -> None:
    """Raises ManifestError for a class that only the test split of a list has: no probe can ever name it."""
    learned = {clip.label for clip in rows if clip.split != "test"}
    for clip in rows:
        if learned and clip.label not in learned:
            place = whole.places[whole.paths.index(clip.path)]
            raise manifest.ManifestError(f"{place}: class {clip.class_name!r} (label {clip.label}) has test clips and "
                                         "none to train on; give it some, or leave its rows out")


def settled(rows: manifest.Manifest, seed: int) -> manifest.Manifest:
    """Returns the rows with a split in each, drawn where the corpus has none.

    Raises ValueError where no probe could be fitted and scored: of the labels alone, before any file is read.
    """
    label, group, split = (np.array([getattr(clip, name) for clip in rows.clips])
                           for name in ("label", "group", "split"))
    table = settle_split(Table(np.zeros((1, len(rows.clips), 1)), label, group, split), seed)
    training_folds(table, seed)
    clips = tuple(clip._replace(split=name)
                  for clip, name in zip(rows.clips, table.split.tolist(), strict=True))
    found = replace(rows, clips=clips)
    if rows.clips == clips:
        return found  # a list's own split, of which reading it has told
    learned = {clip.label for clip in clips if clip.split == "train"}
    unseen = sorted({clip.class_name for clip in clips if clip.label not in learned})
    alone = [f"the split that was drawn has no training clip of {', '.join(map(repr, unseen))}"] if unseen else []
    return manifest.told(found, *manifest.shared(clips), *alone)


def encoders(
    ckpt: Path, against: Path | None = None, beside: bool = True
) -> tuple[config.Pretrain, dict[str, features.Frozen]]:
    """Returns the config of a checkpoint and the encoder `trained`, with `beside` also `random` and, where a run's
    targets are fixed, `targets`; and `against`."""
    settings, encoder = features.trained(ckpt)
    found: dict[str, features.Frozen] = {"trained": encoder}
    if beside:
        found["random"] = features.untrained(settings)
        if settings.target.kind in ("hog3d", "below"):
            found["targets"] = features.Measures(settings)
    if against is not None:
        found["against"] = _matching(settings, against)
    return settings, found


def _matching(settings: config.Pretrain, against: Path) -> Pretrained:
    other, encoder = features.trained(against)
    shape = (settings.model.frames, settings.model.size)
    if (other.model.frames, other.model.size) != shape:
        raise ValueError(f"{against} reads clips of {(other.model.frames, other.model.size)} frames and pixels, "
                         f"the first checkpoint {shape}: both must read the same clips")
    return encoder


def pooled(readable: Mapping[str, features.Once], beside: bool) -> dict[str, features.Reader]:
    """Returns the readers of what the linear and the nearest-neighbour probe see, of pixels and motion if `beside`."""
    floors = {"pixels": features.ordered_pixels, "motion": features.motion} if beside else {}
    return {name: features.pooled(encoder) for name, encoder in readable.items()} | floors


def by_token(
    readable: Mapping[str, features.Once], plan: attentive.Recipe, beside: bool
) -> dict[str, features.Reader]:
    """Returns the readers of what an attentive probe sees. Raises ConfigError if an encoder lacks the level."""
    for name, encoder in readable.items():
        most = encoder.model.levels - 1
        asked = plan.level if name != "targets" else 0  # which have no levels
        require(asked <= most, "level", plan.level, f"must be at most {most}; nearest: {most}")
    floor = {"pixels": features.pixel_tokens(readable["trained"].model, plan.of)} if beside else {}
    return {name: features.tokens(encoder, plan.level % encoder.model.levels, plan.of)
            for name, encoder in readable.items()} | floor


class Reading(NamedTuple):
    """What probes read: a table for each encoder and for what it has to beat, `trained` first, all of the same rows."""

    pooled: dict[str, Table]
    """For the linear and the nearest-neighbour probe; empty where neither is wanted."""
    tokens: dict[str, Table]
    """For the attentive probe; empty where it is not wanted."""
    models: dict[str, config.Model]
    """The encoders' shapes, by the same names."""
    classes: tuple[str, ...]
    unreadable: int = 0
    """Clips that are in no table, for their files could not be read."""
    step: int | None = None
    """Of the trained encoder, where it knows."""
    notes: tuple[str, ...] = ()
    """What the corpus' list said that whoever reads the accuracies has to know."""

    def divided(self, split: np.ndarray) -> "Reading":
        """Returns the same rows under another split, `train` or `test` for each."""
        pooled, tokens = ({name: table._replace(split=split) for name, table in own.items()}
                          for own in (self.pooled, self.tokens))
        return self._replace(pooled=pooled, tokens=tokens)


@guard
def read(
    ckpt: Path, source: Path, *, methods: Sequence[Named], ledger: Path, against: Path | None = None,
    plan: attentive.Recipe | None = None, views: Natural = VIEWS, beside: bool = True, seed: Natural = 0,
) -> Reading:
    """Returns what `judge` needs of a checkpoint and a labelled corpus, every file decoded and encoded once; with
    `beside` False of the encoder (and `against`) alone.

    Beside the clip seen without chance there are `views` random ones of each. `seed` draws the split of a corpus that
    has none. Raises ConfigError for an unknown method or a level of `plan` that is not there, ValueError as `settled`
    does.
    """
    for method in methods:
        choice("method", method, (*METHODS, ATTENTIVE))
    settings, readable = encoders(ckpt, against, beside)
    own = readable["trained"]
    step = own.record.get("step") if isinstance(own, Pretrained) else None
    shared = {name: features.Once(encoder) for name, encoder in readable.items()}
    readers = pooled(shared, beside) if set(methods) & set(METHODS) else {}
    if ATTENTIVE in methods:
        asked = by_token(shared, plan or attentive.Recipe(), beside)
        readers |= {name + TOKENS: reader for name, reader in asked.items()}
    rows = settled(labelled(source), seed)
    found = features.tables(readers, rows, settings, Ledger(ledger, rows.paths, settings.corpus.max_bad), views)
    return Reading(
        {name: table for name, table in found.items() if not name.endswith(TOKENS)},
        {name.removesuffix(TOKENS): table for name, table in found.items() if name.endswith(TOKENS)},
        {name: encoder.model for name, encoder in readable.items()}, tuple(rows.classes),
        len(rows.clips) - next(iter(found.values())).features.shape[1], step, rows.notes)


def judge(reading: Reading, methods: Sequence[Named], *, seed: int = 0, plan: attentive.Recipe | None = None,
          keep: Path | None = None) -> dict[str, Any]:
    """Returns the JSON of the probe verb, as `cora.measure.probe.probe` does, with `random`, `targets` (where they are
    fixed), `pixels`, `motion` (and `against`) beside, as far as they were read, and `unreadable`, how many clips
    were not.

    All views of a clip are learned from and answered by. The attentive probe is made as `plan` says and left in the
    folder `keep`.
    """
    tables = dict(reading.pooled or reading.tokens)
    views = tables["trained"].views
    tabular = [method for method in get_args(Method) if method in methods]
    report = compare(tables.pop("trained"), tables, tabular, seed=seed)
    if ATTENTIVE in methods:
        report = {ATTENTIVE: _attentive(reading, plan or attentive.Recipe(), keep, seed)} | report
    report |= {"views": 1 + (0 if views is None else views.shape[2]), "unreadable": reading.unreadable,
               "step": reading.step, "notes": list(reading.notes)}
    return {name: report[name] for name in (*methods, *(key for key in report if key not in methods))}


def _attentive(reading: Reading, plan: attentive.Recipe, keep: Path | None, seed: int) -> dict[str, Any]:
    scores: dict[str, Score] = {}
    settings: dict[str, Any] = {}
    for name, table in reading.tokens.items():
        model = reading.models.get(name, reading.models["trained"])
        heads = attentive.heads_for(model.width, plan.heads, model.heads)
        level = plan.level % model.levels if name in reading.models else 0
        fitted = attentive.evaluate(table, model.tokens, replace(plan, level=level), heads, seed=seed)
        scores[name] = fitted.score
        if name == "trained":
            settings = {"heads": heads, "depth": plan.depth, "epochs": plan.epochs, "tokens": plan.of}
            classes = reading.classes
            labels = tuple(classes[i] if i < len(classes) else str(i) for i in fitted.classes)
            if keep is not None:
                save_probe(keep, Probe(fitted.weights, heads, plan.depth, level, plan.of, labels, reading.step))
    own = reading.tokens["trained"]
    return set_beside(scores, own.group[settle_split(own, seed).split == "test"], seed) | settings


def as_table(report: Mapping[str, Any]) -> Lines:
    """Returns the report as a table for people: accuracy and interval of the encoder and of what it must beat."""
    lines = Lines("probe", "features", "accuracy", "95 % interval", "trained is ahead by", "level", "per level")
    lines.caption = (f"{report['n_train']} training, {report['n_test']} test clips of {report['groups']} groups; "
                     f"{report['unreadable']} more could not be read")
    for method in (name for name in report if name in (*METHODS, ATTENTIVE)):
        own = report[method]
        others = {name: own[name] for name in BESIDE if name in own}
        for name, score in {"trained": own, **others}.items():
            low, high = score["ci95"]
            each = " ".join(f"{x:.3f}" for x in score["per_level"])
            ahead = ("{:+.3f} ({:+.3f} to {:+.3f})".format(score["ahead"], *score["ahead_ci95"])
                     if "ahead" in score else "")
            cells = f"{score['accuracy']:.3f}", f"{low:.3f} to {high:.3f}", ahead, str(score["level"])
            lines.add_row(method, name, *cells, each)
    return lines
