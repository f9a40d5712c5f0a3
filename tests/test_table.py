"""Laws of a table's file: it comes back equal, and what is no table is named."""

from pathlib import Path

import numpy as np
import pytest

from cora.measure import table as tables
from cora.measure.table import Table

pytestmark = pytest.mark.filterwarnings("error")
TABLE = Table(np.random.default_rng(0).normal(size=(2, 3, 4)), np.array([1, 0, 1]), np.array(["s1", "", "s10"]),
              np.array(["train", "test", "train"]))


def test_table_survives_its_file(tmp_path: Path) -> None:
    for table in (TABLE, TABLE._replace(path=np.array(["a.mp4", "long/b.mp4", "c.mp4"], object))):
        tables.save(tmp_path / "t.bin", table)
        assert [p.name for p in tmp_path.iterdir()] == ["t.bin"]
        for mine, stored in zip(table, tables.load(tmp_path / "t.bin"), strict=True):
            assert np.array_equal(mine, stored) if mine is not None else stored is None


def test_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, features=np.zeros(3))
    with pytest.raises(ValueError, match=r"t\.npz lacks label, group, split: it holds features"):
        tables.load(path)
    for content in (b"no archive", b"PK\x03\x04 torn", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"t\.npz is not a table"):
            tables.load(path)
    np.save(tmp_path / "t.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"t\.npy is not a table"):
        tables.load(tmp_path / "t.npy")
