"""How well is what is hidden predicted? Errors of a run's predictors beside those of predictors that learn nothing.

A level's error is given as the share of the hidden targets' variance that it leaves, and its skill is 1 minus its error
over that of the best trivial predictor. Latent targets that collapse are easy to predict, so a second number does not
ask the targets: what a ridge map reads, off the predicted latents, of the hidden tokens' own oriented energies and
pixels, which no encoder can change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from rich.box import SIMPLE
from rich.table import Table as Lines

from cora import config
from cora.measure.baselines import patch_pixels
from cora.measure.features import batches, trained
from cora.measure.groups import divide
from cora.measure.guesses import compact, copied, neighbours, ridge, take
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


def sample(
    predictor: Predictor, clips: UInt8[np.ndarray, "n T H W 3"], kind: str, seed: int = 0, asked: config.Mask = ASKED
) -> Sample:
    """Returns what is predicted of these clips under this kind of mask; as `samples`."""
    return samples(predictor, clips, (kind,), seed, asked)[kind]


def samples(
    predictor: Predictor, clips: UInt8[np.ndarray, "n T H W 3"], kinds: Sequence[str], seed: int = 0,
    asked: config.Mask = ASKED,
) -> dict[str, Sample]:
    """Returns what is predicted of these clips under each kind of mask, drawn from the seed.

    A kind that the run was not trained on is asked for by its first mask token. Raises ConfigError under rule `dense`,
    whose one predictor has no level of its own.
    """
    settings = predictor.settings
    if settings.learn.rule == "dense":
        raise config.ConfigError("learn.rule = 'dense': one predictor speaks for all levels, so no level has a skill; "
                                 "nearest: 'backprop_all'")
    network, model = build(settings.model, settings.target, settings.learn), settings.model
    hows, own = masks.kinds(asked, model.grid), settings.mask.kinds
    tokens = {kind: own.index(kind) if kind in own else 0 for kind in kinds}
    measure = hog3d.measured(model, config.Target(kind="hog3d", cells=(1, 2) if model.patch % 2 == 0 else (1,)))

    @jax.jit
    def ask(params: Params, teacher: Encoder, video: Array, index: Array) -> tuple[list, Array, Array]:
        patches = network.patches(video)
        key, found = jax.random.fold_in(jax.random.key(seed), index), []
        for kind, token in tokens.items():
            drawn = masks.sample(key, hows[kind], len(video))
            found.append((drawn.target, predictions(network, params, patches, drawn, token)))
        return found, targets(network, teacher, patches), measure(patches)

    parts, size = [], 32
    for index, first in enumerate(range(0, len(clips), size)):
        video = clips[first : first + size]
        whole = np.concatenate([video, np.repeat(video[-1:], size - len(video), axis=0)])
        few = len(video)
        found, goals, energies = ask(predictor.params, predictor.teacher, whole, jnp.asarray(index))
        parts.append(([(np.asarray(hidden)[:few], np.asarray(guess)[:, :few]) for hidden, guess in found],
                      np.asarray(goals)[:, :few], np.asarray(energies)[:few]))
    each, goals, energies = zip(*parts, strict=True)
    pixels = patch_pixels(clips, model.tubelet, model.patch, model.tubelet * SIDE**2)
    pixels = pixels.reshape(*pixels.shape[:2], model.tubelet, -1).mean(2)
    facts = np.concatenate(goals, 1), np.concatenate(energies), pixels
    hidden, guesses = ([[part[i][j] for part in each] for i in range(len(tokens))] for j in (0, 1))
    return {kind: Sample(np.concatenate(hidden[i]), np.concatenate(guesses[i], 1), *facts)
            for i, kind in enumerate(tokens)}


# ---------------------------------------------------------------------------------------------------- the report


def left(gap: Float[np.ndarray, "B M D"], spread: Float[np.ndarray, "B M D"]) -> float:
    """Returns the share of the variance that is left: mean gap² / mean spread²."""
    return float(np.square(gap).mean() / max(np.square(spread).mean(), 1e-12))


def shares(
    train: Sample, test: Sample, grid: tuple[int, int, int]
) -> dict[str, Any]:
    """Returns what is left of the hidden targets' variance about their mean at each place, by level, horizon and
    trivial predictor, and each level's skill over the best of these.

    What is fitted is fitted to `train`; errors are of `test`. Trivial predictors know what a level may know: among them
    a ridge map of the energies and pixels of the seen neighbours (`neighbours`). `told` is what a ridge map leaves that
    is told the seen neighbours' own targets. That is no guess from what is seen, and beside, not among them: a target
    that departs from its mean over time, or a teacher's latent of a whole clip, says something of what is hidden.
    """
    levels, horizons = len(test.predicted), _horizons(test.hidden, grid)
    shared = len(test.targets) == 1
    found: dict[str, Any] = {"left": [], "trivial": {}, "told": [], "skill": [],
                             "by_horizon": {"left": [], "trivial": {}}}
    facts = [np.concatenate([one.energies, one.pixels], axis=2) for one in (train, test)]
    inputs = around(facts[0], facts[1], train, test, grid)
    for level in range(levels):
        own = 0 if shared else len(test.targets) - levels + level  # one predictor alone is the highest level's
        goal = take(test.targets[own], test.hidden)
        spread = goal - train.targets[own].mean(0)[test.hidden]
        if level == 0 or not shared:
            guesses, wanted = copied(test.targets[own], test.hidden, grid), take(train.targets[own], train.hidden)
            guesses["neighbours"] = ridge(inputs[0], wanted)(inputs[1])
            trivial = {"mean": spread} | {name: goal - guess for name, guess in guesses.items()}
            known = around(train.targets[own], test.targets[own], train, test, grid)
            told = left(goal - ridge(known[0], wanted)(known[1]), spread)
        found["told"].append(told)
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


def around(
    known: Float[np.ndarray, "n N D"], asked: Float[np.ndarray, "m N D"], train: Sample, test: Sample,
    grid: tuple[int, int, int],
) -> tuple[Float[np.ndarray, "n M F"], Float[np.ndarray, "m M F"]]:
    """Returns what a ridge map is told of the hidden tokens of both samples: `neighbours` of these tables, compact."""
    a, b = compact(known, asked)
    return neighbours(a, train.hidden, grid), neighbours(b, test.hidden, grid)


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

        known, asked = around(facts, truths, train, test, grid)
        ceiling = [reads(take(a, train.hidden), take(b, test.hidden))
                   for a, b in zip(train.targets, test.targets, strict=True)]
        found[name] = {
            "predicted": [reads(a, b) for a, b in zip(train.predicted, test.predicted, strict=True)],
            "neighbours": reads(known, asked),
            "ceiling": ceiling[-len(test.predicted) :] if len(ceiling) > 1 else ceiling * len(test.predicted),
        }
    return found


def skill(
    predictor: Predictor, train: UInt8[np.ndarray, "n T H W 3"], test: UInt8[np.ndarray, "m T H W 3"], seed: int = 0
) -> dict[str, Any]:
    """Returns, for each kind of mask (`random`, `blocks`, `future`), `shares` and `readout` of the hidden tokens of
    `test`; whatever is fitted is fitted to `train`. Clips of one time step have no future."""
    grid = predictor.settings.model.grid
    kinds = [kind for kind in NAMES if kind != "future" or grid[0] > 1]
    a, b = (samples(predictor, clips, kinds, seed + i) for i, clips in enumerate((train, test)))
    return {NAMES[kind]: shares(a[kind], b[kind], grid) | {"readout_r2": readout(a[kind], b[kind], grid)}
            for kind in kinds}


def read(ckpt: Path, source: Path, ledger: Path, count: int = 1024, seed: int = 0) -> dict[str, Any]:
    """Returns `skill` of a checkpoint on a corpus, at most `count` clips of each split (drawn by the seed), with the
    step, the numbers of clips, and `alarms`.

    Learns on the split `train` and is measured on `test` (`val` where there is none); where the corpus has no splits,
    seven in ten of its groups are learned on. Raises ConfigError for weights that say nothing of their targets, and
    ManifestError for a corpus without clips to learn on or to be measured on.
    """
    predictor, step = restore(ckpt)
    train, test = halves(source, predictor.settings, ledger, count, seed)
    found = skill(predictor, train, test, seed)
    return {"step": step, "corpus": str(source), "n_train": len(train), "n_test": len(test), "alarms": alarms(found),
            **found}


def halves(
    source: Path, settings: config.Pretrain, ledger: Path, count: int = 1024, seed: int = 0
) -> tuple[UInt8[np.ndarray, "n T H W 3"], UInt8[np.ndarray, "m T H W 3"]]:
    """Returns the clips of a corpus to learn on and those to be measured on, at most `count` each, as `read` says."""
    rows = manifest.load(source)
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
    return videos["train"], videos["test"]


def restore(ckpt: Path) -> tuple[Predictor, int | None]:
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
    """Returns the report as a table for people: a row for each kind of mask and level, in 80 columns."""
    lines = Lines("hidden", "level", "left", "best guess", "skill", "R² energies", "R² pixels", box=SIMPLE,
                  padding=(0, 1))
    lines.caption = (f"shares of variance on {report['n_test']} clips; guesses and maps fitted on {report['n_train']} "
                     "others; R²: off prediction/seen neighbours/targets")
    for name in (name for name in NAMES.values() if name in report):
        one = report[name]
        for level, share in enumerate(one["left"]):
            guess = min(one["trivial"], key=lambda g: one["trivial"][g][level])
            facts = [f"{r['predicted'][level]:.2f}/{r['neighbours']:.2f}/{r['ceiling'][level]:.2f}"
                     for r in (one["readout_r2"][what] for what in ("energies", "pixels"))]
            facts = [text.replace("0.", ".") for text in facts]
            word = "ridge" if guess == "neighbours" else guess
            lines.add_row(name, str(level), f"{share:.2f}", f"{one['trivial'][guess][level]:.2f} {word}",
                          f"{one['skill'][level]:+.2f}", *facts)
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
