"""What the numbers of a run say: curves, verdicts and colour maps as arrays and words. Nothing is drawn here."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

LEAST_RANK = 0.1
"""Of the width: below it a level uses so few directions that it has lost most of what it could tell apart."""
LEAST_STD = 0.05
"""Below it all tokens look alike; layer-normed latents of a healthy level lie between 0.3 and 1."""
LEAST_KEPT = 0.5
"""Of its own best rank: a level that has fallen below it is on its way to collapse."""


# --------------------------------------------------------------------------------------------------------- curves


def series(rows: Sequence[dict[str, Any]], name: str) -> Float[np.ndarray, "n L"] | None:
    """Returns a metric over the rows, one column a level (scalars: one column); None if no row has it.

    Rows without it are nan.
    """
    found = [np.atleast_1d(np.asarray(row[name], np.float64)) for row in rows if name in row]
    if not found:
        return None
    empty = np.full(len(found[0]), np.nan)
    return np.stack([np.atleast_1d(np.asarray(row[name], np.float64)) if name in row else empty for row in rows])


def thin(values: Float[np.ndarray, "n *rest"], most: int = 500) -> Float[np.ndarray, "m *rest"]:
    """Returns at most `most` means of neighbouring rows; the values themselves if there are no more than that."""
    if len(values) <= most:
        return values
    edges = np.linspace(0, len(values), most + 1).astype(int)
    return np.add.reduceat(values, edges[:-1], axis=0) / np.diff(edges).reshape(-1, *[1] * (values.ndim - 1))


def smooth(values: Float[np.ndarray, "n L"], share: float = 0.04) -> Float[np.ndarray, "n L"]:
    """Returns the mean over a window of `share` of the curve around each point, cut at the ends; nan left out."""
    reach = round(share * len(values) / 2)
    known = np.isfinite(values)
    sums = np.cumsum(np.pad(np.where(known, values, 0.0), ((1, 0), (0, 0))), axis=0)
    counts = np.cumsum(np.pad(known.astype(float), ((1, 0), (0, 0))), axis=0)
    i = np.arange(len(values))
    low, high = np.maximum(i - reach, 0), np.minimum(i + reach + 1, len(values))
    total, count = sums[high] - sums[low], counts[high] - counts[low]
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


# ------------------------------------------------------------------------------------------------------- verdicts


class Verdict(NamedTuple):
    """A judgement in plain words."""

    state: Literal["healthy", "warning", "unknown"]
    line: str
    advice: str
    """What to do; empty where nothing is to be done."""


def verdict(rank: Float[np.ndarray, "n L"] | None, std: Float[np.ndarray, "n L"] | None, width: int) -> Verdict:
    """Returns whether any level has collapsed or is about to, from the last tenth of the curves.

    A level is suspect if its effective rank is below LEAST_RANK of the width, its standard deviation below
    LEAST_STD, or its rank below LEAST_KEPT of the best it had; the first that holds is told, worst first.
    """
    if rank is None or std is None or not (np.isfinite(rank).any() and np.isfinite(std).any()):
        return Verdict("unknown", "No rank or deviation was recorded, so collapse cannot be judged.", "")
    last, spread = _end(rank), _end(std)
    if (bad := np.flatnonzero(~(spread >= LEAST_STD))).size:
        return Verdict("warning", f"Warning: {_levels(bad)} tells tokens apart no more "
                       f"(standard deviation {_list(spread[bad], '.3f')}, healthy above {LEAST_STD}).",
                       "The latents have collapsed: strengthen the regulariser, lower the learning rate, or slow "
                       "the teacher (momentum nearer 1), and start again.")
    if (bad := np.flatnonzero(~(last >= LEAST_RANK * width))).size:
        return Verdict("warning", f"Warning: {_levels(bad)} uses few of its {width} directions "
                       f"(effective rank {_list(last[bad], '.1f')}, healthy above {LEAST_RANK * width:.0f}).",
                       "Partial collapse: strengthen the regulariser, enlarge the batch, or use more varied clips.")
    best = np.nanmax(smooth(rank), axis=0)
    if (bad := np.flatnonzero(last < LEAST_KEPT * best)).size:
        return Verdict("warning", f"Warning: {_levels(bad)} has lost more than half of its best effective rank "
                       f"({_list(last[bad], '.1f')} now, {_list(best[bad], '.1f')} at best).",
                       "It is shrinking: stop early, or strengthen the regulariser before it collapses.")
    return Verdict("healthy", f"Healthy: every level keeps an effective rank of at least {last.min():.0f} of {width} "
                   f"and a standard deviation of at least {spread.min():.2f}.", "")


def _end(values: Float[np.ndarray, "n L"]) -> Float[np.ndarray, "L"]:
    return smooth(values[-max(1, len(values) // 10):], share=2.0)[-1]


def _list(numbers: Float[np.ndarray, "n"], form: str) -> str:
    return ", ".join(format(x, form) for x in numbers)


def _levels(levels: Int[np.ndarray, "n"]) -> str:
    return f"level{'s' if len(levels) > 1 else ''} {', '.join(map(str, levels))}"


def compare(score: dict[str, Any]) -> str:
    """Returns in words whether the trained features beat random ones and pixels, judged by the 95 % interval of the
    lead over groups where it is known, else by whether the two intervals overlap."""
    parts = []
    for name, words in (("random", "the same network untrained"), ("pixels", "raw pixels"),
                        ("targets", "its targets read without a network")):
        if name not in score:  # only fixed targets can be read
            continue
        other = score[name]
        if "ahead" in other and other["ahead_ci95"][0] > 0:
            low, high = (100 * x for x in other["ahead_ci95"])
            parts.append(f"better than {words} ({other['accuracy']:.0%}) by {low:.0f} to {high:.0f} points")
        elif score["ci95"][0] > other["ci95"][1]:
            parts.append(f"clearly better than {words} ({other['accuracy']:.0%})")
        elif score["accuracy"] > other["accuracy"]:
            parts.append(f"above {words} ({other['accuracy']:.0%}), though not beyond doubt")
        else:
            parts.append(f"no better than {words} ({other['accuracy']:.0%})")
    return f"{score['accuracy']:.0%} correct: " + ", and ".join(parts)


# ---------------------------------------------------------------------------------------------------- colour maps


def colour_maps(latents: Float[np.ndarray, "V t h w D"]) -> tuple[UInt8[np.ndarray, "V t h w 3"], float]:
    """Returns the first three principal components over the tokens of all clips as red, green and blue, and their
    share of the variance.

    Each component is stretched from its 2nd to its 98th percentile; its sign is the one that gives it a positive
    third moment, so that the picture depends neither on the solver nor on a rotation of the latents. Where there
    is no variance the picture is grey.
    """
    tokens = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    tokens = tokens - tokens.mean(0)
    variance, directions = np.linalg.eigh(tokens.T @ tokens)  # D x D: there are far more tokens than channels
    if not (whole := variance.sum()) > 1e-12 * tokens.size:
        return np.full((*latents.shape[:-1], 3), 128, np.uint8), 0.0
    scores = np.zeros((len(tokens), 3))
    kept = tokens @ directions[:, :-4:-1]
    scores[:, :kept.shape[1]] = kept * np.where((kept ** 3).sum(0) < 0, -1, 1)
    low, high = np.percentile(scores, [2, 98], axis=0)
    flat = high - low <= 1e-6 * np.abs(scores).max()
    unit = np.where(flat, 0.5, (scores - low) / np.where(flat, 1.0, high - low)).clip(0, 1)
    colours = (unit * 255).round().astype(np.uint8).reshape(*latents.shape[:-1], 3)
    return colours, float(variance[-3:].sum() / whole)


# ------------------------------------------------------------------------------------------------------- pictures


def _weights(size: int, side: int) -> Float[np.ndarray, "side size"]:
    """Returns the weights of a triangular filter that takes `size` pixels to `side`, each row summing to 1."""
    scale = size / side
    centre = (np.arange(side)[:, None] + 0.5) * scale - 0.5
    weight = (1 - np.abs(np.arange(size) - centre) / max(1.0, scale)).clip(0)
    return weight / weight.sum(1, keepdims=True)


def resize(frames: UInt8[np.ndarray, "n H W 3"], height: int, width: int) -> UInt8[np.ndarray, "n h w 3"]:
    """Returns the frames at a new size, interpolated linearly (averaged over the area where they shrink)."""
    shrunk = np.einsum("yh,nhwc,xw->nyxc", _weights(frames.shape[1], height), frames, _weights(frames.shape[2], width),
                       optimize=True)
    return shrunk.round().clip(0, 255).astype(np.uint8)


def enlarge(tokens: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns [n, h, w, ...] repeated over [n, height, width, ...]: every pixel has the value of its token."""
    rows = np.arange(height) * tokens.shape[1] // height
    columns = np.arange(width) * tokens.shape[2] // width
    return tokens[:, rows][:, :, columns]


def paint_masks(frames: UInt8[np.ndarray, "n H W 3"], state: Int[np.ndarray, "n h w"],
                tint: tuple[int, int, int]) -> UInt8[np.ndarray, "n H W 3"]:
    """Returns the frames with context (1) as it is, targets (2) grey under a tint, and all else faded to near white."""
    state = enlarge(state, *frames.shape[1:3])[..., None]
    grey = frames.mean(-1, keepdims=True)
    target = 0.7 * np.array(tint) + 0.3 * grey
    painted = np.select([state == 1, state == 2], [frames.astype(float), target], 226 + 0.1 * grey)
    return painted.round().astype(np.uint8)


def strip(frames: UInt8[np.ndarray, "n H W 3"], gap: int = 4) -> UInt8[np.ndarray, "H X 3"]:
    """Returns the frames side by side, `gap` white pixels between them."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-gap]
