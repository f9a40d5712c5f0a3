"""Encoder weights as safetensors plus config: the format that leaves Cora and comes back unchanged.

The only file that knows safetensors. A folder holds `config.json` (the model section) and `model.safetensors`,
whose names are the paths of the parameter tree, e.g. `levels.blocks.block0.qkv.linear.kernel` [L, D, 3D].
"""

import json
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from safetensors.numpy import load_file, save_file

from cora import config
from cora.nets.hierarchy import build, latents
from cora.types import Encoder, Network

FORMAT = "cora-encoder-1"


class WeightsError(ValueError):
    """A folder does not hold the weights that its config describes."""


class Pretrained:
    """A frozen encoder: call it on uint8 clips to get the normed latents of every level."""

    def __init__(self, model: config.Model, encoder: Encoder) -> None:
        self.model, self.encoder = model, encoder
        self.network: Network = build(model)
        self._latents = jax.jit(lambda weights, clips: latents(self.network, weights, clips))

    def __call__(self, clips: UInt8[np.ndarray, "B T S S 3"]) -> Float[Array, "L B N D"]:
        """Returns the latents of whole clips, level by level; pixels 0 to 255, sides as in `model`."""
        expected = (self.model.frames, self.model.size, self.model.size, 3)
        if clips.ndim != 5 or clips.shape[1:] != expected or clips.dtype != np.uint8:
            raise ValueError(f"clips are {clips.dtype} {clips.shape}; this encoder reads uint8 (B, *{expected})")
        return self._latents(self.encoder, clips)


def flatten(encoder: Encoder) -> dict[str, np.ndarray]:
    """Returns {dotted path: array} of an encoder's weights."""
    leaves = jax.tree_util.tree_flatten_with_path(encoder._asdict())[0]
    return {".".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}


def save(folder: Path, model: config.Model, encoder: Encoder) -> float:
    """Writes the weights, reloads them, and returns the largest difference between the two (0.0).

    Raises WeightsError if what was read back is not bit for bit what was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"format": FORMAT, "model": json.loads(config.to_json(model))}))
    save_file(flatten(encoder), folder / "model.safetensors", metadata={"format": FORMAT})
    again = flatten(load(folder).encoder)
    worst = max(float(np.max(np.abs(again[name] - array))) for name, array in flatten(encoder).items())
    if worst != 0:
        raise WeightsError(f"{folder}: weights read back differ by {worst:.3g} from those written")
    return worst


def load(folder: Path | str) -> Pretrained:
    """Returns the encoder of a folder that `save` wrote. Raises WeightsError naming what is missing or misshapen."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: no config.json; expected a folder written by `cora export`")
    meta = json.loads((folder / "config.json").read_text())
    if meta.get("format") != FORMAT:
        raise WeightsError(f"{folder}/config.json: format {meta.get('format')!r}; this version reads {FORMAT!r}")
    model = config.from_json(config.Model, json.dumps(meta["model"]))
    arrays = load_file(folder / "model.safetensors")
    template = jax.eval_shape(build(model).init, jax.random.key(0)).encoder
    wanted = {name: leaf.shape for name, leaf in _shapes(template).items()}
    found = {name: array.shape for name, array in arrays.items()}
    if wanted != found:
        wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        lines = [f"  {name}: config says {wanted.get(name)}, file has {found.get(name)}" for name in wrong]
        raise WeightsError("\n".join([f"{folder}: weights and config disagree", *lines]))
    treedef = jax.tree.structure(template._asdict())
    return Pretrained(model, Encoder(**jax.tree.unflatten(treedef, [arrays[name] for name in wanted])))


def _shapes(encoder: Encoder) -> dict[str, jax.ShapeDtypeStruct]:
    leaves = jax.tree_util.tree_flatten_with_path(encoder._asdict())[0]
    return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}
