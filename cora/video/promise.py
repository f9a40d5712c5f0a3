"""What a video file promises before it is decoded, and why it is not to be believed.

Knows no decoder: codec.py reads the packets that are judged here.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple


class VideoError(Exception):
    """A file that cannot be read as video: `path`, and `reason` in a few words."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["VideoError"], tuple[Path, str]]:
        # Exception pickles its message alone, and a worker process could not hand the error back.
        return VideoError, (self.path, self.reason)


class VideoInfo(NamedTuple):
    """What a file promises: number of frames, frames a second, size in pixels, name of the codec, and times."""

    frames: int
    fps: float
    height: int
    width: int
    codec: str
    times: tuple[int, ...] = ()
    """When each frame is shown, in whole milliseconds after the first; empty: evenly, `fps` a second."""


class Packet(NamedTuple):
    """A piece of the stream before it is decoded: when it is shown, and whether it is a key, left out or incomplete.

    `key` is the container's word, `begins` the codec's: that what is shown from here on needs nothing before it.
    """

    pts: Any  # int, or None where the container gives no time; checked before use
    key: bool
    begins: bool
    discard: bool
    corrupt: bool


def check_packets(path: Path, packets: list[Packet]) -> None:
    """Raises VideoError where there is nothing to start from, or a packet is incomplete."""
    if any(p.corrupt for p in packets):
        raise VideoError(path, "is truncated or damaged: a packet is incomplete or impossible")
    if not any(p.key for p in packets):
        raise VideoError(path, "has no frames" if not packets else "has no key frame to start from")


def clock(
    path: Path, rates: Sequence[float], stamps: Sequence[int | None], tick: Fraction
) -> tuple[float, tuple[int, ...]]:
    """Returns frames a second and, where they are not shown evenly, when each one is: milliseconds after the first.

    Evenly means within 2 ms of one of the header's `rates`, or of the simplest rate of which the `stamps` (in ticks,
    None where unknown) leave a choice: Matroska rounds to a millisecond, QuickTime to 1.7. Whole milliseconds are all
    that is ever heard, so that the same film has the same times in every container. Where stamps fall back, as between
    films put end to end, a frame takes the usual time. Raises VideoError where nothing says a rate.
    """
    above, below = (tick * 1000).as_integer_ratio()
    known = [(2 * stamp * above + below) // (2 * below) for stamp in stamps if stamp is not None]
    if len(known) == len(stamps) > 1:
        steps = [later - earlier for earlier, later in pairwise(known)]
        usual = sorted(steps)[len(steps) // 2]
        times = [0]
        for step in steps:
            times.append(times[-1] + (step if step >= 0 else usual))
        if usual >= 0 and times[-1] > 0:
            return _clock(rates, times)
    if not rates:
        raise VideoError(path, "does not say how many frames a second it has")
    return rates[0], ()


def _clock(rates: Sequence[float], times: list[int]) -> tuple[float, tuple[int, ...]]:
    mean = times[-1] / (len(times) - 1)
    slack = min(2.0, max(1.0, mean / 2))
    shortest = max((time - slack) / place for place, time in enumerate(times) if place)
    longest = min((time + slack) / place for place, time in enumerate(times) if place)
    even = [rate for rate in rates if shortest <= 1000 / rate <= longest]
    if even:
        return even[0], ()
    if 0 < shortest <= longest:
        return float(_simplest(Fraction(1000 / longest), Fraction(1000 / shortest))), ()
    return 1000 / mean, tuple(times)


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """Returns the fraction of the smallest denominator from `low` to `high`, both positive."""
    whole = math.ceil(low)
    if whole <= high:
        return Fraction(whole)
    return whole - 1 + 1 / _simplest(1 / (high - whole + 1), 1 / (low - whole + 1))


def leading_pictures(packets: Sequence[Packet]) -> bool:
    """Returns whether a picture stored after a key frame is shown before it: the mark of an open group of pictures."""
    key = packets[0].pts or 0
    for packet in packets:
        key = packet.pts or 0 if packet.key else key
        if (packet.pts or 0) < key:
            return True
    return False


def put_end_to_end(data: bytes) -> bool:
    """Returns whether all that is missing between packets of a transport stream is what two files lack between them.

    Each begins with tables whose counts start at 0, and then with a new unit in each of its streams.
    """
    size, start = (188, 0) if data[:1] == b"G" else (192, 4)
    counts: dict[int, int] = {}
    begun: set[int] = set()  # streams that have not been seen since the last table that began again
    for place in range(start, len(data) - 187, size):
        pid, flags = int.from_bytes(data[place + 1 : place + 3]) & 0x1FFF, data[place + 3]
        if pid == 0x1FFF or not flags & 0x10:
            continue
        count, before = flags & 15, counts.get(pid, -1)
        if pid < 32 and count == 0 and before not in (-1, 15):
            begun = set(counts)
        elif before >= 0 and count not in (before, (before + 1) % 16):
            if pid not in begun or not data[place + 1] & 0x40:
                return False
        counts[pid] = count
        begun.discard(pid)
    return True
