"""Pixels of the embedded corpus: procedural backdrops, anti-aliased sprites, and how both become frames.

This file knows pictures only. What moves where and why, labels and files are the business of `synthetic` and `events`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

Picture = Float[np.ndarray, "X Y 3"]
Plane = Float[np.ndarray, "X Y"]

CANVAS = 160
"""Side of a backdrop in pixels; a clip sees a window of it."""
EXTENT = 1.1
"""A sprite's texture spans [-EXTENT, EXTENT] in units of the sprite's radius."""
SHADOW = 2
"""How far to the right and down a sprite's shadow falls, in pixels."""
MIPS = (96, 48, 24)
"""Sides of the copies of a sprite's texture, so that small sprites are sampled without aliasing."""


def _noise(rng: np.random.Generator, cells: int, octaves: int) -> Plane:
    """Returns smooth value noise in [0, 1]: `octaves` grids, each twice as fine and half as strong as the last."""
    total = np.zeros((CANVAS, CANVAS))
    for octave in range(octaves):
        grid = rng.random((cells * 2**octave + 2,) * 2)
        at = np.linspace(0, cells * 2**octave, CANVAS, endpoint=False)
        low, part = at.astype(int), at % 1
        part = part * part * (3 - 2 * part)
        rows = grid[low] * (1 - part[:, None]) + grid[low + 1] * part[:, None]
        total += (rows[:, low] * (1 - part) + rows[:, low + 1] * part) / 2**octave
    return (total - total.min()) / np.ptp(total)


def _wave(phase: Plane) -> Plane:
    return 0.5 + 0.5 * np.sin(2 * np.pi * phase)


def _edge(value: Plane, sharpness: float) -> Plane:
    return np.clip(0.5 + sharpness * value, 0, 1)


def _turned(rng: np.random.Generator, scale: float) -> tuple[Plane, Plane]:
    """Returns the pixels' coordinates in a randomly turned frame whose unit is `scale` pixels."""
    y, x = np.mgrid[:CANVAS, :CANVAS] / (scale * rng.uniform(0.85, 1.2))
    angle = rng.uniform(0, 2 * np.pi)
    return x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)


def _stripes(rng: np.random.Generator) -> Plane:
    return _edge(_wave(_turned(rng, 20.0)[0]) - 0.5, 4.0)


def _waves(rng: np.random.Generator) -> Plane:
    x, y = _turned(rng, 22.0)
    return _wave(x + 0.25 * np.sin(2.2 * y))


def _checks(rng: np.random.Generator) -> Plane:
    x, y = _turned(rng, 34.0)
    return _edge(np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y), 5.0)


def _bricks(rng: np.random.Generator) -> Plane:
    x, y = _turned(rng, 15.0)
    shade = rng.random((64, 64))
    row = np.floor(y)
    across = (x + 0.5 * (row % 2)) / 2
    tone = shade[row.astype(int) % 64, np.floor(across).astype(int) % 64]
    mortar = np.minimum(np.minimum(y % 1, 1 - y % 1), 2 * np.minimum(across % 1, 1 - across % 1))
    return np.clip(mortar * 9, 0, 1) * (0.35 + 0.65 * tone)


def _cells(rng: np.random.Generator) -> Plane:
    y, x = np.mgrid[:CANVAS, :CANVAS][..., None] - CANVAS * rng.random((2, 1, 1, 60))
    near = np.sort(np.hypot(y, x), axis=-1)
    return np.clip((near[..., 1] - near[..., 0]) / 9, 0, 1)


def _dots(rng: np.random.Generator) -> Plane:
    x, y = _turned(rng, 17.0)
    return _edge(0.3 - np.hypot(x % 1 - 0.5, y % 1 - 0.5), 7.0)


def _rings(rng: np.random.Generator) -> Plane:
    y, x = np.mgrid[:CANVAS, :CANVAS] - CANVAS * rng.uniform(0.3, 0.7, (2, 1, 1))
    return _wave(np.hypot(x, y) / rng.uniform(16, 22))


def _weave(rng: np.random.Generator) -> Plane:
    x, y = _turned(rng, 13.0)
    return np.where((np.floor(x) + np.floor(y)) % 2 == 1, np.sin(np.pi * (x % 1)), np.sin(np.pi * (y % 1)))


FAMILIES: dict[str, Callable[[np.random.Generator], Plane]] = {
    "clouds": lambda rng: _noise(rng, 4, 4),
    "stripes": _stripes, "checks": _checks, "bricks": _bricks, "dots": _dots, "rings": _rings, "waves": _waves,
    "marble": lambda rng: _wave(_turned(rng, 34.0)[0] + 1.6 * _noise(rng, 3, 4)),
    "cells": _cells, "weave": _weave,
}
VARIANTS = 4
BACKDROPS = tuple(f"{family}-{variant}" for family in FAMILIES for variant in range(VARIANTS))
_DARK = ("16324f", "3a2e5c", "1f4d46", "5a3440", "2d3a6b", "4b2f57", "1d4a5c", "5c4a2a")
_LIGHT = ("5d93ab", "8f7cb8", "6fa58a", "b97f7a", "7d93c6", "a97aa8", "64a39d", "b8a06c")


def rgb(code: str) -> Float[np.ndarray, "3"]:
    """Returns the colour `rrggbb` as three numbers in [0, 1]."""
    return np.frombuffer(bytes.fromhex(code), np.uint8).astype(np.float32) / 255


@lru_cache(maxsize=len(BACKDROPS))
def backdrop(name: str) -> Picture:
    """Returns the backdrop of that name, one of BACKDROPS, as float32 in [0, 255]; always the same picture."""
    index = BACKDROPS.index(name)
    rng = np.random.default_rng([1, index])
    pattern = FAMILIES[name.split("-")[0]](rng)
    # Light falls unevenly and every surface has grain, so that no backdrop is periodic.
    tone = 0.62 * pattern + 0.25 * _noise(rng, 2, 2) + 0.13 * _noise(rng, 20, 2)
    hue = (index // VARIANTS * 3 + index % VARIANTS * 2) % len(_DARK)
    dark, light = rgb(_DARK[hue]), rgb(_LIGHT[(hue + index % 2) % len(_LIGHT)])
    picture = (255 * (dark + (light - dark) * tone[..., None])).astype(np.float32)
    picture.setflags(write=False)
    return picture


# --------------------------------------------------------------------------------------------------- sprites


def _star(points: int, inner: float, outer: float) -> Callable[[Plane, Plane], Plane]:
    """Returns the signed distance to the edges of a star; `inner = outer cos(pi / points)` makes a polygon."""
    tip = np.pi / points
    across, up = outer * np.cos(tip) - inner, outer * np.sin(tip)
    nx, ny = up / np.hypot(across, up), -across / np.hypot(across, up)

    def distance(x: Plane, y: Plane) -> Plane:
        turn = (np.arctan2(x, -y) / (2 * tip)) % 1
        folded = tip * (1 - 2 * np.minimum(turn, 1 - turn))
        return nx * (np.hypot(x, y) * np.cos(folded) - inner) + ny * np.hypot(x, y) * np.sin(folded)

    return distance


def _box(x: Plane, y: Plane, w: float, h: float) -> Plane:
    return np.maximum(np.abs(x) - w, np.abs(y) - h)


def _heart(x: Plane, y: Plane) -> Plane:
    side, x, y = 0.8, np.abs(x), y - 0.08
    return np.minimum((x + np.abs(y) - side) / np.sqrt(2), np.hypot(x - side / 2, y + side / 2) - side / np.sqrt(2))


def _drop(x: Plane, y: Plane) -> Plane:
    cone = np.maximum(0.87 * np.abs(x) - 0.5 * (y + 0.95), y - 0.05)
    return np.minimum(np.hypot(x, y - 0.3) - 0.62, cone)


def _arrow(x: Plane, y: Plane) -> Plane:
    return np.minimum(np.maximum(0.72 * np.abs(x) - 0.7 * (y + 0.95), y + 0.05), _box(x, y - 0.4, 0.34, 0.52))


SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "ball": lambda x, y: np.hypot(x, y) - 0.86,
    "box": lambda x, y: _box(x, y, 0.72, 0.72),
    "triangle": _star(3, 0.5, 1.0),
    "star": _star(5, 0.46, 1.0),
    "heart": _heart,
    "moon": lambda x, y: np.maximum(np.hypot(x, y) - 0.92, 0.72 - np.hypot(x - 0.42, y + 0.2)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.64) - 0.27,
    "plus": lambda x, y: np.minimum(_box(x, y, 0.32, 0.9), _box(x, y, 0.9, 0.32)),
    "hourglass": lambda x, y: np.maximum(np.abs(x) - 0.12 - 0.74 * np.abs(y), np.abs(y) - 0.88),
    "flower": lambda x, y: np.hypot(x, y) - 0.7 - 0.22 * np.cos(6 * np.arctan2(y, x)),
    "drop": _drop,
    "arrow": _arrow,
}
IDENTITIES = tuple(SHAPES)
COLOURS = (
    ("ffd166", "ef6f4c"), ("ff8fa3", "fff1e0"), ("9be564", "fdfcdc"), ("7fd8ff", "fef9ef"),
    ("ffb347", "fff3b0"), ("f4f1de", "e5667f"), ("c9b6ff", "fff7d6"), ("6ff2d0", "ffe08a"),
)
"""Body and mark of a sprite, bright against every backdrop."""


@lru_cache(maxsize=len(SHAPES))
def _relief(identity: str) -> tuple[Plane, Plane, Plane]:
    """Returns cover, brightness and mark of an identity, each [96, 96] in about [0, 1], supersampled four times."""
    side, fine = MIPS[0], 4 * MIPS[0]
    axis = ((np.arange(fine) + 0.5) / fine * 2 - 1) * EXTENT
    x, y = np.meshgrid(axis, axis)
    value = SHAPES[identity](x, y)
    depth = np.clip(-value / 0.3 / (np.hypot(*np.gradient(value, axis[1] - axis[0])) + 1e-3), 0, 1)
    light = 0.86 - 0.2 * (x + y) + 0.1 * depth
    planes = (value < 0, light * (0.35 + 0.65 * np.clip(3.5 * depth, 0, 1)), np.hypot(x - 0.2, y - 0.45) < 0.5)
    cover, bright, mark = (p.reshape(side, 4, side, 4).mean((1, 3)).astype(np.float32) for p in planes)
    return cover, bright, mark


@lru_cache(maxsize=len(SHAPES) * len(COLOURS))
def sprite(identity: str, colour: int) -> Float[np.ndarray, "4 texel"]:
    """Returns the texture of an identity in one of COLOURS: premultiplied RGB in [0, 255] and cover in [0, 1].

    The copies of MIPS follow each other, finest first, each row by row.
    """
    cover, bright, mark = _relief(identity)
    body, other = map(rgb, COLOURS[colour])
    shade = np.clip(bright[..., None] * (body + (other - body) * mark[..., None]), 0, 1) * 255
    finest = np.concatenate([shade * cover[..., None], cover[..., None]], axis=-1)
    copies = [finest.reshape(side, MIPS[0] // side, side, -1, 4).mean((1, 3)).reshape(-1, 4) for side in MIPS]
    texture = np.ascontiguousarray(np.concatenate(copies).T)
    texture.setflags(write=False)
    return texture


# ---------------------------------------------------------------------------------------------------- frames


class Pose(NamedTuple):
    """Where a sprite is in every frame: centre and radius in pixels, y downwards; angle in radians, clockwise."""

    x: Float[np.ndarray, "T"]
    y: Float[np.ndarray, "T"]
    radius: Float[np.ndarray, "T"]
    angle: Float[np.ndarray, "T"]


def film(
    picture: Picture, x: Float[np.ndarray, "T"], y: Float[np.ndarray, "T"], side: int
) -> Float[np.ndarray, "T S S 3"]:
    """Returns windows of `picture` whose upper left corners lie at (x, y), interpolated linearly between pixels."""
    frames = np.empty((len(x), side, side, 3), np.float32)
    # Frame by frame, because the windows of all frames together do not fit the processor's cache.
    for frame, left, top in zip(frames, x, y, strict=True):
        fx, fy = np.float32(left % 1), np.float32(top % 1)
        window = picture[int(top) :, int(left) :][: side + 1, : side + 1]
        rows = (1 - fy) * window[:-1] + fy * window[1:]
        np.add((1 - fx) * rows[:, :-1], fx * rows[:, 1:], out=frame)
    return frames


def _sampled(texture: Float[np.ndarray, "4 texel"], pose: Pose, half: int) -> Float[np.ndarray, "T w w 4"]:
    """Returns the texture as seen in the window of 2 half + 1 pixels around each pose's centre."""
    reach = np.arange(-half, half + 1) + 0.5
    dx = (reach - pose.x[:, None] % 1).astype(np.float32)[:, None, :]
    dy = (reach - pose.y[:, None] % 1).astype(np.float32)[:, :, None]
    cos, sin = ((f(pose.angle) / pose.radius).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    # The finest copy has MIPS[0] texels over 2 EXTENT radii; take the one nearest to a texel a pixel, not coarser.
    coarse = np.clip(np.floor(np.log2(MIPS[0] / (2 * EXTENT * pose.radius)) + 0.2), 0, len(MIPS) - 1).astype(int)
    side = np.array(MIPS)[coarse][:, None, None]
    start = np.cumsum([0, *(m * m for m in MIPS)])[coarse][:, None, None]
    scale, last = (side / (2 * EXTENT)).astype(np.float32), (side - 1.01).astype(np.float32)
    at = [np.clip(c * scale + np.float32(side / 2 - 0.5), 0, last) for c in (u, v)]
    column, row = (a.astype(np.int64) for a in at)
    fx, fy = (at[0] - column).astype(np.float32), (at[1] - row).astype(np.float32)
    corner = start + row * side + column
    shares = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
    texels = corner, corner + 1, corner + side, corner + side + 1
    layer = np.empty((*corner.shape, 4), np.float32)
    # Channel by channel and with np.take: ten times as fast as indexing all channels with an array.
    for k, channel in enumerate(texture):
        layer[..., k] = sum(np.take(channel, at) * share for at, share in zip(texels, shares, strict=True))
    return layer


def paint(frames: Float[np.ndarray, "T H W 3"], texture: Float[np.ndarray, "4 texel"], pose: Pose) -> None:
    """Paints a sprite and its shadow onto every frame, in place. A radius of 0 leaves the frame as it is."""
    seen = pose.radius > 0
    pose = pose._replace(radius=np.where(seen, pose.radius, 1.0))
    half = int(np.ceil(EXTENT * pose.radius.max())) + SHADOW + 1
    layer = _sampled(texture, pose, half)
    cover = layer[..., 3:]
    clear = 1 - cover
    clear[:, SHADOW:, SHADOW:] *= 1 - 0.35 * cover[:, :-SHADOW, :-SHADOW]
    clear = np.repeat(clear, 3, axis=-1)
    left, top = ((np.floor(c).astype(int) - half).tolist() for c in (pose.x, pose.y))
    for k in np.flatnonzero(seen):
        _blend(frames[k], layer[k, ..., :3], clear[k], top[k], left[k])


def _blend(
    frame: Float[np.ndarray, "H W 3"], colour: Float[np.ndarray, "w w 3"], clear: Float[np.ndarray, "w w 3"],
    top: int, left: int,
) -> None:
    """Lays `colour` over the part of the frame that it covers, in place; `clear` is what stays of the frame."""
    high, wide = frame.shape[:2]
    y0, y1 = max(top, 0), min(top + clear.shape[0], high)
    x0, x1 = max(left, 0), min(left + clear.shape[1], wide)
    if y0 < y1 and x0 < x1:
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        frame[y0:y1, x0:x1] *= clear[part]
        frame[y0:y1, x0:x1] += colour[part]


def developed(frames: Float[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    """Returns frames in [0, 255] as bytes."""
    return np.clip(frames + 0.5, 0, 255).astype(np.uint8)
