"""Pairs of possible and impossible events at an occluder, for asking what surprises a model.

The two clips of a pair are the same picture for picture until the event, and the object breaks the rules where it
cannot be seen, so that it takes the past to tell which clip is which. This file knows four events and their layout;
it draws with `drawing` and keeps its files the way `synthetic` does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from cora.meaning import Count, Natural
from cora.schema import guard
from cora.video import codec, drawing, synthetic

CLASSES = ("possible", "impossible")
"""In the order of the labels 0 and 1."""
FRAMES, SIDE, FPS = 32, 80, 12.0


class Screen(NamedTuple):
    """An upright slab in front of everything, from x = left to x = right, in pixels."""

    left: int
    right: int


class Course(NamedTuple):
    """Where the object's centre is in every frame, in pixels, and whether it is there at all."""

    x: Float[np.ndarray, "T"]
    y: Float[np.ndarray, "T"]
    there: Bool[np.ndarray, "T"]


class Story(NamedTuple):
    """An event: the slabs, what they are made of, and the object's two courses, told from left to right."""

    screens: tuple[Screen, ...]
    surface: Callable[[int, Float[np.ndarray, "3"]], Float[np.ndarray, "H w 3"]]
    possible: Course
    impossible: Course


class Pair(NamedTuple):
    """The two clips of an event, and the first frame in which they differ."""

    possible: UInt8[np.ndarray, "T H W 3"]
    impossible: UInt8[np.ndarray, "T H W 3"]
    event: int


# ------------------------------------------------------------------------------------------------------ scenery

TINTS = ("e8e2d4", "d9c7b0", "cfd8dc", "e3cfd0")


def _screen(centre: float, radius: float) -> Screen:
    """Returns a slab wide enough to hide an object of that radius, and its shadow, with room to move."""
    half = int(np.ceil(drawing.EXTENT * radius)) + drawing.SHADOW + 2
    return Screen(round(centre) - half, round(centre) + half)


def _plate(wide: int, tint: Float[np.ndarray, "3"]) -> Float[np.ndarray, "H w 3"]:
    """Returns a smooth plate, lit from the left, with dark edges: a thing to pass behind."""
    across = np.linspace(-1, 1, wide)
    light = (0.97 - 0.1 * across) * np.where(np.abs(across) > 0.95, 0.6, 1)
    return np.broadcast_to(light[:, None] * tint, (SIDE, wide, 3))


def _masonry(wide: int, tint: Float[np.ndarray, "3"]) -> Float[np.ndarray, "H w 3"]:
    """Returns a wall of bricks: a thing to bounce off."""
    y, x = np.mgrid[:SIDE, :wide]
    joint = (y % 8 == 0) | ((x + 6 * (y // 8 % 2)) % 12 == 0)
    shade = 1 + 0.12 * np.sin(5 * (y // 8) + 3 * ((x + 6 * (y // 8 % 2)) // 12))
    return np.where(joint[..., None], 0.9 * tint, 255 * shade[..., None] * drawing.rgb("a4503c"))


# ------------------------------------------------------------------------------------------------------- events


def _straight(radius: float, meet: int, centre: float) -> Float[np.ndarray, "T"]:
    """Returns x at constant speed, in sight at frame 0 and at `centre` in frame `meet`."""
    start = 1.5 * radius
    return start + (centre - start) / meet * np.arange(FRAMES)


def _level(x: Float[np.ndarray, "T"], height: float) -> Course:
    return Course(x, np.full(FRAMES, height), np.full(FRAMES, True))


def _vanish(radius: float, meet: int, height: float) -> Story:
    """The object does not come out again."""
    course = _level(_straight(radius, meet, SIDE / 2), height)
    return Story((_screen(SIDE / 2, radius),), _plate, course, course._replace(there=np.arange(FRAMES) < meet))


def _teleport(radius: float, meet: int, height: float) -> Story:
    """The object comes out from behind a second plate without having crossed the gap."""
    near, far, jump = round(0.33 * SIDE), round(0.72 * SIDE), meet - 4
    x = _straight(radius, jump, float(near))
    leapt = np.where(np.arange(FRAMES) < jump, x, x + far - near)
    screens = _screen(float(near), radius), _screen(float(far), radius)
    return Story(screens, _plate, _level(x, height), _level(leapt, height))


def _pass_through(radius: float, meet: int, height: float) -> Story:
    """A wall off which the object should bounce does not stop it."""
    wall = _screen(0.64 * SIDE, radius)
    x = _straight(radius, meet, wall.left - radius)
    return Story((wall,), _masonry, _level(np.minimum(x, 2 * x[meet] - x), height), _level(x, height))


def _reverse_gravity(radius: float, meet: int, height: float) -> Story:
    """A thrown object goes on upwards from the top of its arc, as if gravity had changed its sign."""
    course = _level(_straight(radius, meet, SIDE / 2), height)
    fall = 0.34 * SIDE * ((np.arange(FRAMES) - meet) / meet) ** 2
    flipped = np.where(np.arange(FRAMES) < meet, fall, -fall)
    return Story(
        (_screen(SIDE / 2, radius),), _plate, course._replace(y=height + fall), course._replace(y=height + flipped)
    )


EVENTS: dict[str, Callable[[float, int, float], Story]] = {
    "vanish": _vanish, "teleport": _teleport, "pass-through": _pass_through, "reverse-gravity": _reverse_gravity,
}


def draw_pair(kind: str, seed: tuple[int, int]) -> Pair:
    """Returns both clips of an event of that kind, one of EVENTS; the same kind and seed give the same bytes."""
    if kind not in EVENTS:
        raise ValueError(f"kind = {kind!r}: must be one of {', '.join(EVENTS)}")
    rng = np.random.default_rng([*seed, list(EVENTS).index(kind), synthetic.VERSION])
    radius, angle = rng.uniform(5.5, 7), rng.uniform(0, 2 * np.pi)
    story = EVENTS[kind](radius, int(rng.integers(12, 16)), rng.uniform(0.45, 0.55) * SIDE)
    texture = drawing.sprite(str(rng.choice(drawing.IDENTITIES)), int(rng.integers(len(drawing.COLOURS))))
    held_out = [b for b in drawing.BACKDROPS if b.split("-")[0] in synthetic.HELD_OUT]
    corner = rng.integers(0, drawing.CANVAS - SIDE, 2)
    back = drawing.backdrop(str(rng.choice(held_out)))[corner[0] :, corner[1] :][:SIDE, :SIDE]
    tint, mirror = drawing.rgb(str(rng.choice(TINTS))) * 255, int(rng.choice([-1, 1]))

    def shot(course: Course) -> UInt8[np.ndarray, "T H W 3"]:
        frames = np.repeat(back[None, :, ::mirror], FRAMES, axis=0)
        size = np.where(course.there, radius, 0)
        drawing.paint(frames, texture, drawing.Pose(course.x, course.y, size, np.full(FRAMES, angle)))
        for screen in story.screens:
            frames[:, :, screen.left : screen.right] = story.surface(screen.right - screen.left, tint)
        return drawing.developed(frames[:, :, ::mirror])

    possible, impossible = shot(story.possible), shot(story.impossible)
    event = int(np.flatnonzero((possible != impossible).any((1, 2, 3)))[0])
    return Pair(possible, impossible, event)


@guard
def events(folder: Path, seed: Natural = 0, pairs: Count = 24) -> Path:
    """Writes `pairs` pairs of clips, the kinds of EVENTS in turn, and returns their manifest.csv, written last.

    Label 0 is possible, 1 impossible; `group` names the pair, `kind` the event, `event` the first frame in which
    the clips of the pair differ. All rows belong to the test split.
    """
    folder = Path(folder)
    manifest = folder / "manifest.csv"
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    rows = []
    for k in range(pairs):
        kind = list(EVENTS)[k % len(EVENTS)]
        pair = draw_pair(kind, (seed, k))
        for label, video in enumerate((pair.possible, pair.impossible)):
            path = f"clips/{k:03d}_{kind}_{CLASSES[label]}.mp4"
            codec.write(folder / path, video, FPS)
            rows.append({
                "path": path, "label": label, "class_name": CLASSES[label], "group": f"pair-{k:03d}",
                "split": "test", "n_frames": FRAMES, "height": SIDE, "width": SIDE, "fps": FPS,
                "kind": kind, "event": pair.event,
            })
    synthetic.write_manifest(manifest, rows)
    return manifest
