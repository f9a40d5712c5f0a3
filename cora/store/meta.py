"""Meta's checkpoints of V-JEPA 2: their names as Hugging Face's, and the shape of a model that no config tells.

Pure mapping. Both namings are known: a training checkpoint (`encoder`, `target_encoder`, `predictor` and more, names
beginning with `module.backbone.`) and a hub file (`encoder`, `predictor`, perhaps `target_encoder` or `ema_encoder`).
Beware: V-JEPA 1 wrote files with the same names, but adds the positions that V-JEPA 2 leaves unused beside its rotary
ones; nothing in a file tells which it is.
Source: module names of V-JEPA 2 as released.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cora import config
from cora.schema import require
from cora.store.hugging_face import cut

ENCODERS = ("target_encoder", "ema_encoder", "encoder")
"""Where the encoder is looked for: a moving average first, as in Hugging Face's own conversion."""
UNUSED = ("pos_embed", "predictor_pos_embed")
"""Sines and cosines that lie in released files beside rotary positions, and are not read."""
NAMES = (
    ("patch_embed.", "encoder.embeddings.patch_embeddings."), ("blocks.", "encoder.layer."),
    ("norm.", "encoder.layernorm."), ("predictor_blocks.", "predictor.layer."),
    ("predictor_embed.", "predictor.embeddings.predictor_embeddings."), ("predictor_norm.", "predictor.layernorm."),
    ("predictor_proj.", "predictor.proj."), ("mask_tokens.", "predictor.embeddings.mask_tokens."),
)
LATER = ("norms_block", "predictor_proj_context", "mod_embed", "patch_embed_img", "img_mod", "video_mod")
"""Only V-JEPA 2.1 has these."""


class MetaError(ValueError):
    """A checkpoint is not of V-JEPA 2; the message names what it holds."""


def tensors(checkpoint: Any) -> dict[str, np.ndarray]:
    """Returns the encoder and predictor of a checkpoint under the names of Hugging Face's VJEPA2Model.

    Of several encoders a moving average comes first. Raises MetaError, with names, for parts that are missing or
    unknown, and for V-JEPA 2.1.
    """
    there = {str(key): value for key, value in checkpoint.items()} if isinstance(checkpoint, Mapping) else {}
    own = next((name for name in ENCODERS if isinstance(there.get(name), Mapping)), None)
    if own is None or not isinstance(there.get("predictor"), Mapping):
        raise MetaError(f"no encoder ({', '.join(ENCODERS)}) with a predictor; the file holds {sorted(there)}")
    found: dict[str, np.ndarray] = {}
    unknown = []
    for key, value in (*there[own].items(), *there["predictor"].items()):
        name = key.replace("module.", "").replace("backbone.", "")
        if any(word in name for word in LATER):
            raise MetaError(f"{key}: of V-JEPA 2.1, whose four norms and two kinds of input Cora does not have")
        if name in UNUSED:
            continue
        prefix = next((pair for pair in NAMES if name.startswith(pair[0])), None)
        if prefix is None or not isinstance(value, np.ndarray):
            unknown.append(key)
            continue
        found |= _split(prefix[1] + name.removeprefix(prefix[0]).replace("attn.", "attention."), value)
    if unknown:
        raise MetaError(f"unknown in {own} or predictor: {', '.join(unknown)}")
    return _stacked(found)


def _split(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    if ".qkv." not in name:
        return {name: value}
    return {name.replace("qkv", word): part
            for word, part in zip(("query", "key", "value"), np.split(value, 3), strict=True)}


def _stacked(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the same with the mask tokens, which Meta keeps one by one, as the one tensor of Hugging Face."""
    stem = "predictor.embeddings.mask_tokens"
    single = {name: found.pop(name) for name in list(found) if name.startswith(f"{stem}.")}
    if single:
        found[stem] = np.stack([single[f"{stem}.{i}"] for i in range(len(single))])
    return found


def model_of(
    found: Mapping[str, np.ndarray], *, levels: int | None = None, heads: int | None = None,
    predictor_heads: int | None = None, size: int = 256, frames: int = 64,
) -> config.Model:
    """Returns the model of these tensors, which are named as Hugging Face's.

    Heads are in no shape: an encoder's are those of V-JEPA 2's encoder of this width and depth, a predictor's 12 where
    it is V-JEPA 2's, 384 wide. Raises ConfigError if there is none and none are given, MetaError if a tensor is missing
    from which a size is read.
    """
    try:
        patch = found["encoder.embeddings.patch_embeddings.proj.weight"].shape
        inner = found["encoder.layer.0.mlp.fc1.weight"].shape
        narrow = found["predictor.embeddings.mask_tokens"].shape
        ahead = found["predictor.layer.0.mlp.fc1.weight"].shape
    except KeyError as missing:
        raise MetaError(f"lacks {missing.args[0]} (as Hugging Face names it), from which sizes are read") from missing
    if len(patch) != 5 or patch[1] != 3 or patch[3] != patch[4]:
        raise MetaError(f"patch embedding of shape {patch}: must be (width, 3, tubelet, patch, patch), so of video")
    width, depth = patch[0], _count(found, "encoder.layer.")
    known = {(w, d): h for w, d, h, _ in config.SIZES.values()}
    heads = heads or known.get((width, depth))
    require(heads is not None, "heads", heads, f"no encoder of V-JEPA 2 is {width} wide and {depth} deep; give --heads")
    if predictor_heads is None and narrow[-1] == 384:
        predictor_heads = 12
    require(predictor_heads is not None, "predictor_heads", predictor_heads,
            f"no predictor of V-JEPA 2 is {narrow[-1]} wide; give --predictor-heads")
    assert heads is not None and predictor_heads is not None
    levels = cut(depth, levels)
    return config.Model(
        frames=frames, size=size, tubelet=patch[2], patch=patch[3], width=width, heads=heads, levels=levels,
        blocks=depth // levels, mlp_ratio=_ratio(inner), predictor_width=narrow[-1],
        predictor_depth=_count(found, "predictor.layer."), predictor_heads=predictor_heads,
        predictor_mlp_ratio=_ratio(ahead), mask_tokens=narrow[0], scaled_init=True,
    )


def _count(found: Mapping[str, np.ndarray], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in found if name.startswith(prefix)})


def _ratio(shape: tuple[int, ...]) -> float:
    """Returns the ratio whose product with the width, rounded down, is the inner width."""
    inner, width = shape
    ratio = inner / width
    return ratio if int(width * ratio) == inner else float(np.nextafter(ratio, np.inf))
