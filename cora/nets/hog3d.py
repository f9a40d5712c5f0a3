"""Oriented energy in space and time, the target that needs no teacher: which way brightness changes in a token's cells.

A fixed stand-in for what the first stage of a visual system computes. It cannot collapse and does not move, it tells
motion from form, and its division by local contrast leaves out how bright things are, as far as `contrast` lets it.
Sources: HOG3D, Kläser et al. 2008 (gradients binned along the axes of a regular solid); masked prediction of gradient
histograms, MaskFeat, Wei et al. 2022 (arXiv 2112.09133); motion energy, Adelson and Bergen 1985. Of order 2, where
that energy itself changes: filter, rectify, filter, Chubb and Sperling 1988 (second-order motion); the second layer of
a scattering transform, Bruna and Mallat 2013 (arXiv 1203.1513).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cora import config
from cora.nets.vit import unpatchify
from cora.pc import targets

GOLDEN = (1 + 5**0.5) / 2
CORNERS = np.array([corner for a in (1, -1) for b in (GOLDEN, -GOLDEN) for corner in ((0, a, b), (a, b, 0), (b, 0, a))])
AXES = (CORNERS / np.linalg.norm(CORNERS, axis=1, keepdims=True)).astype(np.float32)
"""The 12 corners of an icosahedron as unit vectors (x, y, t): directions as evenly spread as can be."""
FAINT = 0.05
"""Slopes of the maps of energy far below it, in energy a cell or frame, keep how strong they are."""


def gradients(grey: Float[Array, "B T H W"]) -> Float[Array, "B T H W 3"]:
    """Returns the central differences along (x, y, t), the edges continued."""
    p = jnp.pad(grey, ((0, 0), (1, 1), (1, 1), (1, 1)), "edge")
    x = p[:, 1:-1, 1:-1, 2:] - p[:, 1:-1, 1:-1, :-2]
    y = p[:, 1:-1, 2:, 1:-1] - p[:, 1:-1, :-2, 1:-1]
    t = p[:, 2:, 1:-1, 1:-1] - p[:, :-2, 1:-1, 1:-1]
    return jnp.stack([x, y, t], axis=-1) / 2


def blurred(grey: Float[Array, "B T H W"], sigma: float) -> Float[Array, "B T H W"]:
    """Returns every picture under a Gaussian window of standard deviation `sigma` in pixels, cut off at the frame and
    scaled to sum to 1; 0: as it was."""

    def window(side: int) -> Float[np.ndarray, "S S"]:
        away = np.arange(side)[:, None] - np.arange(side)
        weight = np.exp(-np.square(away) / (2 * sigma**2))
        return (weight / weight.sum(1, keepdims=True)).astype(np.float32)

    if not sigma:
        return grey
    high, wide = (window(side) for side in grey.shape[2:])
    return jnp.einsum("bthw,Hh,Ww->btHW", grey, high, wide)


def histograms(
    clips: Float[Array, "B T H W 3"], model: config.Model, cells: int, contrast: float, blur: float = 0.0
) -> Float[Array, "B N F"]:
    """Returns for each token the 12 energies of its `cells`² cells, F = 12 cells², of the clip under `blur`.

    e_k = sqrt(mean over the cell of max(0, g · axis_k)²), divided by sqrt(|e|² + c²), g in standardised brightness a
    pixel or frame: gradients far below c keep how strong they are, those far above do not. c is `contrast` times what
    the blur leaves of the slope of an edge, erf(1 / (blur sqrt 2)).
    """
    t, h, w = model.grid
    power = pooled(powers(blurred(jnp.mean(clips, axis=-1), blur)), model.tubelet, model.patch // cells)
    energy = divided(power, left(contrast, blur)).reshape(len(clips), t, h, cells, w, cells, -1)
    return energy.transpose(0, 1, 2, 4, 3, 5, 6).reshape(len(clips), t * h * w, -1)


def modulations(
    clips: Float[Array, "B T H W 3"], model: config.Model, grain: int, contrast: float, blur: float = 0.0
) -> Float[Array, "B N F"]:
    """Returns for each token how each of the 12 oriented energies changes in and around it: F = 12 x 12.

    A map of every energy, one number each frame and `grain`² pixels, divided as in `histograms`, is itself taken for a
    picture: e_jk = sqrt(mean over the token of max(0, slope of map j · axis_k)²), divided by sqrt(|e|² + FAINT²).
    """
    tokens = model.patch // grain
    maps = divided(pooled(powers(blurred(jnp.mean(clips, axis=-1), blur)), 1, grain), left(contrast, blur))

    def of(_: None, one: Float[Array, "B T _ _"]) -> tuple[None, Float[Array, "B _ _ _ 12"]]:
        return None, pooled(powers(one), model.tubelet, tokens)

    # One map after the other: all at once would take more memory than the whole network.
    each = jnp.moveaxis(jax.lax.scan(of, None, jnp.moveaxis(maps, -1, 0))[1], 0, -2)
    return divided(each.reshape(len(clips), math.prod(model.grid), -1), FAINT)


def powers(grey: Float[Array, "B T H W"]) -> Float[Array, "B T H W 12"]:
    """Returns max(0, slope · axis_k)² at every pixel."""
    return jnp.square(jax.nn.relu(gradients(grey) @ AXES.T))


def pooled(power: Float[Array, "B T H W F"], frames: int, side: int) -> Float[Array, "B t h w F"]:
    """Returns the means over `frames` frames of `side`² pixels."""
    b, t, h, w, f = power.shape
    return jnp.mean(power.reshape(b, t // frames, frames, h // side, side, w // side, side, f), axis=(2, 4, 6))


def divided(power: Float[Array, "*cells F"], contrast: float) -> Float[Array, "*cells F"]:
    """Returns e = sqrt(power), divided by sqrt(|e|² + contrast²)."""
    energy = jnp.sqrt(power + 1e-9)  # without it the slope at 0 would be infinite
    return energy * jax.lax.rsqrt(jnp.sum(jnp.square(energy), axis=-1, keepdims=True) + contrast**2)


def left(contrast: float, blur: float) -> float:
    """Returns what the blur leaves of the slope of an edge so high."""
    return contrast * (math.erf(1 / (blur * 2**0.5)) if blur else 1.0)


Measure = Callable[[Float[Array, "B N P"]], Float[Array, "B N _"]]


def measured(model: config.Model, target: config.Target) -> Measure:
    """Returns patches -> of all tokens the histograms of every `target.cells`, one after the other; of order 2 the
    modulations."""

    def of(patches: Float[Array, "B N P"]) -> Float[Array, "B N F"]:
        clips = unpatchify(patches, model.grid, model.tubelet, model.patch)
        if target.order == 2:
            return modulations(clips, model, target.grain, target.contrast, target.blur)
        each = [histograms(clips, model, cells, target.contrast, target.blur) for cells in target.cells]
        return jnp.concatenate(each, axis=-1)

    return of


def goal(model: config.Model, target: config.Target) -> Measure:
    """Returns patches -> targets of all tokens: the histograms turned into `width` channels by a fixed random map that
    keeps lengths, if there is room.

    Before that each channel has mean 0 and unit variance in the batch, or is what `targets.change` makes of it, or each
    is there in both forms.
    """
    alone: dict[str, targets.Goal] = {"whole": _standardised, "change": targets.change(model.grid[0])}
    forms = list(alone.values()) if target.of == "both" else [alone[target.of]]
    measure, turn = measured(model, target), _turn(count(target) * len(forms), model.width)

    def of(patches: Float[Array, "B N P"]) -> Float[Array, "B N D"]:
        found = measure(patches)
        return jnp.concatenate([form(found) for form in forms], axis=-1) @ turn

    return of


def count(target: config.Target) -> int:
    """Returns how many numbers `measured` gives a token."""
    return len(AXES) ** 2 if target.order == 2 else sum(len(AXES) * cells**2 for cells in target.cells)


def _turn(features: int, width: int) -> Float[np.ndarray, "F D"]:
    most, least = max(features, width), min(features, width)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(most, least)))[0]
    return (turn if turn.shape[0] == features else turn.T).astype(np.float32) * (width / features) ** 0.5


def _standardised(x: Float[Array, "B N F"]) -> Float[Array, "B N F"]:
    x = x - jnp.mean(x, axis=(0, 1), keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=(0, 1), keepdims=True) + 1e-5)
