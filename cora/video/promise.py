"""What a video file promises before it is decoded, and why it is not to be believed.

Knows no decoder: codec.py reads the packets that are judged here.
"""

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
    """What a file promises: number of frames, frames a second, size in pixels, name of the codec."""

    frames: int
    fps: float
    height: int
    width: int
    codec: str


class Packet(NamedTuple):
    """A piece of the stream before it is decoded: when it is shown, and whether it is a key, left out or incomplete."""

    pts: Any  # int, or None where the container gives no time; checked before use
    key: bool
    discard: bool
    corrupt: bool


def check_packets(path: Path, rate: float, packets: list[Packet]) -> None:
    """Raises VideoError where there is nothing to start from, or `rate` frames a second is no rate."""
    if not rate > 0:
        raise VideoError(path, "does not say how many frames a second it has")
    if any(p.corrupt for p in packets):
        raise VideoError(path, "is truncated or damaged: a packet is incomplete")
    if not any(p.key for p in packets):
        raise VideoError(path, "has no frames" if not packets else "has no key frame to start from")


def leading_pictures(packets: list[Packet]) -> bool:
    """Returns whether a picture stored after a key frame is shown before it: the mark of an open group of pictures."""
    key = packets[0].pts
    for packet in packets:
        key = packet.pts if packet.key else key
        if packet.pts < key:
            return True
    return False
