"""Files that show what surprised a run: videos with heat over them, curves, and the numbers themselves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from rich.box import SIMPLE
from rich.table import Table as Lines

from cora import config
from cora.measure.surprise import Score, Surprise, values
from cora.report import figures
from cora.store.probes import FORECAST, SURPRISE
from cora.video import codec
from cora.video.clips import whole

SHOWN = 3
"""Films on the picture of those that surprise most."""
SIDE = 256
"""Pixels of the shorter side of a video with heat over it, where the clip itself has fewer."""


def overlay(
    video: UInt8[np.ndarray, "F H W 3"], heat: Float[np.ndarray, "S h w"], tubelet: int
) -> UInt8[np.ndarray, "G Y X 3"]:
    """Returns the frames, and to their right the same ones under the heat (0 to 1) of their time step's tokens."""
    scale = max(1, -(-SIDE // min(video.shape[1:3])))
    high, wide = (side * scale // 2 * 2 for side in video.shape[1:3])
    made = []
    for step, warmth in enumerate(heat):
        glow = Image.fromarray(warmth.astype(np.float32)).resize((wide, high), Image.Resampling.BICUBIC)
        share = np.clip(np.asarray(glow), 0, 1)[..., None]
        colour = figures.heat(share[..., 0])
        for frame in video[step * tubelet : (step + 1) * tubelet]:
            plain = np.asarray(Image.fromarray(frame).resize((wide, high), Image.Resampling.BICUBIC))
            hot = 0.5 * plain + 0.9 * share * colour
            made.append(np.concatenate([plain, np.clip(hot, 0, 255).astype(np.uint8)], axis=1))
    return np.stack(made)


def strip(clips: dict[str, UInt8[np.ndarray, "n T H W 3"]], seen: int, tubelet: int) -> bytes:
    """Returns a PNG file of what `forecast.pictures` made: a frame for each time step, those that were seen first."""
    rows = [(name, np.concatenate(list(clips[name][i, ::tubelet]), axis=1))
            for i in range(len(next(iter(clips.values())))) for name in clips]
    return figures.strips(rows, f"time from left to right, a frame for each time step; the first {seen} were seen")


def write_forecast(
    folder: Path, report: dict[str, Any], clips: dict[str, UInt8[np.ndarray, "n T H W 3"]]
) -> list[Path]:
    """Writes forecast.json and forecast.png, and returns the two."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / FORECAST, (folder / FORECAST).with_suffix(".png")]
    files[0].write_text(json.dumps(report, indent=2))
    files[1].write_bytes(strip(clips, report["seen"], report["frames_a_step"]))
    return files


def write(
    folder: Path, report: dict[str, Any], found: Sequence[Surprise], settings: config.Pretrain, of: Score, level: int,
    show: int,
) -> list[Path]:
    """Writes surprise.json, surprise.npz and, of the `show` films that surprise most at this level, a video with heat
    over it and a curve; returns the files. Heat is on one scale for all."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / SURPRISE, folder / "surprise.npz"]
    files[0].write_text(json.dumps(report | {"score": of, "level": level}, indent=2))
    arrays: dict[str, Any] = {f"{i:06d}_{name}": value for i, one in enumerate(found)
                              for name, value in one._asdict().items()}
    np.savez_compressed(files[1], **arrays)
    model, every = settings.model, np.concatenate([values(one, of)[level].ravel() for one in found])
    low, high = np.quantile(every, (0.5, 0.995))
    rows: list[tuple[str, np.ndarray]] = []
    for rank, i in enumerate(ranked(report, of, level)[:show]):
        path = Path(report["films"][i]["path"])
        video, rate = whole(path, settings.corpus, size=model.size), report["films"][i]["fps"]
        name = folder / f"{rank + 1:02d}_{path.stem}"
        heat = (values(found[i], of)[level] - low) / max(high - low, 1e-9)
        hot = overlay(video, heat, model.tubelet)
        rows += [(path.stem.replace("_", " "), moments(hot[:, :, : hot.shape[2] // 2])),
                 ("surprise", moments(hot[:, :, hot.shape[2] // 2 :]))]
        codec.write(name.with_suffix(".mp4"), hot, rate)
        seconds = (np.arange(heat.shape[0]) + 1) * model.tubelet / rate
        line = np.array(report["films"][i][of]["curve"])
        name.with_suffix(".svg").write_bytes(figures.timeline(seconds, line, f"{path.name}: {of} by level"))
        files += [name.with_suffix(".mp4"), name.with_suffix(".svg")]
    if rows:
        files.append((folder / SURPRISE).with_suffix(".png"))
        files[-1].write_bytes(figures.strips(rows[: 2 * SHOWN], "films that surprise most, time from left to right"))
    return files


def moments(video: UInt8[np.ndarray, "F H W 3"], count: int = 8) -> UInt8[np.ndarray, "H X 3"]:
    """Returns frames spread over the video, side by side."""
    return np.concatenate(list(video[np.linspace(0, len(video) - 1, count).astype(int)]), axis=1)


def ranked(report: dict[str, Any], of: Score, level: int) -> list[int]:
    """Returns the films' places in the report, the most surprising first, by their highest time step."""
    return sorted(range(len(report["films"])), key=lambda i: -report["films"][i][of]["peak"][level])


def as_table(report: dict[str, Any], of: Score, level: int, most: int = 10) -> Lines:
    """Returns the films that surprise most, for people."""
    lines = Lines("", "film", "class", "mean", "peak", "at second", box=SIMPLE, padding=(0, 1))
    lines.caption = f"{of} at level {level}; the {min(most, len(report['films']))} of {len(report['films'])} highest"
    for rank, i in enumerate(ranked(report, of, level)[:most]):
        film = report["films"][i]
        line = film[of]["curve"][level]
        second = (int(np.argmax(line)) + 1) * film["tubelet"] / film["fps"]
        lines.add_row(str(rank + 1), Path(film["path"]).name, film["class"] or "", f"{film[of]['mean'][level]:.3f}",
                      f"{max(line):.3f}", f"{second:.2f}")
    return lines


def pairs_table(report: dict[str, Any]) -> Lines:
    """Returns how often the impossible clip of a pair surprises more, by score and kind, a number for each level."""
    lines = Lines("score", "kind", "pairs", "accuracy by level", "AUROC by level", box=SIMPLE, padding=(0, 1))
    lines.caption = "share of pairs whose impossible clip scores higher; chance .50"
    for of, kinds in report["pairs"].items():
        for kind, found in kinds.items():
            each = [" ".join(f"{x:.2f}".lstrip("0") for x in found[name]) for name in ("accuracy", "auroc")]
            lines.add_row(of, kind, str(found["pairs"]), *each)
    return lines
