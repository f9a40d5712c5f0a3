"""Numbers a clip has without any encoder: the floors that learned features must clear.

This file knows frames as arrays. It knows no file, no label and no classifier.
"""

import numpy as np
from jaxtyping import Float, UInt8

GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Luma of red, green and blue (ITU-R BT.601)."""


def pixels(video: UInt8[np.ndarray, "n T S S 3"], *, frames: int = 8, side: int = 32) -> Float[np.ndarray, "n F"]:
    """Returns `frames` frames of each clip in their order: grey, shrunk to `side`, in [0, 1], flattened.

    The frames lie evenly over the clip, each in the middle of its share; a clip shorter than `frames` repeats
    some. F = frames * side * side, with side at most S.
    """
    _require_clips(video)
    length = video.shape[1]
    chosen = ((np.arange(frames) + 0.5) * length / frames).astype(int)
    return _shrink(_grey(video[:, chosen]), side).reshape(len(video), -1)


def patch_pixels(
    video: UInt8[np.ndarray, "n T h w 3"], tubelet: int, patch: int, width: int
) -> Float[np.ndarray, "n N F"]:
    """Returns the tubelets of each clip as tokens: grey, in [0, 1], in raster order.

    A patch is shrunk to the largest square of which a tubelet's fit into `width` numbers. Raises ValueError if none
    does.
    """
    _require_clips(video)
    side = min(patch, int((width / tubelet) ** 0.5))
    if side < 1:
        raise ValueError(f"width = {width}: has no room for the {tubelet} frames of a tubelet")
    n, t, h, w = (*video.shape[:2], *(s // patch for s in video.shape[2:4]))
    grey = _grey(video).reshape(n, t // tubelet, tubelet, h, patch, w, patch).transpose(0, 1, 3, 5, 2, 4, 6)
    return _shrink(grey, side).reshape(n, -1, tubelet * side**2)


def placed(
    tokens: Float[np.ndarray, "n N F"], grid: tuple[int, int, int], width: int
) -> Float[np.ndarray, "n N W"]:
    """Returns tokens of `width` numbers: their own, zeros, and last their place in the grid, one-hot along each axis,
    where that fits. An attentive probe has no positions of its own; an encoder's latents bring theirs.
    """
    axes = zip(grid, np.indices(grid).reshape(3, -1), strict=True)
    place = np.concatenate([np.eye(size)[at] for size, at in axes], axis=1)
    room = width - tokens.shape[2]
    found = np.pad(tokens, ((0, 0), (0, 0), (0, room)))
    if room >= place.shape[1]:
        found[..., -place.shape[1] :] = place
    return found


def motion_energy(video: UInt8[np.ndarray, "n T S S 3"], *, side: int = 32) -> Float[np.ndarray, "n F"]:
    """Returns where each clip moves: mean over t of |grey(t + 1) - grey(t)| at every pixel, shrunk to `side`.

    In [0, 1]; F = side * side, with side at most S. The order of frames is lost but for what neighbours share.
    Raises ValueError for clips of one frame.
    """
    _require_clips(video)
    if video.shape[1] < 2:
        raise ValueError(f"clips of {video.shape[1]} frame have no motion: at least 2 are needed")
    energy = np.stack([np.abs(np.diff(_grey(clip), axis=0)).mean(0) for clip in video])  # clip by clip: less memory
    return _shrink(energy, side).reshape(len(video), -1)


def _require_clips(video: np.ndarray) -> None:
    if video.ndim != 5 or video.shape[-1] != 3 or video.dtype != np.uint8:
        raise ValueError(f"video of shape {video.shape} and type {video.dtype}: must be uint8 [n, T, S, S, 3]")


def _grey(video: UInt8[np.ndarray, "*lead 3"]) -> Float[np.ndarray, "*lead"]:
    return video @ (GREY / 255)


def _shrink(image: Float[np.ndarray, "*lead h w"], side: int) -> Float[np.ndarray, "*lead a b"]:
    """Returns the image at `side` by `side` pixels, each the mean of the area it covers; never enlarged."""
    height, width = image.shape[-2:]
    return _areas(height, min(side, height)) @ image @ _areas(width, min(side, width)).T


def _areas(size: int, side: int) -> Float[np.ndarray, "side size"]:
    """Returns the weights with which `size` pixels make `side`: by overlap, each row summing to 1."""
    low = np.arange(side)[:, None] * size / side
    pixel = np.arange(size)[None]
    overlap = np.minimum(low + size / side, pixel + 1) - np.maximum(low, pixel)
    return (overlap.clip(0) * side / size).astype(np.float32)
