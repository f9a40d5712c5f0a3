"""Cora's names and shapes as Hugging Face's VJEPA2 has them, and back; a pure mapping that opens no file.

Cora's levels in a row, ended by the last level's norm, are V-JEPA 2's encoder, and the last level's predictor is
V-JEPA 2's predictor. What Hugging Face has no place for: the lower levels' norms and predictors. Where weights come
from there, every level's norm starts as the last one's.
Source: configuration and module names of VJEPA2Model, transformers 5.23.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from cora import config
from cora.schema import require

Arrays = Mapping[str, np.ndarray]
"""Named arrays: under Hugging Face's names, or under the dotted paths of Cora's trees."""
ONE = config.Learn(rule="backprop_last")
"""What a V-JEPA 2 was trained by: the last level alone has a predictor."""
DEFAULTS: dict[str, Any] = {
    "patch_size": 16, "crop_size": 256, "frames_per_clip": 64, "tubelet_size": 2, "hidden_size": 1024, "in_chans": 3,
    "num_attention_heads": 16, "num_hidden_layers": 24, "drop_path_rate": 0.0, "mlp_ratio": 4.0,
    "layer_norm_eps": 1e-6, "qkv_bias": True, "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu",
    "initializer_range": 0.02, "attention_dropout": 0.0, "num_pooler_layers": 3, "pred_hidden_size": 384,
    "pred_num_attention_heads": 12, "pred_num_hidden_layers": 12, "pred_num_mask_tokens": 10,
    "pred_zero_init_mask_tokens": True, "pred_mlp_ratio": 4.0,
}
"""VJEPA2Config where its JSON says nothing."""
FIXED = ("in_chans", "layer_norm_eps", "qkv_bias", "hidden_act")
"""What Cora's encoder has no choice of."""
MODEL, CLASSIFIER = "VJEPA2Model", "VJEPA2ForVideoClassification"


class Row(NamedTuple):
    """Where one of Hugging Face's tensors stands in Cora."""

    name: str
    path: str
    kind: Literal["vector", "kernel", "patch", "tokens"]
    at: int | None = None
    """Index of the level."""
    part: int | None = None
    """Which third of the last axis: query, key or value."""


def rows(model: config.Model) -> list[Row]:
    """Returns where every tensor of VJEPA2Model stands: one row each."""
    found = _linear("encoder.embeddings.patch_embeddings.proj", "embed.proj", kind="patch")
    for i in range(model.levels * model.blocks):
        level, block = divmod(i, model.blocks)
        found += _block(f"encoder.layer.{i}", f"levels.blocks.block{block}", level)
    found += _norm("encoder.layernorm", "levels.norm.norm", model.levels - 1)
    found += [Row("predictor.embeddings.mask_tokens", "predictors.mask_tokens", "tokens", -1)]
    found += _linear("predictor.embeddings.predictor_embeddings", "predictors.embed", -1)
    for i in range(model.predictor_depth):
        found += _block(f"predictor.layer.{i}", f"predictors.stack.block{i}", -1)
    found += _norm("predictor.layernorm", "predictors.norm", -1)
    return found + _linear("predictor.proj", "predictors.proj", -1)


def _linear(name: str, path: str, at: int | None = None, part: int | None = None,
            kind: Literal["kernel", "patch"] = "kernel") -> list[Row]:
    return [Row(f"{name}.weight", f"{path}.linear.kernel", kind, at, part),
            Row(f"{name}.bias", f"{path}.linear.bias", "vector", at, part)]


def _norm(name: str, path: str, at: int) -> list[Row]:
    return [Row(f"{name}.weight", f"{path}.scale", "vector", at), Row(f"{name}.bias", f"{path}.bias", "vector", at)]


def _block(name: str, path: str, at: int) -> list[Row]:
    found = _norm(f"{name}.norm1", f"{path}.norm1", at) + _norm(f"{name}.norm2", f"{path}.norm2", at)
    for part, word in enumerate(("query", "key", "value")):
        found += _linear(f"{name}.attention.{word}", f"{path}.qkv", at, part)
    for word, own in (("attention.proj", "proj"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")):
        found += _linear(f"{name}.{word}", f"{path}.{own}", at)
    return found


def _slot(row: Row, array: np.ndarray) -> np.ndarray:
    """Returns the view of Cora's array in which the row's tensor stands."""
    array = array if row.at is None else array[row.at]
    third = array.shape[-1] // 3
    return array if row.part is None else array[..., row.part * third : (row.part + 1) * third]


def _turned(row: Row, array: np.ndarray, model: config.Model) -> np.ndarray:
    if row.kind == "patch":  # a product over (t, h, w, channel) there, a convolution's (channel, t, h, w) here
        return array.reshape(model.tubelet, model.patch, model.patch, 3, -1).transpose(4, 3, 0, 1, 2)
    return {"vector": array, "kernel": array.T, "tokens": array[:, None, None]}[row.kind]


def _turned_back(row: Row, array: np.ndarray) -> np.ndarray:
    if row.kind == "patch":
        return array.transpose(2, 3, 4, 1, 0).reshape(-1, array.shape[0])
    return {"vector": array, "kernel": array.T, "tokens": array.reshape(len(array), -1)}[row.kind]


# --------------------------------------------------------------------------------------------------------- weights


def tensors(model: config.Model, weights: Arrays) -> dict[str, np.ndarray]:
    """Returns VJEPA2Model's tensors from all of Cora's arrays, which are not changed.

    A predictor that hears from above hears nothing at the highest level: what is left of that, a bias, is added to the
    mask tokens, as it is in the forward pass. A predictor of all levels at once (rule `dense`) has no place there, and
    zeros stand in its stead.
    """
    weights = dict(weights)
    tokens = "predictors.mask_tokens"
    if "predictors.above.linear.bias" in weights:
        weights[tokens] = weights[tokens] + weights["predictors.above.linear.bias"][:, None]
    fused = "predictors.fuse.linear.kernel" in weights
    if fused:
        weights["predictors.proj.linear.kernel"] = weights["predictors.proj.linear.kernel"][..., : model.width]
        weights["predictors.proj.linear.bias"] = weights["predictors.proj.linear.bias"][..., : model.width]
    found = {row.name: _turned(row, _slot(row, weights[row.path]), model) for row in rows(model)}
    return {name: np.zeros_like(array) if fused and name.startswith("predictor.") else np.ascontiguousarray(array)
            for name, array in found.items()}


def shapes(model: config.Model, template: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of VJEPA2Model, from those of Cora's arrays."""
    empty = {path: np.broadcast_to(np.float32(0), shape) for path, shape in template.items()}
    return {row.name: _turned(row, _slot(row, empty[row.path]), model).shape for row in rows(model)}


def weights(model: config.Model, found: Arrays, template: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns Cora's arrays, float32 and of the template's shapes, from VJEPA2Model's tensors of the right shapes.

    Lower levels' norms are copies of the last one's; there is one predictor.
    """
    made = {path: np.zeros(shape, np.float32) for path, shape in template.items()}
    for row in rows(model):
        _slot(row, made[row.path])[...] = _turned_back(row, found[row.name])
    for path in ("levels.norm.norm.scale", "levels.norm.norm.bias"):
        made[path][:] = made[path][-1:]
    return made


def probe_tensors(classifier: Arrays) -> dict[str, np.ndarray]:
    """Returns the tensors of VJEPA2ForVideoClassification's pooler and classifier from those of Cora's probe."""
    found = {}
    for path, array in classifier.items():
        name = path.replace("self_attention_layers_", "self_attention_layers.").replace(".linear.", ".")
        name = name.replace(".kernel", ".weight").replace(".scale", ".weight")
        found[name] = np.ascontiguousarray(array.T if path.endswith(".kernel") else array)
    return found


def probe_weights(found: Arrays) -> dict[str, np.ndarray]:
    """Returns the arrays of Cora's probe from the tensors of a pooler and classifier."""
    made = {}
    for name, array in found.items():
        path = name.replace("self_attention_layers.", "self_attention_layers_")
        if "layer_norm" in name:
            path = path.replace(".weight", ".scale")
        elif not name.endswith("query_tokens"):
            path = path.replace(".weight", ".linear.kernel").replace(".bias", ".linear.bias")
        made[path] = np.asarray(array.T if path.endswith(".kernel") else array, np.float32)
    return made


# ---------------------------------------------------------------------------------------------------------- config


def to_config(model: config.Model, labels: Sequence[str] = (), pooler_layers: int | None = None) -> dict[str, Any]:
    """Returns config.json of a VJEPA2Model, with `labels` of a VJEPA2ForVideoClassification.

    Raises ConfigError for what Hugging Face's code cannot compute: true rotations, scaled positions, oblong frames.
    """
    instead = "Hugging Face's VJEPA2 has no such thing; nearest:"
    require(model.rope == "tiled", "model.rope", model.rope, f"{instead} 'tiled', or --format native or stablehlo")
    require(model.rope_grid == 0, "model.rope_grid", model.rope_grid, f"{instead} 0, or --format native or stablehlo")
    height, width = model.sides
    require(height == width, "model.size", model.size, f"{instead} {min(height, width)}, or --format stablehlo")
    own = {
        "patch_size": model.patch, "crop_size": height, "frames_per_clip": model.frames, "tubelet_size": model.tubelet,
        "hidden_size": model.width, "num_attention_heads": model.heads,
        "num_hidden_layers": model.levels * model.blocks, "mlp_ratio": model.mlp_ratio,
        "pred_hidden_size": model.predictor_width, "pred_num_attention_heads": model.predictor_heads,
        "pred_num_hidden_layers": model.predictor_depth, "pred_num_mask_tokens": model.mask_tokens,
        "pred_mlp_ratio": model.predictor_mlp_ratio,
    }
    if pooler_layers is not None:
        own["num_pooler_layers"] = pooler_layers
    head = {"model_type": "vjepa2", "architectures": [CLASSIFIER if labels else MODEL], "dtype": "float32"}
    names = {"id2label": {str(i): label for i, label in enumerate(labels)},
             "label2id": {label: i for i, label in enumerate(labels)}} if labels else {}
    return head | DEFAULTS | own | names


def from_config(meta: Mapping[str, Any], levels: int | None = None) -> config.Model:
    """Returns the model of a VJEPA2 config.json, cut into `levels` (by default 4, or the nearest divisor of the depth).

    Raises ConfigError for another kind of model, for choices that Cora's encoder does not have, or levels that do not
    divide the depth.
    """
    require(meta.get("model_type") == "vjepa2", "model_type", meta.get("model_type"), "must be 'vjepa2'")
    given = DEFAULTS | dict(meta)
    for name in FIXED:
        require(given[name] == DEFAULTS[name], name, given[name], f"Cora's encoder has {DEFAULTS[name]!r} alone")
    require(not given.get("use_SiLU"), "use_SiLU", given.get("use_SiLU"), "Cora's encoder has GELU alone")
    depth = given["num_hidden_layers"]
    levels = cut(depth, levels)
    return config.Model(
        frames=given["frames_per_clip"], size=given["crop_size"], tubelet=given["tubelet_size"],
        patch=given["patch_size"], width=given["hidden_size"], heads=given["num_attention_heads"], levels=levels,
        blocks=depth // levels, mlp_ratio=float(given["mlp_ratio"]), predictor_width=given["pred_hidden_size"],
        predictor_depth=given["pred_num_hidden_layers"], predictor_heads=given["pred_num_attention_heads"],
        predictor_mlp_ratio=float(given["pred_mlp_ratio"]), mask_tokens=given["pred_num_mask_tokens"], scaled_init=True,
    )


def cut(depth: int, levels: int | None) -> int:
    """Returns how many levels a depth is cut into. Raises ConfigError if `levels` do not divide it."""
    near = min((n for n in range(1, depth + 1) if depth % n == 0), key=lambda n: abs(n - (levels or 4)))
    require(levels in (None, near), "levels", levels, f"must divide the depth {depth}; nearest: {near}")
    return near


def processor(model: config.Model) -> dict[str, Any]:
    """Returns video_preprocessor_config.json: the frame resized, its centre cropped, ImageNet's statistics."""
    size = model.sides[0]
    return {
        "video_processor_type": "VJEPA2VideoProcessor", "do_resize": True, "do_center_crop": True, "do_rescale": True,
        "do_normalize": True, "size": {"shortest_edge": size * 256 // 224},
        "crop_size": {"height": size, "width": size}, "resample": 2, "rescale_factor": 1 / 255,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }
