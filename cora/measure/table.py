"""What an evaluation reads: one row of numbers a clip, with its label, group and split.

This file knows how a table lies in an `.npz` file and when one makes sense. It does not know where the numbers
came from (an encoder, pixels) or what is fitted to them.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cora.files import whole

SPLITS = ("train", "test")


class Table(NamedTuple):
    """Features of `n` clips at `L` levels; row i of every field belongs to the same clip."""

    features: Float[np.ndarray, "L n F"]
    """Level 0 is the lowest. Time-resolved pooled latents of an encoder, or `L = 1` for a baseline of pixels."""
    label: Int[np.ndarray, "n"]
    """Class of the clip, from 0."""
    group: np.ndarray
    """What clips of one origin share (a person, a place, a long video); the empty string: of no group."""
    split: np.ndarray
    """`train` or `test` in every row; or the empty string in every row, where the corpus has no split."""
    path: np.ndarray | None = None
    """File of the clip, where it is known; nothing is computed from it."""
    views: Float[np.ndarray, "L n V F"] | None = None
    """Features of V further views of each clip, cut by chance, for probes that learn from many views."""
    class_name: np.ndarray | None = None
    """Name of the clip's class, where it is known."""

    def every(self, level: int) -> Float[np.ndarray, "n V F"]:
        """Returns one level's features of every view of each clip, `features` first."""
        own = self.features[level][:, None]
        return own if self.views is None else np.concatenate([own, self.views[level]], axis=1)


def require(table: Table) -> None:
    """Asserts that a classifier can be fitted to the table and scored on it.

    Raises ValueError if the columns differ in length, a label is missing or negative, a feature is not finite,
    fewer than two classes are there, or a split is neither `train` nor `test` (nor empty in all rows).
    """
    if table.features.ndim != 3 or 0 in table.features.shape:
        raise ValueError(f"features of shape {table.features.shape}: must be [levels, clips, numbers], none of them 0")
    rows = table.features.shape[1]
    if table.views is not None and table.views.shape[:2] + table.views.shape[3:] != table.features.shape:
        raise ValueError(f"views of shape {table.views.shape}: must be [levels, clips, views, numbers], "
                         f"all but the views as the features {table.features.shape}")
    for name in ("label", "group", "split"):
        column = getattr(table, name)
        if column.shape != (rows,):
            raise ValueError(f"{name} of shape {column.shape}: must be ({rows},), one a row of the features")
    if (missing := int((table.label < 0).sum())) > 0:
        raise ValueError(f"{missing} of {rows} clips have no label: every row needs one from 0; drop these rows")
    if (classes := len(np.unique(table.label))) < 2:
        raise ValueError(f"{classes} class in {rows} clips: a classifier needs at least 2")
    finite = np.stack([np.isfinite(table.every(level)).all((1, 2)) for level in range(len(table.features))])
    if not finite.all():
        level, row = (int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(f"features of level {level}, row {row} are not finite")
    found = set(np.unique(table.split).tolist())
    if found != {""} and not found <= set(SPLITS):
        odd = sorted(found - set(SPLITS))[0]
        raise ValueError(f"split = {odd!r}: must be 'train' or 'test' in every row, or '' in every row; "
                         "rename these rows or leave them out")


def save(path: Path, table: Table) -> None:
    """Writes the table to `path` as an uncompressed `.npz` without pickles; the file appears whole or not at all."""
    columns = {name: value for name, value in table._asdict().items() if value is not None}
    for name in ("group", "split", "path", "class_name"):
        if name in columns:
            columns[name] = columns[name].astype(np.str_)
    with whole(path) as part, part.open("wb") as file:  # a handle: numpy would add .npz to a name without it
        np.savez(file, **columns)


def load(path: Path) -> Table:
    """Returns the table that `save` wrote. Raises ValueError, naming the file, if it is not one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            columns = {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, EOFError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a table of features (.npz): {error}") from error
    if lacking := [name for name in ("features", "label", "group", "split") if name not in columns]:
        raise ValueError(f"{path} lacks {', '.join(lacking)}: it holds {', '.join(sorted(columns)) or 'nothing'}")
    return Table(columns["features"], columns["label"], columns["group"], columns["split"], columns.get("path"),
                 class_name=columns.get("class_name"))
