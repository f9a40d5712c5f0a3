"""What `cora export` and `cora import` do: write, read back, compare; and the words that go with weights.

A native folder holds all that pretraining can go on from; a Hugging Face folder what VJEPA2Model has a place for, with
a trained attentive probe VJEPA2ForVideoClassification; a StableHLO folder a program.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from cora import config
from cora.schema import require
from cora.store import checkpoint, hugging_face, meta, onnx_file, stablehlo, torch_file, weights
from cora.store.probes import Probe, load_probe, save_probe, scores, tree_of
from cora.store.weights import Pretrained, WeightsError

Format = Literal["native", "hf", "stablehlo", "onnx"]
PACKAGES = ("cora", "jax", "flax", "optax", "numpy")
PATHS = (("corpus", "path"), ("target", "start"), ("run", "start"))
HEAD = "---\nlibrary_name: transformers\ntags: [video, v-jepa-2, predictive-coding, cora]\n---"
MARKS = {"native": ("config.json", '{\n  "format": "cora-'), "hf": ("README.md", HEAD),
         "stablehlo": (stablehlo.FILE, ""), "onnx": (onnx_file.FILE, "")}
"""By what an export of a format is known: the file that is written first, and how that begins."""


class Compared(NamedTuple):
    """Largest differences between what was written and what was read back; the latents are of a random clip."""

    weights: float | None
    """None where they are inside a program."""
    latents: float


def record_of(ckpt: Path, settings: config.Pretrain, step: int) -> dict[str, Any]:
    """Returns what is known of a run, as it goes with its weights: config (of paths their names only), step, versions
    and the probes' accuracies, where the run has been probed at this step; or why they are left out."""
    whole = json.loads(config.to_json(settings))
    for section, field in (*((whole[name], field) for name, field in PATHS), *((one, "path") for one in whole["mix"])):
        section[field] = Path(section[field]).name
    record = {"config": whole, "step": step, "versions": {name: importlib.metadata.version(name) for name in PACKAGES}}
    found, left_out = scores(checkpoint.run_of(ckpt), step)
    if left_out:
        record["probe_left_out"] = left_out
    if found is not None:
        keys = ("accuracy", "ci95", "level")
        record["probe"] = {name: {key: row[key] for key in keys if key in row}
                           | {f"{other}_accuracy": row[other]["accuracy"] for other in ("random", "pixels")
                              if other in row} for name, row in found.items()
                           if isinstance(row, dict) and "accuracy" in row}
    return record


def require_own(out: Path, form: Format) -> None:
    """Raises ConfigError unless the folder `out` is new, empty but for hidden files, or an earlier export of this
    format: nothing else is written over, a run's config.json or somebody's README.md least of all."""
    name, opening = MARKS[form]
    files = out.iterdir() if out.is_dir() else [out] if out.exists() else []
    there = sorted(path.name for path in files if not path.name.startswith("."))
    require(not there or _begins(out / name, opening.encode()), "out", str(out),
            f"holds {', '.join(there[:3])} and is no earlier {form} export; nearest: {str(out / form)!r}")


def _begins(file: Path, opening: bytes) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return content.read(len(opening)) == opening


def write(ckpt: Path, out: Path, encoder: Pretrained, form: Format = "native", probe: bool = False) -> Compared:
    """Writes a checkpoint's encoder into the folder `out`, reads it back and returns the largest differences.

    `probe` takes the attentive probe along that stands in the run's folder. Raises ConfigError for what the format
    cannot hold, a probe of another step or an `out` that holds something else, WeightsError if what was read back
    differs.
    """
    require(not probe or form == "hf", "probe", probe, f"--format {form} has no place for one; nearest: --format hf")
    require_own(out, form)
    if form == "native":
        gap = weights.save(out, encoder.model, encoder.encoder, encoder.predictors, encoder.learn, encoder.record)
        return Compared(gap, _gap(encoder, weights.load(out)(_clip(encoder.model))))
    if form == "hf":
        return _write_hugging_face(out, encoder, load_probe(checkpoint.run_of(ckpt)) if probe else None)
    if form == "onnx":
        onnx_file.write(out, encoder)
        plain = Pretrained(replace(encoder.model, dtype="float32"), encoder.encoder)  # as it is written
        return Compared(None, _gap(plain, onnx_file.read(out)(_clip(encoder.model))[1]))
    stablehlo.write(out, encoder)
    return Compared(None, _gap(encoder, stablehlo.read(out).call(_clip(encoder.model))[1]))


def _clip(model: config.Model) -> UInt8[np.ndarray, "1 T H W 3"]:
    return np.random.default_rng(0).integers(0, 256, (1, model.frames, *model.sides, 3), np.uint8)


def _gap(encoder: Pretrained, again: Any) -> float:
    """Returns the largest difference of the random clip's last normed latents."""
    return float(np.max(np.abs(np.asarray(encoder(_clip(encoder.model)))[-1] - np.asarray(again)[-1])))


def _write_hugging_face(out: Path, encoder: Pretrained, probe: Probe | None) -> Compared:
    if encoder.predictors is None:
        raise WeightsError("the checkpoint holds no predictors, without which transformers would make one at random; "
                           "export the run again")
    model = encoder.model
    arrays = hugging_face.tensors(model, weights.named(encoder.encoder, encoder.predictors))
    settings = hugging_face.to_config(model)
    if probe is not None:
        _fits(encoder, probe)
        settings = hugging_face.to_config(model, probe.labels, probe.depth)
        head = hugging_face.probe_tensors(weights.flatten(probe.weights))
        arrays = {f"vjepa2.{name}": array for name, array in arrays.items()} | head
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(card(encoder, probe))
    for name, content in (("config.json", settings), ("video_preprocessor_config.json", hugging_face.processor(model))):
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    weights.write_arrays(out / "model.safetensors", arrays, {"format": "pt"})
    again = weights.load(out, model.levels)
    gap = weights.same(out, arrays, weights.read_folder(out))
    alike = Pretrained(replace(again.model, dtype=model.dtype, attention=model.attention), again.encoder)
    return Compared(gap, _gap(encoder, alike(_clip(model))))


def _fits(encoder: Pretrained, probe: Probe) -> None:
    model, step, run = encoder.model, encoder.record.get("step"), "cora probe RUN MANIFEST --method attentive"
    require(probe.step == step, "probe.step", probe.step,
            f"the encoder is of step {step}: `{run}` again, or export RUN/checkpoints/{probe.step}")
    require(probe.heads == model.heads, "probe.heads", probe.heads,
            f"Hugging Face's pooler has as many heads as the encoder: `{run} --heads {model.heads}`")
    require(probe.of == "whole", "probe.tokens", probe.of,
            f"Hugging Face's pooler reads tokens as they are: `{run} --tokens whole`")
    require(probe.level == model.levels - 1, "probe.level", probe.level,
            f"Hugging Face's pooler reads the last level: `{run} --level {model.levels - 1}`")


# ---------------------------------------------------------------------------------------------------------- import


def bring(
    source: Path, out: Path, *, levels: int | None = None, heads: int | None = None,
    predictor_heads: int | None = None, size: int | None = None, frames: int | None = None,
) -> tuple[Pretrained, Compared]:
    """Writes a native folder from a Hugging Face folder or a checkpoint file of Meta's, reads it back and compares it
    with the source: (what was read, largest differences).

    Weights of 16 bits become float32. All but `levels` is for files of Meta's, which do not say it; 256 pixels and 64
    frames unless given, which rotary positions are free to leave. Raises ConfigError, WeightsError, MetaError or
    TorchFileError, naming what is wrong.
    """
    require_own(out, "native")
    if source.is_dir():
        given = {"heads": heads, "predictor_heads": predictor_heads, "size": size, "frames": frames}
        for name, value in given.items():
            require(value is None, name, value, f"{source} is a folder, whose config.json says so itself; leave it off")
        if weights.kind(source) != "hf":
            raise WeightsError(f"{source}: no Hugging Face folder of a VJEPA2 (config.json with model_type)")
        found = weights.read_folder(source)
        model = hugging_face.from_config(json.loads((source / "config.json").read_text()), levels)
    elif source.is_file():
        found = meta.tensors(torch_file.read(source))
        model = meta.model_of(found, levels=levels, heads=heads, predictor_heads=predictor_heads,
                              size=size or 256, frames=frames or 64)
    else:
        raise WeightsError(f"{source}: neither a Hugging Face folder nor a checkpoint file")
    made = weights.from_tensors(str(source), model, found)
    weights.save(out, model, made.encoder, made.predictors, made.learn, {"source": source.name})
    again = weights.load(out)
    back = hugging_face.tensors(model, weights.named(again.encoder, again.predictors))
    if "classifier.weight" in found:
        save_probe(out, _brought_probe(source, model, found))
        head = hugging_face.probe_tensors(weights.flatten(load_probe(out).weights))
        back = {f"vjepa2.{name}": array for name, array in back.items()} | head
    plain = {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}
    return again, Compared(weights.same(out, plain, back), _gap(made, again(_clip(model))))


def _brought_probe(source: Path, model: config.Model, found: Mapping[str, np.ndarray]) -> Probe:
    given = json.loads((source / "config.json").read_text())
    head = {name: array for name, array in found.items() if not name.startswith("vjepa2.")}
    names = given.get("id2label") or {}
    count = len(found["classifier.weight"])
    labels = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(count))
    depth = given.get("num_pooler_layers", hugging_face.DEFAULTS["num_pooler_layers"])
    tree = tree_of(hugging_face.probe_weights(head))
    return Probe(tree, model.heads, depth, model.levels - 1, "whole", labels, step=None)


# ------------------------------------------------------------------------------------------------------------ card


def card(encoder: Pretrained, probe: Probe | None) -> str:
    """Returns the model card: how it is loaded, what it was trained with, what is not in the file."""
    model, record = encoder.model, encoder.record
    kind = hugging_face.CLASSIFIER if probe else hugging_face.MODEL
    parts = [
        HEAD,
        f"# A video encoder pretrained by Cora\n\n`{kind}`: {model.levels * model.blocks} blocks of width {model.width}"
        f", clips of {model.frames} frames of {model.sides[0]} pixels.",
        "```python\nfrom transformers import AutoVideoProcessor, " + kind + "\n\n"
        f'processor, model = (cls.from_pretrained("FOLDER") for cls in (AutoVideoProcessor, {kind}))\n'
        + ('scores = model(**processor(video, return_tensors="pt")).logits\n' if probe else
           'latents = model(**processor(video, return_tensors="pt"), skip_predictor=True).last_hidden_state\n') + "```",
        "The processor cuts the middle out of the frame, as V-JEPA 2's does. In training and in Cora's own probes the "
        f"whole frame was squeezed to {model.sides[0]} pixels a side; for that, call the processor with "
        f'`size={{"height": {model.sides[0]}, "width": {model.sides[0]}}}, do_center_crop=False`.',
        _not_here(encoder),
    ]
    if record:
        parts.append("## Training record\n\n```json\n" + json.dumps(record, indent=2) + "\n```")
    return "\n\n".join(parts) + "\n"


def _not_here(encoder: Pretrained) -> str:
    if encoder.learn.rule == "dense":
        return ("## Not in this file\n\nThe predictor: it was trained on all levels' latents at once, for which "
                "`VJEPA2Model` has no place. Its tensors are zeros: pass `skip_predictor=True`. Nor are the lower "
                "levels' norms.")
    goal = encoder.record.get("config", {}).get("target", {}).get("kind")
    fixed = " It predicts oriented energy in space and time (`hog3d`), not latents." if goal == "hog3d" else ""
    told = " What it heard from above, at this level nothing but a bias, is in its mask tokens."
    return ("## Not in this file\n\nThe lower levels' norms and predictors; the predictor here is the last level's. "
            f"`cora export RUN OUT` (native) keeps all.{fixed}{told * encoder.learn.top_down}")


def describe(compared: Compared) -> str:
    """Returns the comparison in words."""
    weights = "" if compared.weights is None else f"{compared.weights} in the weights, "
    return f"reloaded and compared, largest difference {weights}{compared.latents:.2g} in the latents of a random clip"

