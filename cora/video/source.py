"""What clips are cut from: something that opens the corpus' file number i, be it a video or a pack's entry."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from cora.video import codec


class Opened(NamedTuple):
    """A file's promise, and the function that reads frames by number."""

    info: codec.VideoInfo
    read: Callable[[Int[np.ndarray, "T"]], UInt8[np.ndarray, "T H W 3"]]


Source = Callable[[int], Opened]
"""Opens the file with this number; raises codec.VideoError if it cannot, as may reading from it."""


def files(paths: Sequence[Path]) -> Source:
    """Returns the source that decodes the files themselves."""
    return lambda number: Opened(codec.inspect(paths[number]), lambda frames: codec.read(paths[number], frames))


def shrink(video: UInt8[np.ndarray, "T H W 3"], side: int) -> UInt8[np.ndarray, "T h w 3"]:
    """Returns the video with its shorter side shrunk to `side` pixels, aspect kept; smaller videos stay as they are."""
    height, width = video.shape[1:3]
    if min(height, width) <= side:
        return video
    return resize(video, (0.0, 0.0, float(width), float(height)), *shrunk(height, width, side))


def shrunk(height: int, width: int, side: int) -> tuple[int, int]:
    """Returns height and width of what `shrink` makes of pictures of this size."""
    scale = min(1.0, side / min(height, width))
    return max(min(side, height), round(height * scale)), max(min(side, width), round(width * scale))


def resize(
    video: UInt8[np.ndarray, "T H W 3"], box: tuple[float, float, float, float], height: int, width: int
) -> UInt8[np.ndarray, "T height width 3"]:
    """Returns the `box` (left, top, right, bottom, pixels) of every frame at the given size; bilinear, antialiased."""
    out = np.empty((len(video), height, width, 3), np.uint8)
    for frame, picture in zip(out, video, strict=True):
        frame[:] = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR, box=box))
    return out
