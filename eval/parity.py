"""Cora's encoder, predictor and probe beside Hugging Face's VJEPA2, run live on the same random weights.

    uv run --with torch --with torchvision --with transformers eval/parity.py
    ...                              # prints the table; exit status 1 if a row fails
    ... --meta FOLDER                # also Meta's own modules, from a clone of facebookresearch/vjepa2
    ... --write tests/oracles        # and the numbers that the tests read

Torch needs no GPU: its CPU build will do. Weights are amplified and every bias and scale is random, for with weights as
they are drawn for training a missing rotation or a wrong activation hides under any tolerance; the patch embedding is
faint, so that the norms' epsilon shows.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import tyro
from parity_sides import (
    TOLERANCE,
    Row,
    amplify,
    drawn,
    meta_files,
    meta_modules,
    our_step,
    ours,
    pixels,
    row,
    their_step,
    theirs,
    two_kinds,
)
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model, VJEPA2VideoProcessor

from cora.nets import hierarchy, pooler, vit
from cora.store import exchange, weights
from cora.store.hugging_face import DEFAULTS
from cora.store.probes import load_probe

CASES: tuple[dict[str, Any], ...] = (
    {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "mlp_ratio": 1.5, "crop_size": 16,
     "patch_size": 4, "frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_attention_heads": 2,
     "pred_num_hidden_layers": 1, "pred_num_mask_tokens": 3, "pred_mlp_ratio": 1.5, "num_pooler_layers": 1},
    {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4, "mlp_ratio": 48 / 11, "crop_size": 32,
     "patch_size": 8, "frames_per_clip": 8, "pred_hidden_size": 36, "pred_num_attention_heads": 3,
     "pred_num_hidden_layers": 2, "pred_num_mask_tokens": 1, "pred_mlp_ratio": 3.0, "num_pooler_layers": 3},
    {"hidden_size": 128, "num_attention_heads": 1, "num_hidden_layers": 3, "mlp_ratio": 64 / 13, "crop_size": 48,
     "patch_size": 16, "frames_per_clip": 6, "tubelet_size": 3, "pred_hidden_size": 40, "pred_num_attention_heads": 2,
     "pred_num_hidden_layers": 3, "pred_num_mask_tokens": 10, "num_pooler_layers": 2},
)
LABELS = ("up", "down", "left", "right", "still")
NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}

SAID = {"last": "encoder: last_hidden_state", "hidden": "encoder: every hidden state",
        "masked": "encoder of the visible tokens alone", "predicted": "predictor"}


class Said(logging.Handler):
    """Keeps what is logged at warning level or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one line."""
        self.lines.append(record.getMessage())


def listened(load: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Returns what `load` returns and every warning it gives or logs."""
    said, source = Said(), logging.getLogger("transformers")
    source.addHandler(said)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load()
    source.removeHandler(said)
    return found, said.lines + [str(w.message) for w in caught]


# ----------------------------------------------------------------------------------------------------- what is compared


def network_rows(folder: Path, model: VJEPA2Model, seed: int) -> Iterator[Row]:
    """Yields the rows of one model that stands in the folder."""
    clips, masks = drawn(model.config, seed)
    depth = model.config.num_hidden_layers
    there, here = theirs(model, clips, masks), ours(weights.load(folder, depth), clips, masks)
    for name in there:
        yield row(SAID[name], here[name][: len(there[name])], there[name])
    whole = np.asarray(weights.load(folder, 1)(clips))[-1]
    yield row("last, as cora.load gives it", whole, there["last"])
    longer = np.concatenate([clips, clips[:, ::-1]], axis=1)
    with torch.no_grad():
        more = model(pixels(longer), skip_predictor=True).last_hidden_state
        still = model(pixels(clips[:, :1]), skip_predictor=True).last_hidden_state
    yield row("a clip twice as long", np.asarray(weights.load(folder, 1)(longer))[-1], more)
    yield row("a single picture", np.asarray(weights.load(folder, 1)(clips[:, :1]))[-1], still)


def exchange_rows(folder: Path, work: Path, model: Any) -> Iterator[Row]:
    """Yields the rows of import and export: weights bit for bit, loaded by transformers without a word."""
    exchange.bring(folder, work / "native")
    probe = isinstance(model, VJEPA2ForVideoClassification)
    exchange.write(work / "native", work / "again", weights.load(work / "native"), "hf", probe)
    (again, info), said = listened(
        lambda: type(model).from_pretrained(work / "again", output_loading_info=True))
    problems = said + [f"{name}: {value}" for name, value in info.items() if value]
    for line in problems:
        print("    from_pretrained says:", line)
    yield "from_pretrained: warnings, odd keys", float(len(problems)), 0.0, 0.0
    before, after = model.state_dict(), again.state_dict()
    unequal = sum(name not in after or not torch.equal(before[name], after[name]) for name in before)
    yield "import, export: tensors not equal", float(unequal + len(after.keys() - before.keys())), len(before), 0.0
    own = [name for name in DEFAULTS if probe or name != "num_pooler_layers"]  # no pooler, no number of its layers
    odd = [name for name in own if getattr(again.config, name) != getattr(model.config, name)]
    yield "config: fields not equal", float(len(odd)), len(own), 0.0
    if probe:
        yield "labels", float(again.config.id2label != dict(enumerate(LABELS))), 0.0, 0.0


def probe_rows(work: Path, model: VJEPA2ForVideoClassification, seed: int) -> Iterator[Row]:
    """Yields the rows of the attentive probe, on its own and behind the encoder, and of the video processor."""
    clips, _ = drawn(model.config, seed)
    probe, encoder = load_probe(work / "native"), weights.load(work / "native")
    head = pooler.Classifier(probe.heads, probe.depth, len(probe.labels))
    score = jax.jit(lambda z: vit.apply(head, probe.weights, z))
    with torch.no_grad():
        z = model.vjepa2(pixels(clips), skip_predictor=True).last_hidden_state
        yield row("classifier on the same tokens", score(jnp.asarray(z.numpy())), model.classifier(model.pooler(z)))
        yield row("classifier on clips", score(encoder(clips)[-1]), model(pixels(clips)).logits)
    processor, said = listened(lambda: VJEPA2VideoProcessor.from_pretrained(work / "again"))
    yield "processor: warnings", float(len(said)), 0.0, 0.0
    seen = processor(list(clips), return_tensors="np", do_resize=False, do_center_crop=False).pixel_values_videos
    plain = np.asarray(hierarchy.standardise(jnp.asarray(clips))).transpose(0, 1, 4, 2, 3)
    yield row("processor without resizing", plain, seen, 1e-5)


# -------------------------------------------------------------------------------------------------------- Meta's files


def meta_rows(work: Path, model: VJEPA2Model) -> Iterator[Row]:
    """Yields the rows of Meta's two kinds of file."""
    own = model.config
    for name, file in meta_files(work, model).items():
        exchange.bring(file, work / name, levels=1, heads=own.num_attention_heads, size=own.crop_size,
                       predictor_heads=own.pred_num_attention_heads, frames=own.frames_per_clip)
        exchange.write(work / name, work / f"{name}_hf", weights.load(work / name), "hf")
        found = weights.read_folder(work / f"{name}_hf")
        unequal = sum(not np.array_equal(found[key], value.numpy()) for key, value in model.state_dict().items())
        yield f"Meta's {name} file: tensors not equal", float(unequal), len(found), 0.0


def original_rows(clone: Path, model: VJEPA2Model, folder: Path, seed: int) -> Iterator[Row]:
    """Yields the rows against Meta's own modules: visible tokens alone, the predictor, and a whole training step."""
    own, (encoder, ahead) = model.config, meta_modules(clone, model)
    clips, masks = drawn(own, seed)
    seen, hidden = (torch.tensor(np.array(ids)).long() for ids in masks)
    here = weights.load(folder, own.num_hidden_layers)
    with torch.no_grad():
        z = encoder(pixels(clips).transpose(1, 2), masks=[seen])
        guess = ahead(z, [seen], [hidden], mask_index=1)
    yield row("Meta's encoder, masked", ours(here, clips, masks)["masked"], z)
    tree = jax.tree.map(lambda leaf: leaf[-1], here.predictors)
    mine = jax.jit(lambda x: here.network.predict(tree, x, masks, 1))(jnp.asarray(z.numpy()))
    yield row("Meta's predictor", mine, guess)
    kinds = two_kinds(own, seed)
    loss, slopes = their_step((encoder, ahead), clips, kinds)
    found, here_slopes = our_step(here, clips, kinds)
    yield "Meta's training step: loss, relative", abs(found / loss - 1), loss, 1e-5
    for part in ("encoder", "predictor"):
        gaps = [row(name, here_slopes[name], slope) for name, slope in slopes.items() if name.startswith(f"{part}.")]
        worst = max(gap / max(size, 1e-30) for _, gap, size, _ in gaps)
        size = max(size for _, _, size, _ in gaps)
        yield f"Meta's training step: gradients of the {part}, relative", worst, size, TOLERANCE
    odd = slopes.keys() ^ here_slopes.keys()
    yield "Meta's training step: gradients that one side lacks", float(len(odd)), len(slopes), 0.0


# ---------------------------------------------------------------------------------------------------------------- main


def rows(case: int, seed: int, clone: Path | None, work: Path) -> Iterator[Row]:
    """Yields all rows of one configuration and seed."""
    config = VJEPA2Config(**CASES[case], **NAMES)
    model = VJEPA2ForVideoClassification(config).eval()
    amplify(model, seed)
    model.save_pretrained(work / "whole")
    model.vjepa2.save_pretrained(work / "model")
    yield from network_rows(work / "model", model.vjepa2, seed)
    for kind, one in (("model", model.vjepa2), ("whole", model)):
        (work / kind / "out").mkdir()
        yield from exchange_rows(work / kind, work / kind / "out", one)
    yield from probe_rows(work / "whole" / "out", model, seed)
    yield from meta_rows(work, model.vjepa2)
    if clone is not None:
        yield from original_rows(clone, model.vjepa2, work / "model", seed)


def write_step(folder: Path, clone: Path, model: VJEPA2Model) -> None:
    """Writes the loss of one of Meta's training steps on these weights, and of each gradient its norm and 8 numbers."""
    clips, _ = drawn(model.config, 0)
    kinds = two_kinds(model.config, 0)
    loss, slopes = their_step(meta_modules(clone, model), clips, kinds)
    places = {name: np.linspace(0, slope.size - 1, 8).astype(int) for name, slope in slopes.items()}
    numbers: dict[str, Any] = {
        "loss": loss, "names": sorted(slopes), "norms": [np.linalg.norm(slopes[name]) for name in sorted(slopes)],
        "largest": [np.abs(slopes[name]).max() for name in sorted(slopes)],
        "places": [places[name] for name in sorted(slopes)],
        "entries": [slopes[name].ravel()[places[name]] for name in sorted(slopes)],
    }
    ids = {f"{part}{i}": one for i, m in enumerate(kinds) for part, one in m._asdict().items()}
    np.savez_compressed(folder / "vjepa2_step.npz", clips=clips, **ids | numbers)


def write_oracles(folder: Path, clone: Path | None = None) -> None:
    """Writes what the default tests read: a small classifier as transformers saves it, what it computes, two files as
    Meta would have written them, what their weights compute, and from a clone one training step."""
    config = VJEPA2Config(**CASES[0], **NAMES)
    model = VJEPA2ForVideoClassification(config).eval()
    amplify(model, 0)
    model.save_pretrained(folder / "vjepa2")
    clips, masks = drawn(config, 0)
    with torch.no_grad():
        scores = model(pixels(clips)).logits.numpy()
    numbers: dict[str, Any] = {"clips": clips, "context": masks.context, "target": masks.target, "scores": scores}
    np.savez_compressed(folder / "vjepa2_outputs.npz", **numbers | theirs(model.vjepa2, clips, masks))
    if clone is not None:
        write_step(folder, clone, model.vjepa2)
    small = VJEPA2Config(**CASES[0] | {"hidden_size": 12, "pred_hidden_size": 12, "patch_size": 2, "crop_size": 8,
                                       "mlp_ratio": 2.0, "pred_mlp_ratio": 1.0, "num_hidden_layers": 1})
    tiny = VJEPA2Model(small).eval()
    amplify(tiny, 1)
    meta_files(folder, tiny)
    clips, masks = drawn(small, 1)
    np.savez_compressed(folder / "vjepa2_meta.npz", clips=clips, last=theirs(tiny, clips, masks)["last"])


def main(seeds: int = 2, meta: Path | None = None, write: Path | None = None, json_file: Path | None = None) -> None:
    """Prints the table of largest differences; exits with status 1 if one is larger than allowed.

    Args:
        seeds: Random weights of each of the configurations.
        meta: A clone of Meta's V-JEPA 2, to run its modules too.
        write: Where the numbers go that the tests read.
        json_file: Where the table goes as JSON.
    """
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    jax.config.update("jax_default_matmul_precision", "highest")
    found: dict[str, list[Row]] = {}
    for case in range(len(CASES)):
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as work:
                for one in rows(case, seed, meta, Path(work)):
                    found.setdefault(one[0], []).append(one)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, jax {jax.__version__}; "
          f"{len(CASES)} configurations x {seeds} seeds, float32")
    print("| what | largest difference | of numbers up to | allowed | |\n|---|---|---|---|---|")
    failed = 0
    for name, several in found.items():
        worst, size = max(r[1] for r in several), max(r[2] for r in several)
        bad = sum(not r[1] <= r[3] for r in several)
        failed += bad
        print(f"| {name} | {worst:.2g} | {size:.3g} | {several[0][3]:.2g} | {'FAILED' if bad else 'ok'} |")
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2))
    if write is not None and not failed:
        write_oracles(write, meta)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    tyro.cli(main)
