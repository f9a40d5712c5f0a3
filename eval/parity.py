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
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import tyro
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model, VJEPA2VideoProcessor
from transformers.models.vjepa2.modeling_vjepa2 import apply_masks

from cora.nets import hierarchy, pooler, vit
from cora.store import exchange, weights
from cora.store.probes import load_probe
from cora.types import Masks

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
TOLERANCE = 1e-4
Row = tuple[str, float, float, float]
"""What is compared, largest difference, largest number, largest difference allowed."""


def amplify(module: torch.nn.Module, seed: int, first: str = "embeddings.proj.") -> None:
    """Draws every parameter anew: kernels of deviation 1.5 / sqrt(inputs), biases .3, scales 1 +- .3; hundredths in
    `first`, the patch embedding."""
    chance = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=chance)
        if first in name:
            value.data = noise * (0.01 if value.ndim == 1 else 0.01 * value[0].numel() ** -0.5)
        elif value.ndim == 1:
            value.data = 1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.3 * noise
        else:
            value.data = noise * (1.0 if "token" in name else 1.5 * value.shape[-1] ** -0.5)


def row(name: str, ours: Any, theirs: Any, allowed: float = TOLERANCE) -> Row:
    """Returns the row of one comparison."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{name}: shapes {ours.shape} and {theirs.shape}")
    return name, float(np.abs(ours - theirs).max()), float(np.abs(theirs).max()), allowed


def drawn(config: VJEPA2Config, seed: int) -> tuple[np.ndarray, Masks]:
    """Returns two random clips, each of its own contrast, and which tokens are seen and hidden in each."""
    chance = np.random.default_rng(seed)
    side = config.crop_size
    clips = chance.integers(0, 256, (2, config.frames_per_clip, side, side, 3)).astype(np.uint8)
    clips[1] //= 3
    tokens = config.frames_per_clip // config.tubelet_size * (side // config.patch_size) ** 2
    order = np.stack([chance.permutation(tokens) for _ in clips])
    seen, hidden = np.sort(order[:, : tokens // 4], 1), np.sort(order[:, tokens // 4 : tokens // 4 + tokens // 2], 1)
    return clips, Masks(jnp.asarray(seen), jnp.asarray(hidden))


def pixels(clips: np.ndarray) -> torch.Tensor:
    """Returns what VJEPA2Model reads of uint8 clips: [B, T, C, H, W], standardised in float64."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(((clips / 255 - mean) / std).transpose(0, 1, 4, 2, 3).astype(np.float32))


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


def theirs(model: VJEPA2Model, clips: np.ndarray, masks: Masks) -> dict[str, np.ndarray]:
    """Returns what transformers computes: encoder, all its hidden states, the encoder of the visible tokens alone (from
    its own modules, since its forward encodes whole clips always), and the predictor."""
    seen, hidden = (torch.tensor(np.array(ids)).long() for ids in masks)
    video = pixels(clips)
    with torch.no_grad():
        whole = model(video, context_mask=[seen], target_mask=[hidden], output_hidden_states=True)
        z = apply_masks(model.encoder.embeddings(video), [seen])
        for layer in model.encoder.layer:
            z = layer(z, seen)[0]
        z = model.encoder.layernorm(z)
    found = {"last": whole.last_hidden_state, "hidden": torch.stack(whole.hidden_states), "masked": z,
             "predicted": whole.predictor_output.last_hidden_state}
    return {name: value.numpy() for name, value in found.items()}


def ours(encoder: weights.Pretrained, clips: np.ndarray, masks: Masks) -> dict[str, np.ndarray]:
    """Returns the same of Cora's network, whose levels are single blocks."""
    network, model = encoder.network, encoder.model
    everything = jnp.broadcast_to(jnp.arange(model.tokens), (len(clips), model.tokens))

    def states(z: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        def up(z: jax.Array, tree: Any) -> tuple[jax.Array, jax.Array]:
            z = network.encode(tree, z, ids)
            return z, z
        last, each = jax.lax.scan(up, z, encoder.encoder.levels)
        return network.norm(jax.tree.map(lambda leaf: leaf[-1], encoder.encoder.levels), last), each

    @jax.jit
    def all_of(video: jax.Array) -> dict[str, jax.Array]:
        z = network.embed(encoder.encoder.embed, network.patches(video))
        last, each = states(z, everything)
        pick = partial(jnp.take_along_axis, indices=masks.context[..., None], axis=1)
        ahead = jax.tree.map(lambda leaf: leaf[-1], encoder.predictors)
        return {"last": last, "hidden": jnp.concatenate([z[None], each]), "masked": states(pick(z), masks.context)[0],
                "predicted": network.predict(ahead, pick(last), masks, 1)}

    return {name: np.asarray(value) for name, value in all_of(jnp.asarray(clips)).items()}


def network_rows(folder: Path, model: VJEPA2Model, seed: int) -> Iterator[Row]:
    """Yields the rows of one model that stands in the folder."""
    clips, masks = drawn(model.config, seed)
    depth = model.config.num_hidden_layers
    there, here = theirs(model, clips, masks), ours(weights.load(folder, depth), clips, masks)
    for name in there:
        yield row(name, here[name][: len(there[name])], there[name])
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
    odd = [name for name, value in model.config.to_dict().items()
           if name not in ("_name_or_path", "transformers_version") and again.config.to_dict().get(name) != value]
    yield f"config: fields not equal {' '.join(odd)}", float(len(odd)), 0.0, 0.0
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


def meta_names(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Returns (encoder, predictor) under the names of Meta's modules, from a VJEPA2Model's."""
    pairs = (("encoder.embeddings.patch_embeddings.", "patch_embed."), ("encoder.layernorm.", "norm."),
             ("encoder.layer.", "blocks."), ("predictor.embeddings.predictor_embeddings.", "predictor_embed."),
             ("predictor.layernorm.", "predictor_norm."), ("predictor.layer.", "predictor_blocks."),
             ("predictor.proj.", "predictor_proj."), (".attention.", ".attn."))
    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name.endswith("mask_tokens"):
            found |= {f"mask_tokens.{i}": token for i, token in enumerate(value)}
            continue
        if ".key." in name or ".value." in name:
            continue
        if ".query." in name:
            value = torch.cat([state[name.replace("query", word)] for word in ("query", "key", "value")])
            name = name.replace("query", "qkv")
        for old, new in pairs:
            name = name.replace(old, new)
        found[name] = value
    ahead = {name for name in found if name.startswith(("predictor_", "mask_tokens"))}
    return ({name: value for name, value in found.items() if name not in ahead}, {name: found[name] for name in ahead})


def meta_files(work: Path, model: VJEPA2Model) -> dict[str, Path]:
    """Writes these weights as Meta's hub file and as a training checkpoint whose learner is another; returns both."""
    encoder, predictor = meta_names(model.state_dict())
    full = lambda tree: {f"module.backbone.{name}": value for name, value in tree.items()}  # noqa: E731
    other = {name: value + 1 for name, value in encoder.items()}
    moments = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, dtype=torch.bfloat16)}},
               "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}]}
    files = {"hub": work / "vjepa2_hub.pt", "training": work / "vjepa2_training.pt"}
    torch.save({"encoder": encoder | {"pos_embed": torch.zeros(1, 4, 2)}, "predictor": predictor}, files["hub"])
    rest = {"opt": moments, "scaler": None, "epoch": 2, "loss": 0.5, "batch_size": 4, "world_size": 1, "lr": 1e-3}
    weights = {"encoder": full(other), "target_encoder": full(encoder), "predictor": full(predictor)}
    torch.save(weights | rest, files["training"])
    return files


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
    """Yields the rows against Meta's own modules in their training mode: visible tokens alone, then the predictor."""
    sys.path.insert(0, str(clone))
    for name in ("timm", "timm.models", "timm.models.layers"):  # drop_path, of rate 0, is all that is asked of timm
        sys.modules.setdefault(name, SimpleNamespace(drop_path=None))  # type: ignore[arg-type]
    from src.models.predictor import VisionTransformerPredictor
    from src.models.vision_transformer import VisionTransformer

    own, norm = model.config, partial(torch.nn.LayerNorm, eps=1e-6)
    shape = {"img_size": own.crop_size, "patch_size": own.patch_size, "num_frames": own.frames_per_clip,
             "tubelet_size": own.tubelet_size, "use_rope": True, "norm_layer": norm}
    encoder = VisionTransformer(**shape, embed_dim=own.hidden_size, depth=own.num_hidden_layers,
                                num_heads=own.num_attention_heads, mlp_ratio=own.mlp_ratio)
    ahead = VisionTransformerPredictor(**shape, embed_dim=own.hidden_size, predictor_embed_dim=own.pred_hidden_size,
                                       depth=own.pred_num_hidden_layers, num_heads=own.pred_num_attention_heads,
                                       mlp_ratio=own.pred_mlp_ratio, use_mask_tokens=True,
                                       num_mask_tokens=own.pred_num_mask_tokens)
    for module, tensors in zip((encoder, ahead), meta_names(model.state_dict()), strict=True):
        module.load_state_dict(tensors)
    clips, masks = drawn(own, seed)
    seen, hidden = (torch.tensor(np.array(ids)).long() for ids in masks)
    here = weights.load(folder, own.num_hidden_layers)
    with torch.no_grad():
        z = encoder.eval()(pixels(clips).transpose(1, 2), masks=[seen])
        guess = ahead.eval()(z, [seen], [hidden], mask_index=1)
    yield row("Meta's encoder, masked", ours(here, clips, masks)["masked"], z)
    tree = jax.tree.map(lambda leaf: leaf[-1], here.predictors)
    mine = jax.jit(lambda x: here.network.predict(tree, x, masks, 1))(jnp.asarray(z.numpy()))
    yield row("Meta's predictor", mine, guess)


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


def write_oracles(folder: Path) -> None:
    """Writes what the default tests read: a small classifier as transformers saves it, what it computes, two files as
    Meta would have written them, and what their weights compute."""
    config = VJEPA2Config(**CASES[0], **NAMES)
    model = VJEPA2ForVideoClassification(config).eval()
    amplify(model, 0)
    model.save_pretrained(folder / "vjepa2")
    clips, masks = drawn(config, 0)
    with torch.no_grad():
        scores = model(pixels(clips)).logits.numpy()
    np.savez_compressed(folder / "vjepa2_outputs.npz", clips=clips, context=masks.context, target=masks.target,
                        scores=scores, **theirs(model.vjepa2, clips, masks))
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
        write_oracles(write)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    tyro.cli(main)
