"""A decoded cache: every file of a corpus decoded once, shrunk, and kept as plain bytes.

Meant for short corpora that are read many times, where most decoding is of frames between a key frame and the ones
wanted. A pack is a folder with `frames.u8` (all pictures end to end) and `index.json` (where each file's begin).
Its name is a hash of the files' paths, sizes and times of change, so a changed corpus gets another pack.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Int, UInt8

from cora.video import codec
from cora.video.source import Opened, Source, shrink, shrunk

FORMAT = 3
"""Counts up whenever the bytes of a pack would change, so that older packs are not found."""
SAMPLE = 32
"""Files whose headers tell how large a pack will be."""
EVERY = 5.0
"""Seconds between two lines on how far a pack is."""
STALE = 24 * 3600.0
"""Seconds after which a half-built pack is taken for the remains of a killed process."""


def cache() -> Path:
    """Returns the folder where packs live: `cora/packs` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cora" / "packs"


def pack(paths: Sequence[Path], folder: Path, side: int, threads: int = 2) -> Path:
    """Returns the pack of these files below `folder`, built now if it is not there.

    Every picture is shrunk to `side` pixels on its shorter side. Unreadable files are noted with their reason. Standard
    error is told how large it will be and, every few seconds, how far it is. Raises OSError when the disk is too full,
    before anything is decoded where that can be told. Two processes may build the same pack: the first to finish is
    kept.
    """
    done = folder / _name(paths, side)
    if (done / "index.json").exists():
        return done
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    meant = estimate(paths, side)
    _say(f"packing {len(paths)} files at {side} pixels into {folder}: about {_size(meant)}, "
         f"{_size(shutil.disk_usage(folder).free)} free")
    _check_room(folder, meant, 0)
    unfinished = Path(tempfile.mkdtemp(prefix=done.name + ".", suffix=".tmp", dir=folder))
    try:
        _build(paths, unfinished, side, threads, meant)
        if not done.exists():
            try:
                unfinished.rename(done)
            except OSError:
                if not (done / "index.json").exists():  # else another process was first, with the same bytes
                    raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return done


def estimate(paths: Sequence[Path], side: int) -> int:
    """Returns how many bytes a pack of these files has, from the headers of `SAMPLE` of them; it is exact where those
    are all."""
    some = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, SAMPLE).astype(int))]
    sizes = []
    for path in some:
        try:
            info = codec.inspect(path)
        except codec.VideoError:
            sizes.append(0)
            continue
        height, width = shrunk(info.height, info.width, side)
        sizes.append(info.frames * height * width * 3)
    return round(sum(sizes) * len(paths) / len(some))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def unpack(folder: Path) -> Source:
    """Returns the source that reads the pack in `folder`; files that were unreadable raise VideoError with its reason.

    Raises ValueError if the pack's two files do not belong together.
    """
    entries = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    held = (folder / "frames.u8").stat().st_size
    meant = sum(_bytes(entry) for entry in entries)
    if held != meant:
        raise ValueError(f"{folder}: holds {held} bytes of pictures where its index says {meant}; delete the folder")
    pictures = np.memmap(folder / "frames.u8", np.uint8, "r") if held else np.zeros(0, np.uint8)
    return partial(_open, entries, pictures)


def _open(entries: list[dict[str, Any]], pictures: UInt8[np.ndarray, "bytes"], number: int) -> Opened:
    entry = entries[number]
    if "reason" in entry:
        raise codec.VideoError(Path(entry["path"]), entry["reason"])
    count, height, width = entry["frames"], entry["height"], entry["width"]
    video = pictures[entry["start"] : entry["start"] + _bytes(entry)].reshape(count, height, width, 3)

    def read(frames: Int[np.ndarray, "T"]) -> UInt8[np.ndarray, "T H W 3"]:
        return np.asarray(video[frames])

    return Opened(codec.VideoInfo(count, entry["fps"], height, width, entry["codec"], tuple(entry["times"])), read)


def _bytes(entry: dict[str, Any]) -> int:
    return 0 if "reason" in entry else entry["frames"] * entry["height"] * entry["width"] * 3


# ------------------------------------------------------------------------------------------------- building


def _name(paths: Sequence[Path], side: int) -> str:
    """Returns the hash of all that a pack's bytes depend on."""
    digest = hashlib.sha256(f"{FORMAT} {side}".encode())
    for path in paths:
        try:
            status = path.stat()
            version = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            version = "missing"
        digest.update(b"\0" + os.fsencode(path.absolute()) + f"\0{version}".encode())  # a name need not be UTF-8
    return digest.hexdigest()[:16]


def _build(paths: Sequence[Path], folder: Path, side: int, threads: int, meant: int) -> None:
    entries: list[dict[str, Any]] = []
    begun = told = time.monotonic()
    chunk = 8 * threads  # bounds how many files' pictures wait for those before them
    with ThreadPoolExecutor(threads) as pool, (folder / "frames.u8").open("wb") as whole:
        for first in range(0, len(paths), chunk):
            for entry, own in pool.map(partial(_shrunk, folder, side), paths[first : first + chunk]):
                if own is not None:
                    entry["start"] = whole.tell()
                    with own:
                        own.seek(0)
                        shutil.copyfileobj(own, whole)
                entries.append(entry)
                now = time.monotonic()
                if now - told >= EVERY or len(entries) == len(paths):
                    told = now
                    left = (now - begun) / len(entries) * (len(paths) - len(entries))
                    _say(f"packing: {len(entries)} of {len(paths)} files, {_size(whole.tell())} of about "
                         f"{_size(max(meant, whole.tell()))}, {timedelta(seconds=round(left))} left")
    (folder / "index.json").write_text(json.dumps(entries), encoding="utf-8")


def _shrunk(folder: Path, side: int, path: Path) -> tuple[dict[str, Any], IO[bytes] | None]:
    """Returns the file's entry and its pictures, in a nameless file of their own: films exceed memory."""
    with ExitStack() as undone:
        try:
            info = codec.inspect(path)
            height, width = shrunk(info.height, info.width, side)
            kept = {"path": str(path.absolute()), **info._replace(height=height, width=width)._asdict()}
            _check_room(folder.parent, _bytes(kept), _bytes(kept))  # the file's own pictures, and their copy
            own = undone.enter_context(tempfile.TemporaryFile(dir=folder))
            for block in codec.stream(path, np.arange(info.frames)):
                own.write(np.ascontiguousarray(shrink(block, side)).data)
        except codec.VideoError as error:
            return {"path": str(path.absolute()), "reason": error.reason}, None
        undone.pop_all()
        return kept, own


def _check_room(folder: Path, size: int, more: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + more + 2**28:  # and some air for the user
        raise OSError(f"{folder}: the disk is too full for a pack: {_size(size)} to come ({free >> 20} MiB free); set "
                      f"corpus.pack to 0 or a smaller side, or XDG_CACHE_HOME to a roomier disk")


def _sweep(folder: Path) -> None:
    """Removes half-built packs that nobody can still be building."""
    for unfinished in folder.glob("*.tmp"):
        if time.time() - unfinished.stat().st_mtime > STALE:
            shutil.rmtree(unfinished, ignore_errors=True)
