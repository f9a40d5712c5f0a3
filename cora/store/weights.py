"""Weights as safetensors plus config: the format that leaves Cora and comes back unchanged, and Hugging Face's.

The only file that knows safetensors. A native folder holds `config.json` (the sections model and learn, and what is
known of the training) and `model.safetensors`, whose names are the paths of the parameter tree, e.g.
`levels.blocks.block0.qkv.linear.kernel` [L, D, 3D] or `predictors.embed.linear.bias` [L, P].
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cora import config
from cora.files import home, whole
from cora.meaning import Count
from cora.nets.hierarchy import build, latents
from cora.schema import guard
from cora.store import checkpoint, hugging_face
from cora.types import Encoder, Network, Params, Tree

FORMAT, BEFORE = "cora-weights-2", "cora-encoder-1"
"""What is written, and what is still read: encoders without predictors."""
Shapes = dict[str, tuple[int, ...]]


class WeightsError(ValueError):
    """A folder does not hold the weights that its config describes, or that are wanted of it."""


class Pretrained:
    """A frozen encoder: call it on uint8 clips to get the normed latents of every level."""

    def __init__(
        self, model: config.Model, encoder: Encoder, predictors: Tree | None = None, learn: config.Learn | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.encoder, self.predictors = model, encoder, predictors
        self.learn = learn or config.Learn()
        """Which rule the predictors are of."""
        self.record = dict(record or {})
        """What is known of the training."""
        self.network: Network = build(model, learn=self.learn)

    def __call__(self, clips: UInt8[np.ndarray, "B T H W 3"]) -> Float[Array, "L B N D"]:
        """Returns the latents of whole clips, level by level; pixels 0 to 255.

        Frames and sides may be other multiples of tubelet and patch than those of `model`: positions go on, or are
        scaled to `rope_grid`. A single frame is repeated to a tubelet. Compiles once for each shape.
        """
        model = self.model
        units = (model.tubelet, model.patch, model.patch)
        if clips.ndim == 5 and clips.shape[1] == 1:
            clips = np.repeat(clips, model.tubelet, axis=1)
        fits = clips.ndim == 5 and all(n and n % unit == 0 for n, unit in zip(clips.shape[1:4], units, strict=True))
        if not fits or clips.shape[4] != 3 or clips.dtype != np.uint8:
            raise ValueError(f"clips are {clips.dtype} {clips.shape}; this encoder reads uint8 (B, T, H, W, 3), T 1 or "
                             f"a multiple of {units[0]}, H and W multiples of {units[1]}")
        return _latents(resized(model, *clips.shape[1:4]), self.encoder, clips)


@partial(jax.jit, static_argnums=0)
def _latents(model: config.Model, encoder: Encoder, clips: Array) -> Array:
    return latents(build(model), encoder, clips)


def resized(model: config.Model, frames: int, height: int, width: int) -> config.Model:
    """Returns the model for clips of this size."""
    return replace(model, frames=frames, size=height if height == width else (height, width))


# ---------------------------------------------------------------------------------------------------- named arrays


def write_arrays(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes named arrays and words about them as one safetensors file; it appears whole or not at all."""
    # Beware: safetensors writes the memory of an array as it lies there, and the shape as if it lay in order.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with whole(path) as part:
        try:
            save_file(ordered, part, metadata=metadata)
        except SafetensorError as error:  # of a full disk too
            raise OSError(f"{path}: {error}") from error
        part.chmod(0o644)  # safetensors leaves a file that its owner alone may read


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the named arrays of a safetensors file."""
    return load_file(path)


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of model.safetensors, or of all files that model.safetensors.index.json names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return read_arrays(folder / "model.safetensors")
    if not index.is_file():
        raise WeightsError(f"{folder}: no model.safetensors, nor {index.name}")
    names = json.loads(index.read_text())["weight_map"]
    found = {name: array for file in sorted(set(names.values())) for name, array in read_arrays(folder / file).items()}
    strict(f"{folder}: index and files disagree", dict.fromkeys(names, ()), dict.fromkeys(found, ()), "index", "files")
    return found


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {dotted path: leaf} of a tree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(_part(key) for key in path): leaf for path, leaf in leaves}


def _part(key: Any) -> str:
    """A field's or a dict's name, or the place in a tuple."""
    return str(next(getattr(key, kind) for kind in ("name", "key", "idx") if hasattr(key, kind)))


def named(encoder: Encoder, predictors: Tree | None) -> dict[str, np.ndarray]:
    """Returns {dotted path: array} of an encoder's weights, and its predictors' if there are any."""
    tree = encoder._asdict() | ({} if predictors is None else {"predictors": predictors})
    return {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}


def unnamed(model: config.Model, learn: config.Learn, arrays: Mapping[str, np.ndarray]) -> tuple[Encoder, Tree | None]:
    """Returns the encoder and the predictors (None if there are none) of the arrays that `named` gives."""
    like = _like(model, learn)
    tree = like.encoder._asdict() | ({"predictors": like.predictors} if _has_predictors(arrays) else {})
    made = jax.tree.unflatten(jax.tree.structure(tree), [arrays[path] for path in flatten(tree)])
    return Encoder(made["embed"], made["levels"]), made.get("predictors")


def _has_predictors(arrays: Iterable[str]) -> bool:
    return any(path.startswith("predictors.") for path in arrays)


@cache
def _like(model: config.Model, learn: config.Learn) -> Params:
    return jax.eval_shape(build(model, learn=learn).init, jax.random.key(0))


def template(model: config.Model, learn: config.Learn, predictors: bool = True) -> Shapes:
    """Returns the shape of every array of a model, with or without its predictors."""
    like = _like(model, learn)
    tree = like.encoder._asdict() | ({"predictors": like.predictors} if predictors else {})
    return {path: leaf.shape for path, leaf in flatten(tree).items()}


def strict(
    head: str, wanted: Mapping[str, tuple], found: Mapping[str, tuple], first: str = "config says",
    second: str = "file has",
) -> None:
    """Raises WeightsError that names every array in which the two differ."""
    wrong = sorted(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
    if wrong:
        lines = [f"  {name}: {first} {wanted.get(name)}, {second} {found.get(name)}" for name in wrong]
        raise WeightsError("\n".join([head, *lines]))


# --------------------------------------------------------------------------------------------------------- folders


def kind(folder: Path) -> Literal["native", "hf", "run"]:
    """Returns what a folder holds by its config.json; without one it can only be a run's step folder."""
    file = folder / "config.json"
    meta = json.loads(file.read_text()) if file.is_file() else {}
    return "native" if "format" in meta else "hf" if "model_type" in meta else "run"


def save(
    folder: Path, model: config.Model, encoder: Encoder, predictors: Tree | None = None,
    learn: config.Learn | None = None, record: Mapping[str, Any] | None = None,
) -> float:
    """Writes a native folder, reloads it, and returns the largest difference between the two (0.0).

    Raises WeightsError if what was read back is not bit for bit what was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"format": FORMAT, "model": json.loads(config.to_json(model)),
            "learn": json.loads(config.to_json(learn or config.Learn())), "record": dict(record or {})}
    arrays = named(encoder, predictors)
    (folder / "config.json").write_text(json.dumps(meta, indent=2) + "\n")  # first: what is cut short is known for ours
    write_arrays(folder / "model.safetensors", arrays, {"format": FORMAT})
    again = load(folder)
    return same(folder, arrays, named(again.encoder, again.predictors))


def same(folder: Path, written: Mapping[str, np.ndarray], again: Mapping[str, np.ndarray]) -> float:
    """Returns 0.0, the largest difference, if both are equal bit for bit; raises WeightsError if they are not."""
    if set(written) != set(again):
        raise WeightsError(f"{folder}: written were {sorted(written)}, read back {sorted(again)}")
    worst = max(float(np.max(np.abs(again[name] - array), initial=0.0)) for name, array in written.items())
    if not all(again[name].tobytes() == array.tobytes() for name, array in written.items()):
        raise WeightsError(f"{folder}: weights read back differ by {worst:.3g} from those written")
    return worst


@guard
def load(folder: Path | str, levels: Count | None = None) -> Pretrained:
    """Returns the encoder of a folder that `save` wrote, or of a Hugging Face folder of a VJEPA2 (cut into `levels`).

    Raises WeightsError naming what is missing or misshapen.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: no config.json; expected a folder written by `cora export` or `cora import`")
    meta = json.loads((folder / "config.json").read_text())
    if "model_type" in meta:
        model = hugging_face.from_config(meta, levels)
        return from_tensors(str(folder), model, read_folder(folder))
    if meta.get("format") not in (FORMAT, BEFORE):
        raise WeightsError(f"{folder}/config.json: format {meta.get('format')!r}; this version reads {FORMAT!r} and "
                           f"{BEFORE!r}, and Hugging Face's VJEPA2")
    model = config.from_json(config.Model, json.dumps(meta["model"]))
    learn = config.from_json(config.Learn, json.dumps(meta.get("learn", {})))
    arrays = read_folder(folder)
    wanted = template(model, learn, _has_predictors(arrays))
    strict(f"{folder}: weights and config disagree", wanted, _shapes(arrays))
    return Pretrained(model, *unnamed(model, learn, arrays), learn, meta.get("record"))


def from_tensors(source: str, model: config.Model, found: Mapping[str, np.ndarray]) -> Pretrained:
    """Returns the encoder and its one predictor from the tensors of a VJEPA2Model, or of a classifier, whose head stays
    behind. Raises WeightsError naming what is missing, unknown or misshapen."""
    if any(name.startswith("vjepa2.") for name in found):
        odd = sorted(name for name in found if not name.startswith(("vjepa2.", "pooler.", "classifier.")))
        if odd:
            raise WeightsError(f"{source}: unknown tensors beside a classifier's: {', '.join(odd)}")
        found = {name.removeprefix("vjepa2."): array for name, array in found.items() if name.startswith("vjepa2.")}
    learn = hugging_face.ONE
    shapes = template(model, learn)
    strict(f"{source}: tensors and config disagree", hugging_face.shapes(model, shapes), _shapes(found))
    return Pretrained(model, *unnamed(model, learn, hugging_face.weights(model, found, shapes)), learn)


def _shapes(arrays: Mapping[str, Any]) -> Shapes:
    return {name: array.shape for name, array in arrays.items()}


# ----------------------------------------------------------------------------------------------------------- begin


def read_training(path: Path) -> tuple[config.Pretrain, int, Params, Encoder]:
    """Returns (config, step, what learns, its teacher) of a run's latest step or a step folder."""
    settings = checkpoint.config_of(path)
    params = _like(settings.model, settings.learn)
    like: dict[str, Any] = {"params": params, "teacher": params.encoder}
    step, state = checkpoint.read_state(path, like)
    return settings, step, state["params"], state["teacher"]


def read_run(path: Path) -> tuple[config.Pretrain, int, Params, Encoder]:
    """Returns (config, step, what learned, the encoder that the run is for) of a run's latest step or a step folder.

    The last is the moving average where the run kept one.
    """
    settings, step, params, teacher = read_training(path)
    return settings, step, params, teacher if settings.target.kind == "ema" else jax.tree.map(jnp.copy, params.encoder)


def start(path: Path | str, wanted: config.Pretrain | None = None) -> tuple[config.Model, Params, Encoder]:
    """Returns (model, what learns, teacher) to begin another run with, from a run, native or Hugging Face folder.

    Only a run has a learner apart from its teacher; elsewhere both are the folder's encoder. With `wanted`, the
    predictors are made as many as its rule trains: one for every level from a single one (copies), or the last level's
    alone; a map of seen tokens (`learn.seen`) that is not there begins at zero, one that is not wanted is left behind.
    Its model may differ in frames and size and in how it is computed, and in nothing else. Raises WeightsError
    that names every field and array in which it does.
    """
    model, learner, predictors, teacher = _read(home(path), wanted.model.levels if wanted else None)
    if predictors is None:
        raise WeightsError(f"{path}: holds no predictors, so training cannot go on from it; export the run again")
    params = Params(learner, predictors)
    if wanted is None:
        return model, params, teacher
    _require_model(path, model, wanted.model)
    many = _as_many(params.predictors, wanted.learn.predictors or model.levels)
    params = params._replace(predictors=_reading(many, wanted))
    there = _shapes(flatten({**params.encoder._asdict(), "predictors": params.predictors}))
    strict(f"{path}: predictors of another kind than learn.rule = {wanted.learn.rule!r} with learn.top_down = "
           f"{wanted.learn.top_down} trains (dense: one of all levels' latents; top_down: with weights `above`):",
           template(wanted.model, wanted.learn), there, "wanted", "there")
    return model, params, teacher


def _reading(predictors: Tree, wanted: config.Pretrain) -> Tree:
    """Returns the predictors with the map that reads seen tokens and the one that says how sure they are, or without
    them, as the run wants; those that are not there begin at zero."""
    width, narrow = wanted.model.width, wanted.model.predictor_width
    asked = {"beside": (bool(wanted.learn.seen), width, width), "precision": (wanted.learn.precision, narrow, 1)}
    made = {name: tree for name, tree in predictors.items() if name not in asked}
    count = jax.tree.leaves(made)[0].shape[0]
    for name, (wants, ins, outs) in asked.items():
        if wants:
            line = {"kernel": jnp.zeros((count, ins, outs)), "bias": jnp.zeros((count, outs))}
            made[name] = predictors.get(name, {"linear": line})
    return made


def frozen_teacher(path: Path | str, wanted: config.Model) -> Encoder:
    """Returns the encoder of a run, native or Hugging Face folder, to teach a model of its shape; raises as `start`."""
    model, _, _, encoder = _read(home(path), wanted.levels)
    _require_model(path, model, wanted, ("predictor_width", "predictor_depth", "predictor_heads", "predictor_mlp_ratio",
                                         "mask_tokens"))
    return encoder


def _read(path: Path, levels: int | None) -> tuple[config.Model, Encoder, Tree | None, Encoder]:
    """Returns model, learner, predictors (None if there are none) and teacher of any folder."""
    if kind(path) == "run":
        settings, _, params, teacher = read_run(path)
        return settings.model, params.encoder, params.predictors, teacher
    found = load(path, levels)
    # A step that donates its buffers needs learner and teacher apart.
    learner, predictors, teacher = jax.tree.map(jnp.array, (found.encoder, found.predictors, found.encoder))
    return found.model, learner, predictors, teacher


def _require_model(path: Path | str, model: config.Model, wanted: config.Model, free: tuple[str, ...] = ()) -> None:
    """Requires one model, but for how it began, is computed and fed, and what is named in `free`."""
    began = ("scaled_init", "predictor_near", "predictor_gaze", "predictor_tokens")
    free = ("frames", "size", "dtype", "attention", "remat", *began, *free)
    differ = config.difference(replace(model, **{name: getattr(wanted, name) for name in free}), wanted)
    if differ:
        lines = [f"  model.{name}: {old!r} there, {new!r} wanted" for name, (old, new) in differ.items()]
        raise WeightsError("\n".join([f"{path}: is another model than the one to be trained:", *lines]))


def _as_many(predictors: Tree, count: int) -> Tree:
    def many(leaf: Array) -> Array:
        if leaf.shape[0] == count:
            return leaf
        return jnp.repeat(leaf[-1:], count, axis=0) if leaf.shape[0] == 1 or count == 1 else leaf

    return jax.tree.map(many, predictors)
