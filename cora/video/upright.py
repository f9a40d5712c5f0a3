"""Which way up a picture is shown: what a display matrix or an orientation of EXIF says, done to the pixels.

Knows no decoder. Pixels that are not square stay as they are stored: every crop of training squeezes pictures by chance
already, and a resized picture would be another one by every decoder.
"""

import struct
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8


class Turn(NamedTuple):
    """What is done to a stored picture before it is shown: rows and columns swapped first, then mirrored."""

    transposed: bool = False
    across: bool = False
    """Left becomes right."""
    down: bool = False
    """Top becomes bottom."""


AS_STORED = Turn()
ORIENTATIONS = (AS_STORED, Turn(across=True), Turn(across=True, down=True), Turn(down=True), Turn(True),
                Turn(True, across=True), Turn(True, True, True), Turn(True, down=True))
"""EXIF's eight, in their order (2.3, tag 274)."""


def turn_of(matrix: bytes) -> Turn:
    """Returns the nearest turn to a display matrix of FFmpeg: a point goes to (a x + c y, b x + d y)."""
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    return Turn(False, a < 0, d < 0) if abs(a) >= abs(b) else Turn(True, c < 0, b < 0)


def turned(picture: UInt8[np.ndarray, "h w 3"], turn: Turn) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the picture as it is to be shown."""
    shown = picture.swapaxes(0, 1) if turn.transposed else picture
    shown = shown[:, ::-1] if turn.across else shown
    return shown[::-1] if turn.down else shown
