"""Tensors out of a file that torch.save wrote, without torch and without running what the file says.

The file is a zip archive: `data.pkl` holds the containers as a pickle, in which every tensor refers to a member that
holds its storage. Here that pickle may name nothing but tensors, their storages and plain containers; whatever else it
names is refused by name before it is called. Storages are mapped, not read: what nobody asks for costs no memory.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}
"""Kinds of storage by their name in torch."""


class TorchFileError(ValueError):
    """A file is no checkpoint of tensors and plain containers; the message says what stands there instead."""


class _Storage:
    """The mark of a kind of storage in the pickle; never made into anything. Slots leave a pickle nothing to set."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)


class _Tensor:
    """Stands for torch._utils._rebuild_tensor_v2."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        whole = all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)) and len(size) == len(stride)
        if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not whole:
            raise TorchFileError(f"a tensor of size {size!r}, stride {stride!r} and offset {offset!r} in no storage")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 in size:
            return np.zeros(size, storage.dtype)
        if last >= len(storage):
            raise TorchFileError(f"a tensor of size {tuple(size)} reaches beyond its storage of {len(storage)} numbers")
        steps = tuple(step * storage.itemsize for step in stride)
        return np.ndarray(tuple(size), storage.dtype, storage, offset * storage.itemsize, steps)


class _Parameter:
    """Stands for torch._utils._rebuild_parameter."""

    __slots__ = ()

    def __call__(self, data: np.ndarray, *_: Any) -> np.ndarray:
        return data


class _Reader(pickle.Unpickler):
    """Knows tensors, storages and OrderedDict; beware of adding to it: whatever it returns, a file may call."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._path, self._archive, self._root = path, archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Parameter()
        if module == "torch" and name in STORAGES:
            return _Storage(STORAGES[name])
        raise TorchFileError(f"{self._path}: names {module}.{name}, and only tensors in plain containers are read; "
                             "save the state_dict alone")

    def persistent_load(self, pid: Any) -> np.ndarray:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], _Storage):
            raise TorchFileError(f"{self._path}: refers to {pid!r}, which is no storage")
        _, kind, key, _, count = pid
        member = f"{self._root}/data/{key}"
        try:
            info = self._archive.getinfo(member)
        except KeyError as missing:
            raise TorchFileError(f"{self._path}: lacks {member}") from missing
        if info.compress_type != zipfile.ZIP_STORED:
            raise TorchFileError(f"{self._path}: {member} is compressed; unzip it and zip it again with `zip -0`")
        if not isinstance(count, int) or count < 0 or info.file_size < count * kind.dtype.itemsize:
            raise TorchFileError(f"{self._path}: {member} holds {info.file_size} bytes, too few for {count!r} numbers")
        if count == 0:
            return np.zeros(0, kind.dtype)
        return np.memmap(self._path, kind.dtype, "r", _begin(self._path, info), count).view(np.ndarray)


def _begin(path: Path, info: zipfile.ZipInfo) -> int:
    """Returns where a stored member's bytes begin: after its local header, whose length the directory does not tell."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<26xHH", file.read(30))
    return info.header_offset + 30 + name + extra


def read(path: Path) -> Any:
    """Returns what torch.save wrote: the containers as they were, every tensor a read-only NumPy array.

    Raises TorchFileError, before anything is called, for whatever is not tensors in dicts, lists, tuples and numbers,
    and for files of torch before 1.6.
    """
    if not zipfile.is_zipfile(path):
        raise TorchFileError(f"{path}: not the zip archive that torch.save writes since torch 1.6; where torch is "
                             "installed and the file is trusted, torch.save(torch.load(old), new) makes one")
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise TorchFileError(f"{path}: a zip archive, but not of torch.save: {len(roots)} members data.pkl")
        order = f"{roots[0]}/byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise TorchFileError(f"{path}: written on a big-endian machine; only little-endian numbers are read")
        reader = _Reader(path, archive, roots[0])
        try:
            return reader.load()
        except (pickle.UnpicklingError, EOFError, TypeError, IndexError, AttributeError, KeyError) as error:
            raise TorchFileError(f"{path}: damaged data.pkl ({error})") from error
