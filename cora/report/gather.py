"""What a run folder has to show: its encoder's view of a few clips, and the run in numbers."""

import importlib.metadata
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from cora import config
from cora.measure.features import trained
from cora.pc import masks
from cora.report.material import Gallery, Shown
from cora.store import record
from cora.store.checkpoint import CheckpointError
from cora.store.probes import FORECAST, SKILL, SURPRISE, scores
from cora.train import corpus_of
from cora.video import stream
from cora.video.clips import ENDLESS, views
from cora.video.codec import VideoError

PACKAGES = ("jax", "flax", "optax", "grain", "orbax-checkpoint", "av", "scikit-learn", "numpy")


def summary(run: Path) -> dict[str, Any]:
    """Returns {steps, seconds, clips_per_second, wait_share, rank_per_level, device, versions} of a run folder.

    Rates are medians over the logged rows, after compilation; `seconds` counts the training of the last process.
    """
    rows = record.read(run / record.FILE) if (run / record.FILE).is_file() else []
    if not rows:
        raise CheckpointError(f"{run}: no rows in {record.FILE}; give the --workdir of a `cora pretrain`")
    rates = {name: [row[name] for row in rows if np.isfinite(row[name])] for name in ("clips_per_second", "wait_share")}
    return {
        "steps": rows[-1]["step"],
        "seconds": rows[-1]["seconds"],
        **{name: float(np.median(values)) if values else None for name, values in rates.items()},
        "rank_per_level": rows[-1]["rank"],
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind} ({platform.machine()})",
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
    }


def gallery(run: Path, *, count: int = 6) -> Gallery:
    """Returns what the report draws of a run folder: `count` clips spread over the corpus' classes, and their latents.

    `probe.json` is shown where it lies in the folder and is of the same step.
    """
    settings, encoder = trained(run)
    shown = _readable(settings, count)
    clips = np.stack([video for _, video in shown])
    z = np.asarray(encoder(clips))
    grid = settings.model.grid
    found, left_out = scores(run, encoder.record.get("step"))
    return Gallery(
        clips=clips,
        captions=tuple(name for name, _ in shown),
        tokens=_tokens(settings, len(clips)),
        latents=z.transpose(1, 0, 2, 3).reshape(len(clips), len(z), *grid, -1),
        probe=found,
        summary=summary(run),
        left_out=left_out,
        skill=scores(run, encoder.record.get("step"), SKILL)[0],
        forecast=_shown(run, encoder.record.get("step"), FORECAST),
        surprise=_shown(run / Path(SURPRISE).stem, encoder.record.get("step"), SURPRISE),
    )


def _shown(folder: Path, step: int | None, name: str) -> Shown | None:
    """Returns what a verb found of this step's encoder, with its picture; None where either is missing."""
    found, picture = scores(folder, step, name)[0], (folder / name).with_suffix(".png")
    return Shown(found, picture.read_bytes()) if found is not None and picture.is_file() else None


def _readable(settings: config.Pretrain, count: int) -> list[tuple[str, np.ndarray]]:
    """Returns up to `count` readable clips, of as many classes as there are, each with its name; of the stream, films
    that no run comes to."""
    model = settings.model
    if settings.corpus.path == config.STREAM:
        films = [stream.renderer(model.frames, model.sides)(settings.run.seed, ENDLESS - i) for i in range(count)]
        return [((*stream.MOTIONS, "nothing")[stream.subject(facts)], video) for video, facts in films]
    rows = corpus_of(settings.corpus).clips
    seen: Counter[int | None] = Counter()
    rounds = []  # the n-th clip of its class belongs to round n
    for row in rows:
        rounds.append(seen[row.label])
        seen[row.label] += 1
    order = sorted(range(len(rows)), key=rounds.__getitem__)
    found: list[tuple[str, np.ndarray]] = []
    for i in order[: 4 * count]:
        try:
            video = views(rows[i].path, settings.corpus, frames=model.frames, size=model.size, count=1)[0]
        except VideoError:  # it stands in the run's ledger already
            continue
        found.append((rows[i].class_name or rows[i].path.name, video))
        if len(found) == count:
            return found
    if not found:
        raise CheckpointError(f"none of the corpus' first {4 * count} clips can be read; see `cora pretrain`'s ledger")
    return found


def _tokens(settings: config.Pretrain, clips: int) -> dict[str, Int[np.ndarray, "V t h w"]]:
    """Returns kind -> state of every token (0 neither, 1 context, 2 target) under masks as the run draws them."""
    grid = settings.model.grid
    return {name: masks.states(masks.sample(jax.random.key(number), kind, clips), grid)
            for number, (name, kind) in enumerate(masks.kinds(settings.mask, grid).items())}
