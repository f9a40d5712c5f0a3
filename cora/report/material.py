"""What a report is made from and what it is made of; this file computes and draws nothing."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

GUESSES = {"mean": "mean at each place", "nearest": "nearest seen token", "copy_last": "last one seen",
           "line": "straight line", "neighbours": "linear map of neighbours"}
"""What the guesses of `cora skill` and `cora forecast` are called."""


class Gallery(NamedTuple):
    """A few clips and what the model makes of them."""

    clips: UInt8[np.ndarray, "V T H W 3"]
    captions: tuple[str, ...]
    """One a clip."""
    tokens: dict[str, Int[np.ndarray, "V t h w"]]
    """Kind of mask -> state of each token: 0 neither, 1 context (seen), 2 target (predicted)."""
    latents: Float[np.ndarray, "V L t h w D"]
    """Frozen features of the same clips at every level, nothing masked."""
    probe: dict[str, Any] | None
    """JSON of the probe: {method: {accuracy, ci95, level, per_level, random: {...}, pixels: {...}}, n_train, n_test,
    groups}; `chance`, the accuracy of guessing, is drawn where it is given. None: not probed yet."""
    summary: dict[str, Any]
    """steps, seconds, clips_per_second, wait_share, device, versions {package: version}, rank_per_level; a rate
    of None or nan is one that a run was too short to measure."""
    left_out: str = ""
    """Why `probe` is None although the run has been probed."""
    skill: dict[str, Any] | None = None
    """JSON of `cora skill`; None: not measured of this step yet."""
    forecast: "Shown | None" = None
    """JSON of `cora forecast`, and its picture."""
    surprise: "Shown | None" = None
    """JSON of `cora surprise`, and the film that surprised most."""


class Shown(NamedTuple):
    """What a verb found, and a PNG file that shows it."""

    found: dict[str, Any]
    picture: bytes


class Material(NamedTuple):
    """All that a section may draw on."""

    name: str
    """Of the run folder."""
    rows: list[dict[str, Any]]
    """Of metrics.jsonl."""
    config: dict[str, Any]
    """Of config.json."""
    gallery: Gallery


class Section(NamedTuple):
    """One part of the page."""

    name: str
    """Its anchor: lower-case letters and hyphens."""
    title: str
    """Plain text."""
    body: str
    """HTML; all foreign text in it is escaped already."""


def require(gallery: Gallery) -> None:
    """Asserts that the parts of the gallery fit each other. Raises ValueError, naming the part that does not."""
    clips, latents = gallery.clips, gallery.latents
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != np.uint8 or 0 in clips.shape:
        raise ValueError(f"clips of shape {clips.shape} and type {clips.dtype}: must be uint8 [V, T, H, W, 3]")
    if latents.ndim != 6 or len(latents) != len(clips):
        raise ValueError(f"latents of shape {latents.shape}: must be [V, L, t, h, w, D] with V = {len(clips)}")
    if len(gallery.captions) != len(clips):
        raise ValueError(f"{len(gallery.captions)} captions of {len(clips)} clips: must be one a clip")
    grid = (len(clips), *latents.shape[2:5])
    for kind, state in gallery.tokens.items():
        if state.shape != grid:
            raise ValueError(f"tokens of kind {kind!r} have shape {state.shape}: must be [V, t, h, w] = {grid}")
