"""What surprises a run: how far the next tokens of a video are from what each level expects of them.

At every time step a level predicts that step's tokens from the steps before it, as many as a clip holds. Where a film
has not so many yet, its first frame is taken to have stood still before it: nothing later is ever looked at.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from cora import config
from cora.measure.skill import Predictor
from cora.nets.hierarchy import build
from cora.pc.prediction import foreseen, targets
from cora.schema import require
from cora.types import Encoder, Masks, Params
from cora.video import manifest
from cora.video.clips import spacing, whole
from cora.video.ledger import Ledger
from cora.video.promise import VideoError

Video = UInt8[np.ndarray, "_ H W 3"]
"""Films of one call may be of any length."""
TOGETHER = 64
"""Films of a list that are measured side by side."""
WINDOWS = 256
"""Measured together, about as many at a time, and those of one time step always: targets are scaled by what is in
their batch."""


class Surprise(NamedTuple):
    """Of one video, at every level, time step and place."""

    error: Float[np.ndarray, "L _ h w"]
    """Mean square over channels of target minus prediction."""
    precision: Float[np.ndarray, "L _ h w"]
    """The log precision that the level gave its prediction; 0 where it has none."""
    spread: Float[np.ndarray, "L _ h w"]
    """Mean square over channels of target minus its mean at the same place over what is measured beside it: the error
    of a prediction that knows nothing of the past."""

    @property
    def energy(self) -> Float[np.ndarray, "L _ h w"]:
        """(e^s error - s) / 2: the Gaussian's energy, up to a constant."""
        return (np.exp(self.precision) * self.error - self.precision) / 2

    @property
    def misfit(self) -> Float[np.ndarray, "L _ h w"]:
        """|log error + s|: 0 where the error is as large as was expected; it grows both ways, for it is also strange
        when nothing happens where much was to come."""
        return np.abs(np.log(self.error + 1e-6) + self.precision)


def windows(video: Video, model: config.Model) -> UInt8[np.ndarray, "S T H W 3"]:
    """Returns a clip for each time step of the video, which ends with that step; frames that fill no step are left
    out."""
    steps = len(video) // model.tubelet
    ends = (np.arange(steps) + 1) * model.tubelet
    return video[np.maximum(ends[:, None] - model.frames + np.arange(model.frames), 0)]


@cache
def asker(settings: config.Pretrain, context: int) -> Callable[[Params, Encoder, Array], tuple[Array, Array, Array]]:
    """Returns the compiled function of (parameters, teacher, windows) that gives error, log precision and spread at
    every level and place of each window's last time step, seen from `context` time steps before it (0: all)."""
    network, model = build(settings.model, settings.target, settings.learn), settings.model
    t, h, w = model.grid
    ids = np.arange(t * h * w).reshape(t, h * w)
    first = t - 1 - context if context else 0
    past, last = ids[first:-1].ravel(), ids[-1]
    kind = settings.mask.kinds.index("future") if "future" in settings.mask.kinds else 0

    @jax.jit
    def ask(params: Params, teacher: Encoder, clips: Array) -> tuple[Array, Array, Array]:
        patches = network.patches(clips)
        seen = Masks(*(jnp.broadcast_to(x, (len(clips), len(x))) for x in (past, last)))
        guess, precision = foreseen(network, params, patches, seen, kind)
        goals = targets(network, teacher, patches)[-len(guess) :, :, last]
        error = jnp.mean(jnp.square(goals - guess), axis=-1)
        spread = jnp.mean(jnp.square(goals - jnp.mean(goals, axis=1, keepdims=True)), axis=-1)
        return error, precision, jnp.broadcast_to(spread, error.shape)  # goals that all levels share have one level

    return ask


def surprise(predictor: Predictor, videos: Sequence[Video], context: int = 0) -> list[Surprise]:
    """Returns every video's surprise; `context` time steps are seen before each, as many as there are where it is 0.

    Videos that are to be compared belong into one call: time step by time step they are measured side by side.
    """
    model, ask = predictor.settings.model, asker(predictor.settings, context)
    _, h, w = model.grid
    films = [windows(video, model) for video in videos]
    most = max(map(len, films))
    batches = min(-(-sum(map(len, films)) // WINDOWS), most)
    levels = len(jax.tree.leaves(predictor.params.predictors)[0])
    found = [np.zeros((3, levels, len(film), h, w), np.float32) for film in films]
    for number in range(batches):
        places = [(video, step) for step in range(number, most, batches) for video, film in enumerate(films)
                  if step < len(film)]
        clips = np.stack([films[video][step] for video, step in places])
        told = np.stack(ask(predictor.params, predictor.teacher, jnp.asarray(clips)))
        for i, each in enumerate(np.moveaxis(told, 2, 0)):
            video, step = places[i]
            found[video][:, :, step] = each.reshape(3, levels, h, w)
    return [Surprise(*each) for each in found]


# ------------------------------------------------------------------------------------------------------ scores

Score = Literal["energy", "misfit", "error", "motion"]


def curve(one: Surprise, of: Score) -> Float[np.ndarray, "L S"]:
    """Returns this score's mean over places at every level and time step."""
    return values(one, of).mean((2, 3))


def values(one: Surprise, of: Score) -> Float[np.ndarray, "L _ h w"]:
    """Returns the numbers that a score is the mean of. `motion` is the control: what a prediction errs by that knows
    nothing of the past, so with targets of change how much moves."""
    return {"energy": one.energy, "misfit": one.misfit, "error": one.error, "motion": one.spread}[of]


def pairs_of(labels: Sequence[int | None], groups: Sequence[str]) -> list[tuple[int, int]]:
    """Returns (possible, impossible) rows of the list: groups of two clips, one labelled 0 and one 1."""
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    ordered = [sorted(own, key=lambda row: labels[row] or 0) for own in rows.values()]
    return [(own[0], own[1]) for own in ordered if [labels[row] for row in own] == [0, 1]]


def told_apart(
    scores: Float[np.ndarray, "n L"], pairs: Sequence[tuple[int, int]], kinds: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Returns, for each kind of event and for `all`, by level: `accuracy`, the share of pairs whose impossible clip
    scores higher (half a point for a tie), and `auroc`, that of any two clips of the kind.

    Chance is .5 for both. Source: Garrido et al. 2025 (arXiv 2502.11831).
    """
    found = {}
    for kind in (*dict.fromkeys(kinds), "all"):
        own = np.array([pair for pair, named in zip(pairs, kinds, strict=True) if kind in (named, "all")])
        possible, impossible = scores[own[:, 0]], scores[own[:, 1]]
        found[kind] = {"accuracy": _above(impossible, possible).tolist(),
                       "auroc": np.mean([_above(np.roll(impossible, i, 0), possible) for i in range(len(own))],
                                        axis=0).tolist(),
                       "pairs": len(own)}
    return found


def _above(a: Float[np.ndarray, "n L"], b: Float[np.ndarray, "n L"]) -> Float[np.ndarray, "L"]:
    return np.mean((a > b) + 0.5 * (a == b), axis=0)


def read(
    predictor: Predictor, step: int | None, source: Path, ledger: Path, context: int = 0
) -> tuple[dict[str, Any], list[Surprise]]:
    """Returns the report on a video or a list of them, for JSON, and the surprise of every video that can be read.

    The report has the predictor's `step` of training, the paths in their order, by score and level each film's `mean`
    and `peak` over time steps and its curve, and `pairs` where the list has them (`pairs_of`).
    """
    settings, model = predictor.settings, predictor.settings.model
    require(model.grid[0] > 1, "model.frames", model.frames,
            f"a clip of one time step has no past; nearest: {2 * model.tubelet}")
    require(0 <= context < model.grid[0], "context", context, f"must be 0 (all there is) to {model.grid[0] - 1} time "
            f"steps; nearest: {min(max(context, 0), model.grid[0] - 1)}")
    alone = source.is_file() and source.suffix.lower() in manifest.SUFFIXES
    rows = manifest.Manifest((manifest.Clip(source, None, "", "", ""),), ()) if alone else manifest.load(source)
    book, found, kept = Ledger(ledger, rows.paths, settings.corpus.max_bad), [], []
    for first in range(0, len(rows.clips), TOGETHER):
        videos = []
        for row in range(first, min(first + TOGETHER, len(rows.clips))):
            try:
                videos.append(whole(rows.clips[row].path, settings.corpus, size=model.size))
                kept.append(row)
            except VideoError as error:
                if alone:
                    raise
                book.record(error)
        found += surprise(predictor, videos, context) if videos else []
    if not found:
        raise manifest.ManifestError(f"{source}: no video of it can be read; reasons are in {ledger}")
    clips = [rows.clips[row] for row in kept]
    report: dict[str, Any] = {"step": step, "corpus": str(source), "context": context or model.grid[0] - 1,
                              "precision": settings.learn.precision,
                              "films": [{"path": str(clip.path), "group": clip.group, "class": clip.class_name,
                                         "fps": spacing(clip.path, settings.corpus), "tubelet": model.tubelet}
                                        for clip in clips]}
    pairs = pairs_of([clip.label for clip in clips], [clip.group for clip in clips])
    kinds = manifest.column(source, "kind") if pairs else {}
    for of in get_args(Score):
        curves = [curve(one, of) for one in found]
        means = np.stack([one.mean(1) for one in curves])
        for film, one in zip(report["films"], curves, strict=True):
            film[of] = {"mean": one.mean(1).tolist(), "peak": one.max(1).tolist(), "curve": one.tolist()}
        if pairs:
            named = [kinds.get(kept[a], "pairs") for a, _ in pairs]
            report.setdefault("pairs", {})[of] = told_apart(means, pairs, named)
    return report, found
