"""Frozen features of the clips of a corpus: the encoder's side of every probe.

Knows how an encoder is read out, and reads each file once for all readers; never what is fitted to the numbers.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float, UInt8

from cora import config
from cora.measure.baselines import motion_energy, patch_pixels, pixels, placed
from cora.measure.table import Table
from cora.nets import hog3d
from cora.nets.hierarchy import build
from cora.store import exchange, weights
from cora.store.weights import Pretrained
from cora.video import clips
from cora.video.codec import VideoError
from cora.video.ledger import Ledger
from cora.video.manifest import Clip, Manifest

Clips = UInt8[np.ndarray, "B T S S 3"]
Reader = Callable[[Clips], Float[np.ndarray, "L B F"]]
"""What a baseline or an encoder says of a batch of clips, level by level."""
Of = Literal["whole", "change", "placed"]
"""Tokens as they are, without their mean over time at the same place, or told where they are."""
LOUD = 0.5
"""Size of a place beside that of a clip's tokens, where they are told it."""
BATCH = 32


class Measures:
    """What a run with fixed targets is asked to predict, as an encoder of one level whose tokens end in their places:
    the control without a network."""

    def __init__(self, settings: config.Pretrain) -> None:
        model, heads = settings.model, settings.model.heads
        network, measure = build(model), hog3d.measured(model, settings.target)
        numbers = hog3d.count(settings.target) + sum(model.grid)
        self.model = replace(model, levels=1, width=max(6, -(-numbers // heads)) * heads)
        self._of = jax.jit(lambda video: measure(network.patches(video)))

    def __call__(self, video: Clips) -> Float[np.ndarray, "1 B N D"]:
        return placed(np.asarray(self._of(video)), self.model.grid, self.model.width)[None]


Frozen = Pretrained | Measures


class Once:
    """A frozen encoder that computes once what several readers ask it in turn about the same batch."""

    def __init__(self, encoder: Frozen) -> None:
        self.model, self._encoder = encoder.model, encoder
        self._asked: Clips | None = None

    def __call__(self, video: Clips) -> Float[np.ndarray, "L B N D"]:
        if video is not self._asked:
            self._asked, self._latents = video, np.asarray(self._encoder(video))
        return self._latents


def pooled(encoder: Frozen | Once) -> Reader:
    """Returns the reader of a frozen encoder: two summaries of how each level's normed latents z(time, place) change.

    With z averaged over the quarters of the frame, its departures from its mean over time, at each time step (what
    happens, when and roughly where); and at every place the standard deviation of z over time (how much happens
    exactly where). F = T' 4 D + h w D. What a clip has in common with itself, a person's build or a backdrop, is
    left out: on held-out people it costs more than it tells. Where a clip is one time step, nothing changes, and it is
    the averages themselves that are read: F = 4 D.
    """
    t, h, w = encoder.model.grid

    def read(video: Clips) -> Float[np.ndarray, "L B F"]:
        z = np.asarray(encoder(video))
        z = z.reshape(*z.shape[:2], t, h, w, -1)
        coarse = _quarters(z)
        parts = (coarse - coarse.mean(2, keepdims=True), z.std(2)) if t > 1 else (coarse,)
        return np.concatenate([part.reshape(*z.shape[:2], -1) for part in parts], axis=2)

    return read


def _quarters(z: Float[np.ndarray, "L B t h w D"]) -> Float[np.ndarray, "L B t a b D"]:
    """Returns the latents averaged over each quarter of the frame (over halves, or all, where a side has one token)."""
    for axis in (3, 4):
        parts = np.array_split(z, min(2, z.shape[axis]), axis=axis)
        z = np.stack([part.mean(axis) for part in parts], axis=axis)
    return z


def per_token(encoder: Pretrained) -> Reader:
    """Returns the reader that keeps every token apart: F is N D."""
    return lambda video: np.asarray(encoder(video)).reshape(encoder.model.levels, len(video), -1)


def tokens(encoder: Frozen | Once, level: int, of: Of) -> Reader:
    """Returns the reader of one level's tokens, as `of` says; F is N D."""
    grid = encoder.model.grid
    return lambda video: _said(np.asarray(encoder(video))[level], grid, of)


def pixel_tokens(model: config.Model, of: Of) -> Reader:
    """Returns the reader of a clip's patches as tokens of the encoder's width, grey and shrunk to fit, their places
    beside them where these fit too; F is N D."""
    room = model.width - sum(model.grid)

    def read(video: Clips) -> Float[np.ndarray, "1 B F"]:
        patches = patch_pixels(video, model.tubelet, model.patch, room if room >= model.width / 2 else model.width)
        return _said(placed(patches, model.grid, model.width), model.grid, of)

    return read


def _said(z: Float[np.ndarray, "B N D"], grid: tuple[int, int, int], of: Of) -> Float[np.ndarray, "1 B F"]:
    if of == "change":
        apart = z.reshape(len(z), grid[0], -1)
        z = apart - apart.mean(1, keepdims=True)
    elif of == "placed":
        z = z + LOUD * np.sqrt(np.square(z).mean((1, 2), keepdims=True)) * waves(grid, z.shape[2])
    return z.reshape(1, len(z), -1)


def waves(grid: tuple[int, int, int], width: int) -> Float[np.ndarray, "N D"]:
    """Returns a code of each place in the grid: sines and cosines of half a turn, one and two along each axis, each
    wave in a direction of its own, drawn once and for all; of mean square 1.

    Positions that rotate queries and keys (RoPE) leave a token's latents without its place, and a probe's one query
    then hears what happens, but hardly where and when.
    """
    place = np.indices(grid).reshape(3, -1, 1) / np.reshape(grid, (3, 1, 1))
    turns = 2 * np.pi * place * np.array([0.5, 1, 2])
    each = np.concatenate([*np.sin(turns), *np.cos(turns)], axis=1)
    direction = np.random.default_rng(0).normal(size=(each.shape[1], width))
    code = each @ (direction / np.linalg.norm(direction, axis=1, keepdims=True))
    return (code / np.sqrt(np.square(code).mean())).astype(np.float32)


def ordered_pixels(video: Clips) -> Float[np.ndarray, "1 B F"]:
    """Returns the pixel baseline: eight ordered grey frames."""
    return pixels(video)[None]


def motion(video: Clips) -> Float[np.ndarray, "1 B F"]:
    """Returns the motion baseline: the mean absolute difference of successive grey frames, at every place."""
    return motion_energy(video)[None]


def trained(path: Path) -> tuple[config.Pretrain, Pretrained]:
    """Returns (config, frozen encoder) of a run folder's latest checkpoint, of one step folder, or of a native or
    Hugging Face folder (whose corpus then has the default sampling, unless its record says another)."""
    if weights.kind(path) == "run":
        settings, step, params, encoder = weights.read_run(path)
        record = exchange.record_of(path, settings, step)
        return settings, Pretrained(settings.model, encoder, params.predictors, settings.learn, record)
    found = weights.load(path)
    if "config" in found.record:
        return config.from_json(config.Pretrain, json.dumps(found.record["config"])), found
    return config.Pretrain(model=found.model, learn=found.learn), found


def untrained(settings: config.Pretrain) -> Pretrained:
    """Returns the encoder with which this run began: the random baseline."""
    init = jax.jit(build(settings.model).init)  # op by op it would take ten times as long
    return Pretrained(settings.model, init(jax.random.key(settings.run.seed)).encoder)


def tables(
    readers: Mapping[str, Reader], source: Manifest, settings: config.Pretrain, ledger: Ledger, count: int = 0
) -> dict[str, Table]:
    """Returns one table a reader, with a row for each readable clip of `source`; the others go to the ledger.

    Every clip is cut without chance: one window, in the spacing of `settings.corpus`, the whole picture. `count` views
    are beside it, each cut by chance as training cuts clips, the same ones for every reader and at every time. The
    tables' numbers lie in nameless temporary files. Raises OSError where those find no room.
    """
    rows: list[Clip] = []
    every: dict[str, np.ndarray] = {}
    for kept, video in batches(source, settings, ledger, count):
        here = slice(len(rows), len(rows) + len(kept))
        rows += kept
        # The last batch is filled up so that nothing compiles twice.
        whole = np.concatenate([video, np.repeat(video[-1:], BATCH - len(video), axis=0)])
        for place, view in enumerate(np.moveaxis(whole, 1, 0)):  # all readers of one view, then the next: see `Once`
            for name, read in readers.items():
                found = read(view)[:, : len(video)]
                if name not in every:
                    every[name] = _room((len(found), len(source.clips), 1 + count, found.shape[2]), found.dtype)
                every[name][:, here, place] = found
    if not rows:
        raise ValueError(f"none of the {len(source.clips)} clips could be read; reasons are in {ledger.path}")
    columns = {
        "label": np.array([-1 if clip.label is None else clip.label for clip in rows]),
        "group": np.array([clip.group for clip in rows]),
        "split": np.array([clip.split for clip in rows]),
        "path": np.array([str(clip.path) for clip in rows]),
        "class_name": np.array([clip.class_name for clip in rows]),
    }
    return {name: Table(features=each[:, : len(rows), 0], views=each[:, : len(rows), 1:] if count else None, **columns)
            for name, each in every.items()}


def _room(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array kept in a nameless temporary file (in TMPDIR): all views of a large corpus exceed memory."""
    with tempfile.TemporaryFile() as file:  # the mapping outlives the handle
        if hasattr(os, "posix_fallocate"):  # a full disk is told now, not by a signal when a page is written
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
        return np.memmap(file, dtype, "w+", shape=shape)


def batches(
    source: Manifest, settings: config.Pretrain, ledger: Ledger, count: int = 0
) -> Iterator[tuple[list[Clip], UInt8[np.ndarray, "B V T S S 3"]]]:
    """Yields the readable clips of `source` and their views, cut as `tables` says: the plain one, then `count` more."""
    frames, size = settings.model.frames, settings.model.size

    def cut(clip: Clip, place: int) -> np.ndarray | None:
        try:
            plain = clips.views(clip.path, settings.corpus, frames=frames, size=size, count=1)
            if not count:
                return plain
            rng = np.random.default_rng(place)  # of the clip alone: whatever was read before
            chance = clips.drawn(clip.path, settings.corpus, frames=frames, size=size, count=count, rng=rng)
            return np.concatenate([plain, chance])
        except VideoError as error:
            ledger.record(error)
            return None

    with ThreadPoolExecutor(settings.corpus.threads) as pool:
        for first in range(0, len(source.clips), BATCH):
            batch = source.clips[first : first + BATCH]
            videos = pool.map(cut, batch, range(first, first + BATCH))
            read = [(clip, video) for clip, video in zip(batch, videos, strict=True) if video is not None]
            if read:
                yield [clip for clip, _ in read], np.stack([video for _, video in read])
