"""What a run expects to come: the later part of a clip predicted from its beginning, in numbers and in pictures.

Latents are no pictures. Two ways make them such, neither of which is trained with the encoder: every predicted token is
shown as that token of the training clips whose target it is most like, and a linear map draws its grey pixels.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from rich.box import SIMPLE
from rich.table import Table as Lines

from cora import config
from cora.measure.guesses import ridge, take
from cora.measure.skill import SIDE, Predictor, Sample, halves, readout, restore, sample, shares
from cora.schema import require

Clips = UInt8[np.ndarray, "n T H W 3"]
CANDIDATES = 20_000
"""Tokens of training clips among which the most alike is looked for."""


def cut_of(seen: int, model: config.Model) -> config.Mask:
    """Returns the mask under which `seen` time steps are seen and all later ones asked for."""
    return config.Mask(kinds=("future",), cut=seen / model.grid[0])


def read(
    ckpt: Path, source: Path, ledger: Path, seen: int | None = None, level: int | None = None, count: int = 1024,
    seed: int = 0, shown: int = 4,
) -> tuple[dict[str, Any], dict[str, UInt8[np.ndarray, "m T H W 3"]]]:
    """Returns the forecast's report on a corpus, for JSON, and `pictures` of the first `shown` clips of its test split.

    The report has what `skill` says of the kind `future` with a cut after `seen` time steps (by default half of them):
    by level, and by horizon, which share of the variance is left, beside guesses without a network; maps are fitted to
    the training clips. Raises ConfigError where nothing would be seen or asked for.
    """
    predictor, step = restore(ckpt)
    model = predictor.settings.model
    t, highest = model.grid[0], model.levels - 1
    past = t // 2 if seen is None else seen
    require(0 < past < t, "seen", past, f"must be 1 to {t - 1} of a clip's {t} time steps; nearest: "
            f"{min(max(past, 1), t - 1)}")
    require(level is None or 0 <= level <= highest, "level", level, f"must be 0 to {highest}; nearest: {highest}")
    train, test = halves(source, predictor.settings, ledger, count, seed)
    asked = cut_of(past, model)
    a, b = (sample(predictor, clips, "future", seed + i, asked) for i, clips in enumerate((train, test)))
    report = {"step": step, "corpus": str(source), "n_train": len(train), "n_test": len(test), "seen": past,
              "frames_a_step": model.tubelet, **shares(a, b, model.grid), "readout_r2": readout(a, b, model.grid)}
    at = len(b.predicted) - 1 if level is None else level
    return report, pictures(predictor, train, test[:shown], a, first(b, shown), at)


def first(one: Sample, count: int) -> Sample:
    """Returns the sample of its first clips alone."""
    return Sample(one.hidden[:count], one.predicted[:, :count], one.targets[:, :count], one.energies[:count],
                  one.pixels[:count])


def alike(
    asked: Float[np.ndarray, "M D"], known: Float[np.ndarray, "K D"]
) -> Int[np.ndarray, " M"]:
    """Returns which of the known tokens has the largest cosine with each that is asked for."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (asked, known)]
    return np.argmax(unit[0] @ unit[1].T, axis=1)


def pictures(
    predictor: Predictor, train: Clips, test: UInt8[np.ndarray, "m T H W 3"], a: Sample, b: Sample, level: int,
    seed: int = 0,
) -> dict[str, UInt8[np.ndarray, "m T H W 3"]]:
    """Returns the test clips as they were (`what came`), and with their hidden tokens replaced: by those tokens of the
    training clips that are most alike to their targets (`nearest to the targets`, the best that this way of drawing
    can do) or to what is predicted (`nearest to the forecast`); and by what a ridge map draws of the predictions in
    grey (`linear map of the forecast`)."""
    model = predictor.settings.model
    own = 0 if len(b.targets) == 1 else len(b.targets) - len(b.predicted) + level
    known = a.targets[own].reshape(-1, a.targets.shape[-1])
    chosen = np.sort(np.random.default_rng(seed).permutation(len(known))[:CANDIDATES])
    patches = cells(train, model).reshape(len(known), *_cell(model))
    drawn = ridge(a.predicted[level], take(a.pixels, a.hidden))(b.predicted[level])
    small = np.clip(drawn.reshape(*b.hidden.shape, SIDE, SIDE), 0, 1)
    scale = -(-model.patch // SIDE)
    grey = np.repeat(np.repeat(small, scale, 2), scale, 3)[:, :, : model.patch, : model.patch]
    grey = np.broadcast_to((grey * 255)[:, :, None, :, :, None], (*b.hidden.shape, *_cell(model))).astype(np.uint8)
    found = {"what came": test}
    for name, goal in (("nearest to the targets", take(b.targets[own], b.hidden)),
                       ("nearest to the forecast", b.predicted[level])):
        picked = chosen[alike(goal.reshape(-1, goal.shape[-1]), known[chosen])]
        found[name] = replaced(test, b.hidden, patches[picked].reshape(*b.hidden.shape, *_cell(model)), model)
    return found | {"linear map of the forecast": replaced(test, b.hidden, grey, model)}


def _cell(model: config.Model) -> tuple[int, int, int, int]:
    return model.tubelet, model.patch, model.patch, 3


def cells(clips: Clips, model: config.Model) -> UInt8[np.ndarray, "n N u p p 3"]:
    """Returns the pixels of every token."""
    (t, h, w), (u, p, _, _) = model.grid, _cell(model)
    parts = clips.reshape(len(clips), t, u, h, p, w, p, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return parts.reshape(len(clips), t * h * w, u, p, p, 3)


def replaced(
    clips: Clips, hidden: Int[np.ndarray, "n M"], pixels: UInt8[np.ndarray, "n M u p p 3"], model: config.Model
) -> Clips:
    """Returns the clips with these pixels at their hidden tokens."""
    (t, h, w), (u, p, _, _) = model.grid, _cell(model)
    parts = cells(clips, model).copy()
    parts[np.arange(len(clips))[:, None], hidden] = pixels
    whole = parts.reshape(len(clips), t, h, w, u, p, p, 3).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return whole.reshape(clips.shape)


def as_table(report: dict[str, Any]) -> Lines:
    """Returns the report for people: a row for each time step ahead."""
    horizons = report["by_horizon"]
    levels = len(report["left"])
    lines = Lines("steps ahead", *(f"level {i}" for i in range(levels)), "best guess", "skill of the highest",
                  box=SIMPLE, padding=(0, 1))
    lines.caption = (f"share of variance left, given {report['seen']} time steps; {report['n_test']} clips, guesses "
                     f"fitted on {report['n_train']} others")

    def row(name: str, left: list[float], guesses: dict[str, float]) -> None:
        best = min(guesses, key=lambda guess: guesses[guess])
        word = "ridge" if best == "neighbours" else best
        lines.add_row(name, *(f"{x:.2f}" for x in left), f"{guesses[best]:.2f} {word}",
                      f"{1 - left[-1] / guesses[best]:+.2f}")

    for ahead in range(len(horizons["left"][0])):
        row(str(ahead + 1), [one[ahead] for one in horizons["left"]],
            {name: each[-1][ahead] for name, each in horizons["trivial"].items()})
    row("all", report["left"], {name: each[-1] for name, each in report["trivial"].items()})
    return lines
