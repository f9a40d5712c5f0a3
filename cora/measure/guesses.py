"""What can be said of hidden tokens without a network: copies of seen ones, and a ridge map of seen neighbours.

Pure functions of token tables [B, N, D] and of which tokens are hidden; a token's id is its place in the grid in raster
order.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

PENALTIES = (10.0, 100.0, 1000.0, 10000.0)
"""Of a ridge map, chosen on a fifth of the training clips."""
ROWS = 20_000
"""Hidden tokens that a ridge map learns from; as many are drawn where there are more."""
COMPONENTS = 64
"""Principal components of a token by which a ridge map knows its neighbours."""


def seen_of(hidden: Int[np.ndarray, "B M"], grid: tuple[int, int, int]) -> Bool[np.ndarray, "B t h w"]:
    """Returns which tokens are not hidden."""
    seen = np.ones((len(hidden), int(np.prod(grid))), bool)
    np.put_along_axis(seen, hidden, False, axis=1)
    return seen.reshape(-1, *grid)


def take(x: Float[np.ndarray, "B N D"], ids: Int[np.ndarray, "B M"]) -> Float[np.ndarray, "B M D"]:
    """Returns the tokens with these ids."""
    return np.take_along_axis(x, ids[..., None], axis=1)


def first_seen(seen: Bool[np.ndarray, "B t h w"], axis: int, step: int) -> Int[np.ndarray, "B N"]:
    """Returns the id of the first seen token that one meets from each token along an axis (0 time, 1 rows, 2
    columns) in the direction `step` (-1 or 1), the token itself left out; -1 where there is none."""
    ids = np.broadcast_to(np.arange(seen[0].size).reshape(seen.shape[1:]), seen.shape)
    place = np.moveaxis(np.where(seen, ids, -1), axis + 1, 0)
    place = place if step < 0 else place[::-1]
    met = np.empty_like(place)
    last = np.full(place.shape[1:], -1)
    for i, here in enumerate(place):
        met[i] = last
        last = np.where(here >= 0, here, last)
    met = met if step < 0 else met[::-1]
    return np.moveaxis(met, 0, axis + 1).reshape(len(seen), -1)


def nearest_seen(seen: Bool[np.ndarray, "B t h w"]) -> Int[np.ndarray, "B N"]:
    """Returns the id of the seen token that is nearest to each token in time, row and column, counted in tokens; of
    two that are equally near the earlier one."""
    places = np.indices(seen.shape[1:]).reshape(3, -1).T
    away = np.square(places[:, None] - places).sum(-1)
    return np.argmin(np.where(seen.reshape(len(seen), 1, -1), away, away.max() + 1), axis=2)


def neighbours(
    x: Float[np.ndarray, "B N D"], hidden: Int[np.ndarray, "B M"], grid: tuple[int, int, int]
) -> Float[np.ndarray, "B M F"]:
    """Returns what a ridge map is told of every hidden token: x of the first seen tokens in the six directions (zero
    where there is none, and whether there is one), of all seen ones at its place at each time, and their mean over
    the clip."""
    seen = seen_of(hidden, grid)
    flat = seen.reshape(len(seen), -1)
    told = []
    for axis in range(3):
        for step in (-1, 1):
            ids = np.take_along_axis(first_seen(seen, axis, step), hidden, axis=1)
            there = (ids >= 0)[..., None]
            told += [take(x, np.maximum(ids, 0)) * there, there.astype(np.float32)]
    t, places = grid[0], grid[1] * grid[2]
    shown = x * flat[..., None]
    for time in range(t):
        told.append(take(shown, time * places + hidden % places))
    told.append(np.broadcast_to((shown.sum(1) / flat.sum(1, keepdims=True))[:, None], (*hidden.shape, x.shape[2])))
    return np.concatenate(told, axis=2).astype(np.float32)


def copied(
    x: Float[np.ndarray, "B N D"], hidden: Int[np.ndarray, "B M"], grid: tuple[int, int, int]
) -> dict[str, Float[np.ndarray, "B M D"]]:
    """Returns what is guessed without any fit: the nearest seen token; where every hidden token has a past at its
    place, the last token seen there, and the line through the last two."""
    seen = seen_of(hidden, grid)
    found = {"nearest": take(x, np.take_along_axis(nearest_seen(seen), hidden, axis=1))}
    last = first_seen(seen, 0, -1)
    own = np.take_along_axis(last, hidden, axis=1)
    if (own < 0).any():
        return found
    found["copy_last"] = take(x, own)
    before = np.take_along_axis(last, own, axis=1)
    if (before < 0).any():
        return found
    places = grid[1] * grid[2]
    ahead = (hidden // places - own // places) / (own // places - before // places)
    return found | {"line": found["copy_last"] + ahead[..., None] * (found["copy_last"] - take(x, before))}


def compact(*tables: Float[np.ndarray, "_ N D"]) -> list[Float[np.ndarray, "_ N d"]]:
    """Returns tokens by the principal components of the first table's, so many that a ridge map of many neighbours
    stays small."""
    width = min(COMPONENTS, tables[0].shape[2])
    tokens = tables[0].reshape(-1, tables[0].shape[2])
    parts = PCA(width, random_state=0).fit(tokens[:: max(1, len(tokens) // 100_000)])
    return [parts.transform(x.reshape(-1, x.shape[2])).reshape(*x.shape[:2], -1).astype(np.float32) for x in tables]


class Map(NamedTuple):
    """A ridge map of standardised inputs."""

    mean: Float[np.ndarray, " F"]
    scale: Float[np.ndarray, " F"]
    ridge: Ridge

    def __call__(self, x: Float[np.ndarray, "B M F"]) -> Float[np.ndarray, "B M G"]:
        """Returns what is read of every token."""
        rows = (x.reshape(-1, x.shape[-1]) - self.mean) / self.scale
        return np.asarray(self.ridge.predict(rows)).reshape(*x.shape[:2], -1)


def ridge(x: Float[np.ndarray, "B M F"], y: Float[np.ndarray, "B M G"], seed: int = 0) -> Map:
    """Returns the ridge map from x to y, its penalty chosen on the last fifth of the clips (of two clips at least)."""
    inputs, outputs = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    clip = np.repeat(np.arange(len(x)), x.shape[1])
    if len(inputs) > ROWS:
        kept = np.sort(np.random.default_rng(seed).choice(len(inputs), ROWS, replace=False))
        inputs, outputs, clip = inputs[kept], outputs[kept], clip[kept]
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
    inputs = (inputs - mean) / scale
    fit = clip < max(1, len(x) - max(1, len(x) // 5))
    errors = _errors(inputs[fit], outputs[fit], inputs[~fit], outputs[~fit]) if (~fit).any() else [0.0]
    return Map(mean, scale, Ridge(alpha=PENALTIES[int(np.argmin(errors))]).fit(inputs, outputs))


def _errors(
    x: Float[np.ndarray, "n F"], y: Float[np.ndarray, "n G"], x_out: Float[np.ndarray, "m F"],
    y_out: Float[np.ndarray, "m G"],
) -> list[float]:
    """Returns the mean squared error of scikit-learn's ridge map on other rows under each of PENALTIES, all from one
    product of the rows with themselves, which is most of the work."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    values, axes = np.linalg.eigh((x.T @ x).astype(np.float64))
    along, ahead = axes.T @ (x.T @ y), (x_out - x_mean) @ axes
    return [float(np.square(ahead @ (along / (values + a)[:, None]) + y_mean - y_out).mean()) for a in PENALTIES]
