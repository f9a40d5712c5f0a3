"""How well is what is hidden predicted? Errors of a run's predictors beside those of predictors that learn nothing.

A level's error is given as the share of the hidden targets' variance that it leaves, and its skill is 1 minus its error
over that of the best trivial predictor. Latent targets that collapse are easy to predict, so a second number does not
ask the targets: what a ridge map reads, off the predicted latents, of the hidden tokens' own oriented energies and
pixels, which no encoder can change.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from rich.table import Table as Lines
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from cora import config
from cora.measure.baselines import patch_pixels
from cora.measure.features import batches, trained
from cora.measure.groups import divide
from cora.nets import hog3d
from cora.nets.hierarchy import build
from cora.pc import masks
from cora.pc.prediction import predictions, targets
from cora.schema import require
from cora.store import weights
from cora.types import Encoder, Params
from cora.video import manifest
from cora.video.ledger import Ledger

ASKED = config.Mask(kinds=("random", "short", "future"), random=(0.75, 0.25), short=(0.25, 0.75), cut=0.5)
"""A quarter of the tokens at random places; three quarters, in blocks that last the whole clip; the later half."""
NAMES = {"random": "random", "short": "blocks", "future": "future"}
"""Kinds of mask by the names that they have in a report."""
SIDE = 8
"""Of the grey picture of a token that is read off its latents."""
PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Of a ridge map, chosen on a fifth of the training clips."""
ROWS = 20_000
"""Hidden tokens that a ridge map learns from; as many are drawn where there are more."""
COMPONENTS = 64
"""Principal components of a token by which a ridge map knows its neighbours."""
DEAD = 0.02
"""A level whose skill is lower predicts nothing."""


class Predictor(NamedTuple):
    """A run's weights: what learns, the teacher of its targets, and the config of both."""

    settings: config.Pretrain
    params: Params
    teacher: Encoder


class Sample(NamedTuple):
    """What is predicted of some clips under one kind of mask, beside what is there."""

    hidden: Int[np.ndarray, "B M"]
    """Ids of the hidden tokens."""
    predicted: Float[np.ndarray, "L B M D"]
    targets: Float[np.ndarray, "l B N D"]
    """Of all tokens; one level where all have the same."""
    energies: Float[np.ndarray, "B N F"]
    """Oriented energies of all tokens."""
    pixels: Float[np.ndarray, "B N P"]
    """A grey picture of every token, 8 by 8."""


def sample(predictor: Predictor, clips: UInt8[np.ndarray, "n T H W 3"], kind: str, seed: int = 0) -> Sample:
    """Returns what is predicted of these clips under this kind of mask, drawn from the seed.

    A kind that the run was not trained on is asked for by its first mask token. Raises ConfigError under rule `dense`,
    whose one predictor has no level of its own.
    """
    settings = predictor.settings
    if settings.learn.rule == "dense":
        raise config.ConfigError("learn.rule = 'dense': one predictor speaks for all levels, so no level has a skill; "
                                 "nearest: 'backprop_all'")
    network, model = build(settings.model, settings.target, settings.learn), settings.model
    how = masks.kinds(ASKED, model.grid)[kind]
    token = settings.mask.kinds.index(kind) if kind in settings.mask.kinds else 0
    measure = hog3d.measured(model, config.Target(kind="hog3d", cells=(1, 2) if model.patch % 2 == 0 else (1,)))

    @jax.jit
    def ask(params: Params, teacher: Encoder, video: Array, index: Array) -> tuple[Array, ...]:
        patches = network.patches(video)
        drawn = masks.sample(jax.random.fold_in(jax.random.key(seed), index), how, len(video))
        return (drawn.target, predictions(network, params, patches, drawn, token),
                targets(network, teacher, patches), measure(patches))

    parts, size = [], 32
    for index, first in enumerate(range(0, len(clips), size)):
        video = clips[first : first + size]
        whole = np.concatenate([video, np.repeat(video[-1:], size - len(video), axis=0)])
        hidden, *rest, energies = ask(predictor.params, predictor.teacher, whole, jnp.asarray(index))
        few = len(video)
        parts.append((np.asarray(hidden)[:few], *(np.asarray(x)[:, :few] for x in rest), np.asarray(energies)[:few]))
    hidden, predicted, goals, energies = zip(*parts, strict=True)
    pixels = patch_pixels(clips, model.tubelet, model.patch, model.tubelet * SIDE**2)
    pixels = pixels.reshape(*pixels.shape[:2], model.tubelet, -1).mean(2)
    return Sample(np.concatenate(hidden), np.concatenate(predicted, 1), np.concatenate(goals, 1),
                  np.concatenate(energies), pixels)


# ------------------------------------------------------------------------------------------- trivial predictors


def seen_of(hidden: Int[np.ndarray, "B M"], grid: tuple[int, int, int]) -> Bool[np.ndarray, "B t h w"]:
    """Returns which tokens are not hidden."""
    seen = np.ones((len(hidden), int(np.prod(grid))), bool)
    np.put_along_axis(seen, hidden, False, axis=1)
    return seen.reshape(-1, *grid)


def take(x: Float[np.ndarray, "B N D"], ids: Int[np.ndarray, "B M"]) -> Float[np.ndarray, "B M D"]:
    """Returns the tokens with these ids."""
    return np.take_along_axis(x, ids[..., None], axis=1)


def first_seen(seen: Bool[np.ndarray, "B t h w"], axis: int, step: int) -> Int[np.ndarray, "B N"]:
    """Returns the id of the first seen token that one meets from each token along an axis (0 time, 1 rows, 2
    columns) in the direction `step` (-1 or 1), the token itself left out; -1 where there is none."""
    ids = np.broadcast_to(np.arange(seen[0].size).reshape(seen.shape[1:]), seen.shape)
    place = np.moveaxis(np.where(seen, ids, -1), axis + 1, 0)
    place = place if step < 0 else place[::-1]
    met = np.empty_like(place)
    last = np.full(place.shape[1:], -1)
    for i, here in enumerate(place):
        met[i] = last
        last = np.where(here >= 0, here, last)
    met = met if step < 0 else met[::-1]
    return np.moveaxis(met, 0, axis + 1).reshape(len(seen), -1)


def nearest_seen(seen: Bool[np.ndarray, "B t h w"]) -> Int[np.ndarray, "B N"]:
    """Returns the id of the seen token that is nearest to each token in time, row and column, counted in tokens; of
    two that are equally near the earlier one."""
    places = np.indices(seen.shape[1:]).reshape(3, -1).T
    away = np.square(places[:, None] - places).sum(-1)
    return np.argmin(np.where(seen.reshape(len(seen), 1, -1), away, away.max() + 1), axis=2)


def neighbours(
    x: Float[np.ndarray, "B N D"], hidden: Int[np.ndarray, "B M"], grid: tuple[int, int, int]
) -> Float[np.ndarray, "B M F"]:
    """Returns what a ridge map is told of every hidden token: x of the first seen tokens in the six directions (zero
    where there is none, and whether there is one), of all seen ones at its place at each time, and their mean over
    the clip."""
    seen = seen_of(hidden, grid)
    flat = seen.reshape(len(seen), -1)
    told = []
    for axis in range(3):
        for step in (-1, 1):
            ids = np.take_along_axis(first_seen(seen, axis, step), hidden, axis=1)
            there = (ids >= 0)[..., None]
            told += [take(x, np.maximum(ids, 0)) * there, there.astype(np.float32)]
    t, places = grid[0], grid[1] * grid[2]
    shown = x * flat[..., None]
    for time in range(t):
        told.append(take(shown, time * places + hidden % places))
    told.append(np.broadcast_to((shown.sum(1) / flat.sum(1, keepdims=True))[:, None], (*hidden.shape, x.shape[2])))
    return np.concatenate(told, axis=2).astype(np.float32)


def copied(
    x: Float[np.ndarray, "B N D"], hidden: Int[np.ndarray, "B M"], grid: tuple[int, int, int]
) -> dict[str, Float[np.ndarray, "B M D"]]:
    """Returns what is guessed without any fit: the nearest seen token; where every hidden token has a past at its
    place, the last token seen there, and the line through the last two."""
    seen = seen_of(hidden, grid)
    found = {"nearest": take(x, np.take_along_axis(nearest_seen(seen), hidden, axis=1))}
    last = first_seen(seen, 0, -1)
    own = np.take_along_axis(last, hidden, axis=1)
    if (own < 0).any():
        return found
    found["copy_last"] = take(x, own)
    before = np.take_along_axis(last, own, axis=1)
    if (before < 0).any():
        return found
    places = grid[1] * grid[2]
    ahead = (hidden // places - own // places) / (own // places - before // places)
    return found | {"line": found["copy_last"] + ahead[..., None] * (found["copy_last"] - take(x, before))}


def compact(*tables: Float[np.ndarray, "_ N D"]) -> list[Float[np.ndarray, "_ N d"]]:
    """Returns tokens by the principal components of the first table's, so many that a ridge map of many neighbours
    stays small."""
    width = min(COMPONENTS, tables[0].shape[2])
    tokens = tables[0].reshape(-1, tables[0].shape[2])
    parts = PCA(width, random_state=0).fit(tokens[:: max(1, len(tokens) // 100_000)])
    return [parts.transform(x.reshape(-1, x.shape[2])).reshape(*x.shape[:2], -1).astype(np.float32) for x in tables]


class Map(NamedTuple):
    """A ridge map of standardised inputs; `dead` inputs never vary."""

    mean: Float[np.ndarray, " F"]
    scale: Float[np.ndarray, " F"]
    ridge: Ridge

    def __call__(self, x: Float[np.ndarray, "B M F"]) -> Float[np.ndarray, "B M G"]:
        """Returns what is read of every token."""
        rows = (x.reshape(-1, x.shape[-1]) - self.mean) / self.scale
        return np.asarray(self.ridge.predict(rows)).reshape(*x.shape[:2], -1)


def ridge(x: Float[np.ndarray, "B M F"], y: Float[np.ndarray, "B M G"], seed: int = 0) -> Map:
    """Returns the ridge map from x to y, its penalty chosen on the last fifth of the clips (of two clips at least)."""
    inputs, outputs = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    clip = np.repeat(np.arange(len(x)), x.shape[1])
    if len(inputs) > ROWS:
        kept = np.sort(np.random.default_rng(seed).choice(len(inputs), ROWS, replace=False))
        inputs, outputs, clip = inputs[kept], outputs[kept], clip[kept]
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
    inputs = (inputs - mean) / scale
    fit = clip < max(1, len(x) - max(1, len(x) // 5))
    errors = [np.square(Ridge(alpha=a).fit(inputs[fit], outputs[fit]).predict(inputs[~fit]) - outputs[~fit]).mean()
              for a in PENALTIES] if (~fit).any() else [0.0]
    return Map(mean, scale, Ridge(alpha=PENALTIES[int(np.argmin(errors))]).fit(inputs, outputs))


# ---------------------------------------------------------------------------------------------------- the report


def left(gap: Float[np.ndarray, "B M D"], spread: Float[np.ndarray, "B M D"]) -> float:
    """Returns the share of the variance that is left: mean gap² / mean spread²."""
    return float(np.square(gap).mean() / max(np.square(spread).mean(), 1e-12))


def shares(
    train: Sample, test: Sample, grid: tuple[int, int, int]
) -> dict[str, Any]:
    """Returns what is left of the hidden targets' variance about their mean at each place, by level, horizon and
    trivial predictor, and each level's skill over the best of these.

    What is fitted is fitted to `train`; errors are of `test`.
    """
    levels, horizons = len(test.predicted), _horizons(test.hidden, grid)
    shared = len(test.targets) == 1
    found: dict[str, Any] = {"left": [], "trivial": {}, "skill": [], "by_horizon": {"left": [], "trivial": {}}}
    for level in range(levels):
        own = 0 if shared else len(test.targets) - levels + level  # one predictor alone is the highest level's
        goal = take(test.targets[own], test.hidden)
        spread = goal - train.targets[own].mean(0)[test.hidden]
        if level == 0 or not shared:
            guesses = copied(test.targets[own], test.hidden, grid)
            known, asked = compact(train.targets[own], test.targets[own])
            fitted = ridge(neighbours(known, train.hidden, grid), take(train.targets[own], train.hidden))
            guesses["neighbours"] = fitted(neighbours(asked, test.hidden, grid))
            trivial = {"mean": spread} | {name: goal - guess for name, guess in guesses.items()}
        for name, gap in trivial.items():
            found["trivial"].setdefault(name, []).append(left(gap, spread))
        gap = goal - test.predicted[level]
        found["left"].append(left(gap, spread))
        best = min(found["trivial"][name][level] for name in trivial)
        found["skill"].append(1 - found["left"][level] / best)
        rows = found["by_horizon"]
        rows["left"].append([left(gap[at][None], spread[at][None]) for at in horizons])
        for name, miss in trivial.items():
            rows["trivial"].setdefault(name, []).append([left(miss[at][None], spread[at][None]) for at in horizons])
    return found


def _horizons(hidden: Int[np.ndarray, "B M"], grid: tuple[int, int, int]) -> list[Bool[np.ndarray, "B M"]]:
    """Returns which hidden tokens stand at each time step that has any, earliest first."""
    time = hidden // (grid[1] * grid[2])
    return [time == step for step in np.unique(time)]


def readout(train: Sample, test: Sample, grid: tuple[int, int, int]) -> dict[str, Any]:
    """Returns R² on `test` of ridge maps, fitted to `train`, of the hidden tokens' oriented energies and pixels: from
    the predicted latents and from the targets themselves (the ceiling) by level, and from the seen neighbours' own
    energies or pixels, without a network. No collapse of the targets improves it."""
    found: dict[str, Any] = {}
    for name in ("energies", "pixels"):
        facts, truths = getattr(train, name), getattr(test, name)
        goal, truth = take(facts, train.hidden), take(truths, test.hidden)
        spread = truth - goal.mean((0, 1))

        def reads(x: np.ndarray, y: np.ndarray, goal: np.ndarray = goal, truth: np.ndarray = truth,
                  spread: np.ndarray = spread) -> float:
            return 1 - left(truth - ridge(x, goal)(y), spread)

        known, asked = compact(facts, truths)
        ceiling = [reads(take(a, train.hidden), take(b, test.hidden))
                   for a, b in zip(train.targets, test.targets, strict=True)]
        found[name] = {
            "predicted": [reads(a, b) for a, b in zip(train.predicted, test.predicted, strict=True)],
            "neighbours": reads(neighbours(known, train.hidden, grid), neighbours(asked, test.hidden, grid)),
            "ceiling": ceiling[-len(test.predicted) :] if len(ceiling) > 1 else ceiling * len(test.predicted),
        }
    return found


def skill(
    predictor: Predictor, train: UInt8[np.ndarray, "n T H W 3"], test: UInt8[np.ndarray, "m T H W 3"], seed: int = 0
) -> dict[str, Any]:
    """Returns, for each kind of mask (`random`, `blocks`, `future`), `shares` and `readout` of the hidden tokens of
    `test`; whatever is fitted is fitted to `train`. Clips of one time step have no future."""
    grid = predictor.settings.model.grid
    found = {}
    for kind, name in NAMES.items():
        if kind == "future" and grid[0] == 1:
            continue
        a, b = sample(predictor, train, kind, seed), sample(predictor, test, kind, seed + 1)
        found[name] = shares(a, b, grid) | {"readout_r2": readout(a, b, grid)}
    return found


def read(ckpt: Path, source: Path, ledger: Path, count: int = 1024, seed: int = 0) -> dict[str, Any]:
    """Returns `skill` of a checkpoint on a corpus, at most `count` clips of each split (drawn by the seed), with the
    step, the numbers of clips, and `alarms`.

    Learns on the split `train` and is measured on `test` (`val` where there is none); where the corpus has no splits,
    seven in ten of its groups are learned on. Raises ConfigError for weights that say nothing of their targets, and
    ManifestError for a corpus without clips to learn on or to be measured on.
    """
    predictor, step = _predictor(ckpt)
    settings, rows = predictor.settings, manifest.load(source)
    split = np.array([clip.split for clip in rows.clips])
    if not split.astype(bool).any():
        group = np.array([clip.group for clip in rows.clips])
        split = np.array(["train", "test"])[divide(np.zeros(len(group), int), group, (0.7, 0.3), seed)]
    elif "test" not in split:
        split = np.where(split == "val", "test", split)
    book, videos = Ledger(ledger, rows.paths, settings.corpus.max_bad), {}
    for name in ("train", "test"):
        places = np.flatnonzero(split == name)
        chosen = np.sort(np.random.default_rng(seed).permutation(places)[:count])
        part = replace(rows, clips=tuple(rows.clips[i] for i in chosen))
        parts = [video[:, 0] for _, video in batches(part, settings, book)] if len(chosen) else []
        if not parts:
            raise manifest.ManifestError(f"{source}: no readable clip of split {name!r} to measure skill with")
        videos[name] = np.concatenate(parts)
    found = skill(predictor, videos["train"], videos["test"], seed)
    return {"step": step, "corpus": str(source), "n_train": len(videos["train"]), "n_test": len(videos["test"]),
            "alarms": alarms(found), **found}


def _predictor(ckpt: Path) -> tuple[Predictor, int | None]:
    """Returns the predictors of a run, or of a native export whose targets are fixed, and their step."""
    if weights.kind(ckpt) == "run":
        settings, step, params, teacher = weights.read_training(ckpt)
        return Predictor(settings, params, teacher), step
    settings, found = trained(ckpt)
    fits = "config" in found.record and settings.target.kind == "hog3d"
    require(fits and found.predictors is not None, "ckpt", str(ckpt),
            "skill needs the predictors and their teacher, which weights alone do not hold unless targets are fixed; "
            "nearest: the run folder they were exported from")
    assert found.predictors is not None
    return Predictor(settings, Params(found.encoder, found.predictors), found.encoder), found.record.get("step")


def as_table(report: Mapping[str, Any]) -> Lines:
    """Returns the report as a table for people: a row for each kind of mask and level."""
    lines = Lines("hidden", "level", "left", "best guess leaves", "skill", "R² energies", "neighbours", "ceiling",
                  "R² pixels", "neighbours", "ceiling")
    lines.caption = (f"shares of variance on {report['n_test']} clips; guesses and maps fitted on {report['n_train']} "
                     "others")
    for name in (name for name in NAMES.values() if name in report):
        one = report[name]
        for level, share in enumerate(one["left"]):
            guess = min(one["trivial"], key=lambda g: one["trivial"][g][level])
            facts = [text for what in ("energies", "pixels") for text in (
                f"{one['readout_r2'][what]['predicted'][level]:.2f}", f"{one['readout_r2'][what]['neighbours']:.2f}",
                f"{one['readout_r2'][what]['ceiling'][level]:.2f}")]
            lines.add_row(name, str(level), f"{share:.3f}", f"{one['trivial'][guess][level]:.3f} ({guess})",
                          f"{one['skill'][level]:+.3f}", *facts)
    return lines


def alarms(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for every level that predicts nothing under a kind of mask: whose error is not below that of the
    mean at each place."""
    lines = []
    for name, one in report.items():
        dead = [str(level) for level, share in enumerate(one["left"]) if share > 1 - DEAD]
        if dead:
            lines.append(f"level {', '.join(dead)} predicts nothing of what is hidden ({name}): its error is that of "
                         "the mean at each place")
    return lines
