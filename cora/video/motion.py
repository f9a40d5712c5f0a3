"""Whether anything moves in clips, and what to say where it does not and only change is asked for."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

STILL = 8
"""Grey levels by which a coder may change a picture in which nothing moves."""


def standing(video: UInt8[np.ndarray, "B T H W 3"], steps: int) -> Bool[np.ndarray, " B"]:
    """Returns which clips stand still: no frame differs from the first, or all are of one time step of the network."""
    if steps == 1:
        return np.ones(len(video), np.bool_)
    first = video[:, :1].astype(np.int16)
    return np.asarray((np.abs(video - first) <= STILL).all((1, 2, 3, 4)))


def unmoved(still: Sequence[Bool[np.ndarray, " B"]], of: str) -> str:
    """Returns a sentence where `target.of` is "change" and at least half of the clips stand still, or nothing."""
    all_clips = np.concatenate(list(still))
    if of != "change" or 2 * all_clips.sum() < len(all_clips):
        return ""
    return (f"{all_clips.sum()} of {len(all_clips)} clips that were looked at stand still, and with target.of = "
            "'change' the targets of such clips are zero everywhere: the loss falls and rank looks healthy, though "
            "little or nothing is predicted; for stills and still films give --target.of whole")
