"""The sides of eval/parity.py: the same random weights and clips in transformers', Meta's and Cora's modules."""

import copy
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import apply_masks

from cora import config
from cora.pc import settled
from cora.store import hugging_face, meta, weights
from cora.types import Masks, Params, Sight

TOLERANCE = 1e-4
TEACHER = 0.75
"""The teacher's weights in those of the learner: another network, and the same on all sides."""
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


def drawn(own: VJEPA2Config, seed: int) -> tuple[np.ndarray, Masks]:
    """Returns two random clips, each of its own contrast, and which tokens are seen and hidden in each."""
    chance = np.random.default_rng(seed)
    side = own.crop_size
    clips = chance.integers(0, 256, (2, own.frames_per_clip, side, side, 3)).astype(np.uint8)
    clips[1] //= 3
    tokens = own.frames_per_clip // own.tubelet_size * (side // own.patch_size) ** 2
    order = np.stack([chance.permutation(tokens) for _ in clips])
    seen, hidden = np.sort(order[:, : tokens // 4], 1), np.sort(order[:, tokens // 4 : tokens // 4 + tokens // 2], 1)
    return clips, Masks(jnp.asarray(seen), jnp.asarray(hidden))


def pixels(clips: np.ndarray) -> torch.Tensor:
    """Returns what VJEPA2Model reads of uint8 clips: [B, T, C, H, W], standardised in float64."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(((clips / 255 - mean) / std).transpose(0, 1, 4, 2, 3).astype(np.float32))


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


# ----------------------------------------------------------------------------------------------------- a training step


def meta_modules(clone: Path, model: VJEPA2Model) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns Meta's own encoder and predictor with these weights."""
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
    return encoder.eval(), ahead.eval()


def two_kinds(own: VJEPA2Config, seed: int) -> tuple[Masks, Masks]:
    """Returns the masks of `drawn`, and others that show half as many tokens and hide half as many again."""
    _, first = drawn(own, seed)
    (clips, seen), hidden = first.context.shape, first.target.shape[1]
    chance = np.random.default_rng(seed + 1)
    order = np.stack([chance.permutation(2 * hidden) for _ in range(clips)])
    return first, Masks(*(jnp.asarray(np.sort(part, 1)) for part in (
        order[:, : seen // 2], order[:, seen // 2 : seen // 2 + 3 * hidden // 2])))


def their_step(
    modules: tuple[torch.nn.Module, torch.nn.Module], clips: np.ndarray, masks: tuple[Masks, ...]
) -> tuple[float, dict[str, np.ndarray]]:
    """Returns the loss of V-JEPA 2's training step and all its gradients, under Hugging Face's names.

    Mask kind i has mask token i. Beware: where Meta's code trains, its wrapper counts lengths of clips in place of
    kinds, so that both kinds share token 0; that is `mask_tokens` 1.
    """
    from src.masks.utils import apply_masks as picked

    encoder, ahead = modules
    teacher, video = copy.deepcopy(encoder), pixels(clips).transpose(1, 2)
    with torch.no_grad():
        for value in teacher.parameters():
            value.mul_(TEACHER)
        goal = teacher(video)
        goal = torch.nn.functional.layer_norm(goal, (goal.shape[-1],))
    losses = []
    for kind, ids in enumerate(masks):
        seen, hidden = (torch.tensor(np.array(one)).long() for one in ids)
        guess = ahead(encoder(video, masks=[seen]), [seen], [hidden], mask_index=kind)
        losses.append((guess - picked(goal, [hidden])).abs().mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    slopes = [{name: (torch.zeros_like(value) if value.grad is None else value.grad).numpy()
               for name, value in module.named_parameters()} for module in modules]
    return loss.item(), meta.tensors(dict(zip(("encoder", "predictor"), slopes, strict=True)))


def our_step(
    encoder: weights.Pretrained, clips: np.ndarray, masks: tuple[Masks, ...]
) -> tuple[float, dict[str, np.ndarray]]:
    """Returns the same by Cora's rule `backprop_last`."""
    network, model = encoder.network, encoder.model
    assert encoder.predictors is not None
    rule = settled.rule_of(hugging_face.ONE, config.Infer(), model, config.Target())
    teacher = jax.tree.map(lambda leaf: TEACHER * leaf, encoder.encoder)
    learned = jax.jit(lambda params, video: rule(network, params, teacher, Sight(network.patches(video), masks)))
    slope, error = learned(Params(encoder.encoder, encoder.predictors), jnp.asarray(clips))
    return float(error[0]), hugging_face.tensors(model, weights.named(slope.encoder, slope.predictors))
