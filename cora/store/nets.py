"""Any net as one safetensors file: parameters, a learner with its optimiser, kept states; whatever is a tree of arrays.

Arrays are named by their paths, e.g. `0.f.w` [repeat, outputs, inputs] for the lowest Level of a perceptron. A file
says what the arrays are, not what they are for: that is told by the tree that it is read into.
"""

from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cora.store.weights import WeightsError, flatten, read_arrays, strict, write_arrays

FORMAT = "cora-net-1"
T = TypeVar("T")


def save(path: Path | str, tree: Any) -> None:
    """Writes a tree of arrays as one safetensors file, whole or not at all.

    Raises WeightsError for what is no array of numbers, for leaves of one name, and if what was read back is not bit
    for bit what was written.
    """
    arrays = {name: _array(path, name, leaf) for name, leaf in flatten(tree).items()}
    if len(arrays) != len(jax.tree.leaves(tree)):
        raise WeightsError(f"{path}: two arrays of this tree have one name; no key may hold a full stop")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, arrays, {"format": FORMAT})
    again = read_arrays(path)
    if not all(_kind(again[name]) == _kind(x) and again[name].tobytes() == x.tobytes() for name, x in arrays.items()):
        raise WeightsError(f"{path}: arrays read back differ from those written")


def restore(path: Path | str, like: T) -> T:
    """Returns the arrays that `save` wrote, as the tree `like`, of which only structure, shapes and types count (that
    of `jax.eval_shape` will do).

    Raises WeightsError that names every array that is missing, unknown, misshapen or of another type.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path}: no such file; expected one that cora.save wrote")
    arrays, wanted = read_arrays(Path(path)), flatten(like)
    strict(f"{path}: holds another net", {name: _kind(x) for name, x in wanted.items()},
           {name: _kind(x) for name, x in arrays.items()}, "wanted")
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in wanted])


def _kind(leaf: Any) -> tuple[Any, ...]:
    """Shape and type of an array, or of what a number would be as one."""
    return (*jnp.shape(leaf), str(leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)))


def _array(path: Path | str, name: str, leaf: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.extended) or callable(leaf):
        raise WeightsError(f"{path}: {name} is {leaf!r}, no array of numbers; nearest: jax.random.key_data of a key")
    return np.asarray(jnp.asarray(leaf))
