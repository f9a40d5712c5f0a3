"""The embedded corpus: labelled motions of drawn sprites, written as H.264 files; nothing is downloaded.

Twelve motions that only time tells apart, times twelve identities, pace, colour, size, orientation, backdrop and
camera drift, all drawn independently of the motion. The test split holds out a quarter of the (identity, motion)
pairs and three families of backdrops: training never shows either. Frames follow from the seed, bit for bit.

This file knows motions, labels and splits. How a sprite looks is the business of `drawing`, how a file is encoded
that of `codec`.
"""

import csv
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from cora.files import whole
from cora.meaning import Count, Natural, Positive, Range
from cora.schema import check, guard, require
from cora.video import codec, drawing

VERSION = 1
"""Part of the cache's key: raise it whenever the same plan would give other pixels."""
COLUMNS = ("path", "label", "class_name", "group", "split", "n_frames", "height", "width", "fps")
HELD_OUT = ("marble", "cells", "weave")
"""Families of backdrops that only the test split shows."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many clips of which shape; `train` and `test` are balanced over motions when 108 and 36 divide them."""

    seed: Natural = 0
    train: Count = 540
    test: Natural = 252
    frames: Annotated[int, Range(2)] = 20
    side: Annotated[int, Range(16, 128)] = 80
    fps: Positive = 12.0

    def __post_init__(self) -> None:
        check("plan", self)
        require(self.side % 2 == 0, "plan.side", self.side, f"H.264 needs an even side; nearest: {self.side + 1}")


# --------------------------------------------------------------------------------------------------- motions


class Track(NamedTuple):
    """A motion from its own origin: offsets in sides of the frame, logarithm of the size, turn in radians."""

    x: Float[np.ndarray, "T"]
    y: Float[np.ndarray, "T"]
    grow: Float[np.ndarray, "T"]
    turn: Float[np.ndarray, "T"]


def _moving(like: Float[np.ndarray, "T"], **parts: Float[np.ndarray, "T"]) -> Track:
    return Track(**{name: parts.get(name, np.zeros_like(like)) for name in Track._fields})


Motion = Callable[[Float[np.ndarray, "T"], float, float], Track]
"""(time in clips at nominal pace, phase in [0, 1), hand of -1 or 1) to the path. y grows downwards."""
TRAVEL, ORBIT, GROWTH = 0.58, 0.17, 1.0


def _orbit(t: Float[np.ndarray, "T"], phase: float, sense: int) -> Track:
    angle = sense * 2 * np.pi * (1.25 * t + phase)
    return _moving(t, x=ORBIT * np.cos(angle), y=ORBIT * np.sin(angle))


def _bounce(t: Float[np.ndarray, "T"], phase: float, hand: float) -> Track:
    flight = (1.7 * t + phase) % 1
    return _moving(t, x=hand * 0.16 * t, y=-1.4 * flight * (1 - flight))


def _zigzag(t: Float[np.ndarray, "T"], phase: float, hand: float) -> Track:
    return _moving(t, x=0.17 * (4 * np.abs((1.9 * t + phase) % 1 - 0.5) - 1), y=hand * 0.36 * t)


def _sway(t: Float[np.ndarray, "T"], phase: float, hand: float) -> Track:
    swing = 0.75 * np.sin(2 * np.pi * (1.3 * t + phase))
    return _moving(t, x=0.3 * np.sin(swing), y=0.3 * np.cos(swing), turn=-swing)


MOTIONS: dict[str, Motion] = {
    "right": lambda t, phase, hand: _moving(t, x=TRAVEL * t),
    "left": lambda t, phase, hand: _moving(t, x=-TRAVEL * t),
    "up": lambda t, phase, hand: _moving(t, y=-TRAVEL * t),
    "down": lambda t, phase, hand: _moving(t, y=TRAVEL * t),
    "clockwise": lambda t, phase, hand: _orbit(t, phase, 1),
    "anticlockwise": lambda t, phase, hand: _orbit(t, phase, -1),
    "grow": lambda t, phase, hand: _moving(t, grow=GROWTH * t),
    "shrink": lambda t, phase, hand: _moving(t, grow=-GROWTH * t),
    "bounce": _bounce,
    "zigzag": _zigzag,
    "spin": lambda t, phase, hand: _moving(t, turn=hand * 2 * np.pi * 1.2 * t),
    "sway": _sway,
}
"""Their order is the order of the labels."""

# ----------------------------------------------------------------------------------------------------- plans


class Scene(NamedTuple):
    """One clip before it is drawn; all that its pixels depend on."""

    split: str
    motion: str
    identity: str
    backdrop: str
    speed: float
    """Pace of the motion as a multiple of nominal."""
    seed: tuple[int, int]


def held_out(identity: str, motion: str) -> bool:
    """Returns whether this pair belongs to the test split: three identities of every motion, three motions of each."""
    return (drawing.IDENTITIES.index(identity) - list(MOTIONS).index(motion)) % 12 in (0, 5, 7)


def scenes(plan: Plan) -> tuple[Scene, ...]:
    """Returns every clip of the corpus, train first; motions, and identities and backdrops within each, balanced."""
    rng = np.random.default_rng([plan.seed, VERSION])
    drawn: list[Scene] = []
    for split, count in (("train", plan.train), ("test", plan.test)):
        test = split == "test"
        pairs = [(i, m) for m in MOTIONS for i in drawing.IDENTITIES if held_out(i, m) == test]
        backdrops = [b for b in drawing.BACKDROPS if (b.split("-")[0] in HELD_OUT) == test]
        # Each motion deals from its own shuffled decks, so that neither nuisance can lean towards a label.
        decks = {m: (_deck(rng, [i for i, n in pairs if n == m]), _deck(rng, backdrops)) for m in MOTIONS}
        for k in range(count):
            motion = list(MOTIONS)[k % len(MOTIONS)]
            identity, backdrop = (next(deck) for deck in decks[motion])
            speed = round(float(rng.uniform(0.75, 1.3)), 3)
            drawn.append(Scene(split, motion, identity, backdrop, speed, (plan.seed, len(drawn))))
    return tuple(drawn)


def _deck(rng: np.random.Generator, cards: Sequence[str]) -> Iterator[str]:
    while True:
        yield from (cards[i] for i in rng.permutation(len(cards)))


def draw(scene: Scene, plan: Plan) -> UInt8[np.ndarray, "T H W 3"]:
    """Returns the frames of a scene: the sprite's path anchored at a random place in the middle of the clip.

    Anchoring in the middle, and not at the start, leaves the middle frame without a hint of the motion.
    """
    rng = np.random.default_rng([*scene.seed, VERSION, 7])
    time = (np.arange(plan.frames) - (plan.frames - 1) / 2) / plan.frames
    path = MOTIONS[scene.motion](scene.speed * time, rng.random(), float(rng.choice([-1, 1])))
    middle = plan.frames // 2
    place = [_inside(rng.uniform(0.36, 0.64), offset - offset[middle]) for offset in (path.x, path.y)]
    radius, angle = rng.uniform(0.115, 0.16), rng.uniform(0, 2 * np.pi)
    drift = rng.uniform(0, 0.1) * np.array([np.cos(a := rng.uniform(0, 2 * np.pi)), np.sin(a)])
    camera = drift[:, None] * time * plan.side
    pose = drawing.Pose(
        x=(path.x - path.x[middle] + place[0]) * plan.side - camera[0],
        y=(path.y - path.y[middle] + place[1]) * plan.side - camera[1],
        radius=radius * plan.side * np.exp(path.grow),
        angle=path.turn + angle,
    )
    slack = np.abs(camera).max(1)
    corner = rng.uniform(slack, drawing.CANVAS - plan.side - 2 - slack)
    picture = np.ascontiguousarray(np.rot90(drawing.backdrop(scene.backdrop), int(rng.integers(4))))
    frames = drawing.film(picture, corner[0] + camera[0], corner[1] + camera[1], plan.side)
    drawing.paint(frames, drawing.sprite(scene.identity, int(rng.integers(len(drawing.COLOURS)))), pose)
    return drawing.developed(frames)


def _inside(place: float, offset: Float[np.ndarray, "T"]) -> float:
    """Returns the place nearest to `place` from which the path keeps the sprite's centre in the frame."""
    return float(np.clip(place, min(0.02 - offset.min(), 0.5), max(0.98 - offset.max(), 0.5)))


# ----------------------------------------------------------------------------------------------------- files


def write_manifest(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as CSV in the project's format, atomically; columns beyond COLUMNS follow in the rows' own order."""
    text = io.StringIO()
    extra = [key for key in rows[0] if key not in COLUMNS]
    table = csv.DictWriter(text, [*COLUMNS, *extra], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    with whole(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8")


def _planned(seed: int, plan: Plan | None) -> Plan:
    require(plan is None or seed == 0, "seed", seed, "is that of the default plan, and a plan is given; nearest: 0")
    return plan or Plan(seed=seed)


@guard
def render(folder: Path, *, seed: Natural = 0, plan: Plan | None = None) -> Path:
    """Writes the corpus into `folder` and returns its manifest.csv; identity.csv labels the same clips by identity.

    The manifest is written last: a folder that has one is whole. `seed` is that of the default plan.
    """
    plan = _planned(seed, plan)
    folder = Path(folder)
    manifest = folder / "manifest.csv"
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    rows = []
    for k, scene in enumerate(scenes(plan)):
        path = f"clips/{k:04d}_{scene.motion}.mp4"
        codec.write(folder / path, draw(scene, plan), plan.fps)
        rows.append({
            "path": path, "label": list(MOTIONS).index(scene.motion), "class_name": scene.motion,
            "group": scene.backdrop, "split": scene.split, "n_frames": plan.frames, "height": plan.side,
            "width": plan.side, "fps": plan.fps, "identity": scene.identity, "background": scene.backdrop,
            "speed": scene.speed,
        })
    named = [
        {**row, "label": drawing.IDENTITIES.index(row["identity"]), "class_name": row["identity"],
         "motion": row["class_name"]} for row in rows
    ]
    write_manifest(folder / "identity.csv", named)
    write_manifest(manifest, rows)
    return manifest


@guard
def corpus(seed: Natural = 0, *, plan: Plan | None = None) -> Path:
    """Returns the manifest of the corpus in the user's cache, rendered on first use.

    The cache is `$XDG_CACHE_HOME/cora`, or `~/.cache/cora`. A folder appears there under its final name only when
    it is whole; what a killed render leaves behind carries another name.
    """
    plan = _planned(seed, plan)
    key = hashlib.sha256(repr((VERSION, astuple(plan))).encode()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cora"
    final = home / f"synthetic-{key}"
    if not (final / "manifest.csv").exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=home) as part:
            whole = Path(part) / "corpus"
            render(whole, plan=plan)
            _settle(whole, final)
    return final / "manifest.csv"


def _settle(whole: Path, final: Path) -> None:
    """Renames `whole` to `final`, unless another process has finished the same corpus first."""
    try:
        os.rename(whole, final)
    except OSError:
        if not (final / "manifest.csv").exists():
            raise


# --------------------------------------------------------------------------------------------------- picture


Captioned = list[tuple[str, UInt8[np.ndarray, "T H W 3"]]]


def contact_sheet(clips: Captioned, *, shown: int = 6, columns: int = 2) -> UInt8[np.ndarray, "Y X 3"]:
    """Returns a picture of clips, one a row: caption, then `shown` frames evenly spaced in time; rows in columns."""
    font = ImageFont.load_default(15)
    side, gap, margin = clips[0][1].shape[1], 3, 20 + round(max(font.getlength(caption) for caption, _ in clips))
    wide, high = margin + shown * (side + gap) + 14, side + gap + 5
    rows = -(-len(clips) // columns)
    page = Image.new("RGB", (columns * wide + 4, rows * high + 6), "#fbfaf7")
    pen = ImageDraw.Draw(page)
    for k, (caption, video) in enumerate(clips):
        left, top = (k // rows) * wide, (k % rows) * high + 6
        pen.text((left + margin - 10, top + side // 2), caption, "#2b2d42", font, anchor="rm")
        for i, frame in enumerate(np.linspace(0, len(video) - 1, shown).round().astype(int)):
            page.paste(Image.fromarray(video[frame]), (left + margin + i * (side + gap), top))
    return np.asarray(page)
