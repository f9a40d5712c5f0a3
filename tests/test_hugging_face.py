"""Hugging Face's and Meta's V-JEPA 2: what they compute (numbers made by eval/parity.py), weights there and back."""

import json
import os
import pickle
import zipfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import compiled

import cora
from cora import cli, config
from cora.measure import features
from cora.nets import pooler, vit
from cora.nets.hierarchy import build, latents
from cora.store import exchange, hugging_face, meta, torch_file, weights
from cora.store.probes import load_probe, save_probe
from cora.types import Masks

ORACLES = Path(__file__).parent / "oracles"
TOLERANCE = 1e-4
SMALL = config.Model(frames=4, size=16, patch=8, width=24, heads=2, levels=2, blocks=1, predictor_width=12,
                     predictor_heads=1, mlp_ratio=2.0, mask_tokens=3)


@pytest.fixture(scope="module")
def there():
    with np.load(ORACLES / "vjepa2_outputs.npz") as file:
        return {name: file[name] for name in file}


@cache
def here():
    """Cora's last latents, value nodes, latents of the visible tokens, and predictions, from the same weights."""
    encoder = weights.load(ORACLES / "vjepa2", 2)
    model, tree, network = encoder.model, encoder.encoder, encoder.network
    with np.load(ORACLES / "vjepa2_outputs.npz") as file:
        there = {name: file[name] for name in ("clips", "context", "target")}
    masks = Masks(jnp.asarray(there["context"], jnp.int32), jnp.asarray(there["target"], jnp.int32))
    everything = jnp.broadcast_to(jnp.arange(model.tokens), (2, model.tokens))

    def climb(z, ids):
        states = [z]
        for level in range(model.levels):
            states.append(network.encode(jax.tree.map(lambda leaf, i=level: leaf[i], tree.levels), states[-1], ids))
        return network.norm(jax.tree.map(lambda leaf: leaf[-1], tree.levels), states[-1]), jnp.stack(states)

    def all_of(clips):
        z = network.embed(tree.embed, network.patches(clips))
        last, hidden = climb(z, everything)
        pick = partial(jnp.take_along_axis, indices=masks.context[..., None], axis=1)
        ahead = jax.tree.map(lambda leaf: leaf[-1], encoder.predictors)
        return {"last": last, "hidden": hidden, "masked": climb(pick(z), masks.context)[0],
                "predicted": network.predict(ahead, pick(last), masks, 1)}

    return {name: np.asarray(value) for name, value in compiled(all_of)(there["clips"]).items()}


def gaps(there, found):
    hidden = there["hidden"]
    return {name: float(np.abs(value - (hidden if name == "hidden" else there[name])).max())
            for name, value in (found | {"hidden": found["hidden"][: len(hidden)]}).items()}


def test_encoder_every_hidden_state_masked_encoder_and_predictor_are_hugging_faces(there):
    found = gaps(there, here())
    assert max(found.values()) < TOLERANCE, found
    assert min(np.abs(there[name]).max() for name in found) > 0.5  # of numbers that are not small


def swapped(style, head_dim):
    """Positions with rows and columns exchanged."""
    run = 2 * (head_dim // 3 // 2)
    order = np.r_[:run, 2 * run : 3 * run, run : 2 * run, 3 * run : head_dim]
    return tuple(part[:, order] for part in TABLE(style, head_dim))


def unturned(style, head_dim):
    return tuple(f(part) for f, part in zip((jnp.ones_like, jnp.zeros_like), TABLE(style, head_dim), strict=True))


TABLE, BACK, ROWS = vit.rotary_table, hugging_face._turned_back, hugging_face.rows


def patch_across(row, array):
    """The patch embedding with rows and columns exchanged."""
    return BACK(row, array.transpose(0, 1, 2, 4, 3) if row.kind == "patch" else array)


def crossed(model):
    """Query and key exchanged, which transposes the scores."""
    return [row._replace(part={0: 1, 1: 0}.get(row.part, row.part)) for row in ROWS(model)]


def other_norm(model):
    """The two norms of a block exchanged."""
    other = {"norm1": "norm2", "norm2": "norm1"}
    exchanged = lambda path: ".".join(other.get(word, word) for word in path.split("."))  # noqa: E731
    return [row._replace(path=exchanged(row.path)) for row in ROWS(model)]


MUTANTS = {
    "rows and columns swapped": (vit, "rotary_table", swapped),
    "no positions": (vit, "rotary_table", unturned),
    "tanh GELU": (vit, "gelu", partial(jax.nn.gelu, approximate=True)),
    "eps 1e-5": (vit, "EPS", 1e-5),
    "query and key swapped": (hugging_face, "rows", crossed),
    "norms swapped": (hugging_face, "rows", other_norm),
    "patches across": (hugging_face, "_turned_back", patch_across),
    "turned the other way": (vit, "rotate", lambda x, cos, sin, own=vit.rotate: own(x, cos, -sin)),
}


@pytest.mark.parametrize("name", [*MUTANTS, "interleaved", "scaled"])
def test_a_mutant_is_told_from_hugging_face(there, name, monkeypatch):
    if name in MUTANTS:
        monkeypatch.setattr(*MUTANTS[name])
    encoder = weights.load(ORACLES / "vjepa2", 2)
    model = replace(encoder.model, **{"interleaved": {"rope": "interleaved"}, "scaled": {"rope_grid": 7}}.get(name, {}))
    if name in MUTANTS and MUTANTS[name][0] is hugging_face:
        found = encoder(there["clips"])  # other weights, the same program
    else:
        found = compiled(lambda clips: latents(build(model), encoder.encoder, clips))(there["clips"])
    assert np.abs(found[-1] - there["last"]).max() > 3 * TOLERANCE


def test_another_mask_token_is_told_from_hugging_faces(there):
    encoder = weights.load(ORACLES / "vjepa2", 2)
    masks = Masks(jnp.asarray(there["context"], jnp.int32), jnp.asarray(there["target"], jnp.int32))
    z, ahead = here()["last"], jax.tree.map(lambda leaf: leaf[-1], encoder.predictors)
    z = jnp.take_along_axis(jnp.asarray(z), masks.context[..., None], axis=1)
    other = compiled(lambda z: encoder.network.predict(ahead, z, masks, 0))(z)
    assert np.abs(other - there["predicted"]).max() > 10 * TOLERANCE


@pytest.mark.parametrize("levels", [1, 2])
def test_cora_load_reads_the_folder_cut_anywhere(there, levels):
    found = weights.load(ORACLES / "vjepa2", levels)(there["clips"])
    assert found.shape[0] == levels
    np.testing.assert_allclose(found[-1], there["last"], atol=TOLERANCE)


def test_imported_exported_and_the_probe_with_it_bit_for_bit(there, tmp_path):
    cli.main(["import", str(ORACLES / "vjepa2"), str(tmp_path / "native")])
    cli.main(["export", str(tmp_path / "native"), str(tmp_path / "hf"), "--format", "hf", "--probe"])
    before, after = (weights.read_folder(folder) for folder in (ORACLES / "vjepa2", tmp_path / "hf"))
    assert set(before) == set(after)
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes() and array.shape == after[name].shape, name
    given, made = (json.loads((folder / "config.json").read_text()) for folder in (ORACLES / "vjepa2", tmp_path / "hf"))
    assert {key: made[key] for key in (*hugging_face.DEFAULTS, "id2label", "label2id", "architectures")} == {
        key: given[key] for key in (*hugging_face.DEFAULTS, "id2label", "label2id", "architectures")}
    probe = load_probe(tmp_path / "native")
    scores = compiled(lambda z: vit.apply(pooler.Classifier(probe.heads, probe.depth, 5), probe.weights, z))
    np.testing.assert_allclose(scores(weights.load(tmp_path / "native")(there["clips"])[-1]), there["scores"],
                               atol=TOLERANCE)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "VJEPA2ForVideoClassification" in card and "lower levels' norms" in card and str(tmp_path) not in card


@pytest.mark.parametrize("name", ["hub", "training"])
def test_metas_files_are_read_without_torch(name, tmp_path):
    with np.load(ORACLES / "vjepa2_meta.npz") as file:
        clips, last = file["clips"], file["last"]
    file = ORACLES / f"vjepa2_{name}.pt"
    made, compared = exchange.bring(file, tmp_path / "out", levels=1, heads=2, predictor_heads=2, size=8, frames=4)
    assert compared.weights == 0 and compared.latents == 0
    np.testing.assert_allclose(made(clips)[-1], last, atol=TOLERANCE)
    with pytest.raises(config.ConfigError, match="give --heads"):
        exchange.bring(file, tmp_path / "out")


def test_a_file_of_16_bits_and_what_training_leaves_behind():
    found = torch_file.read(ORACLES / "vjepa2_training.pt")
    moments = found["opt"]["state"][0]["exp_avg"]
    assert moments.dtype == jnp.bfloat16 and np.array_equal(moments.astype(np.float32), [1, 1])
    assert found["epoch"] == 2 and found["scaler"] is None and found["opt"]["param_groups"][0]["betas"] == (0.9, 0.999)
    with pytest.raises(ValueError, match="read-only"):
        found["target_encoder"]["module.backbone.norm.weight"][0] = 0


class Evil:
    def __reduce__(self):
        return os.system, ("touch {}",)


class Named:
    """Pickles as a call of a name that the reader knows, with arguments it should not take."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def archived(path, content, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, value in members.items():
            archive.writestr(f"archive/data/{name[1:]}", value)
    return path


def test_a_malicious_pickle_is_refused_by_name_and_not_run(tmp_path):
    evil = Evil()
    path = archived(tmp_path / "evil.pt", pickle.dumps({"encoder": evil}).replace(
        b"touch {}", b"touch " + b"x" * 2))
    (tmp_path / "cwd").mkdir()
    before = os.getcwd()
    os.chdir(tmp_path / "cwd")
    try:
        with pytest.raises(torch_file.TorchFileError, match=r"names (posix|nt|os)\.system"):
            torch_file.read(path)
    finally:
        os.chdir(before)
    assert not list((tmp_path / "cwd").iterdir())


def tensor(count, size, stride, offset=0, key="0"):
    """The pickle of one tensor over storage `key`, spelled by hand: protocol 2, as torch.save writes it."""
    import sys
    import types

    mark = type("FloatStorage", (), {"__module__": "torch"})

    class Pickler(pickle.Pickler):
        def persistent_id(self, it):
            return ("storage", mark, key, "cpu", count) if it == "here" else None

    rebuild = types.FunctionType((lambda *_: None).__code__, {}, "_rebuild_tensor_v2")
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    names = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    names["torch"].FloatStorage, names["torch._utils"]._rebuild_tensor_v2 = mark, rebuild
    import io

    out = io.BytesIO()
    sys.modules |= names
    try:
        Pickler(out, 2).dump(Named(rebuild, ("here", offset, size, stride, False, {})))
    finally:
        for name in names:
            del sys.modules[name]
    return out.getvalue()


@pytest.mark.parametrize(("size", "stride", "offset"), [((2, 3), (3, 1), 0), ((3, 2), (1, 3), 0), ((2,), (2,), 1),
                                                       ((2, 2), (0, 1), 4), ((), (), 5), ((0, 3), (3, 1), 0)])
def test_a_tensor_is_its_storage_strided(size, stride, offset, tmp_path):
    numbers = np.arange(6, dtype=np.float32) - 2
    path = archived(tmp_path / "t.pt", tensor(6, size, stride, offset), _0=numbers.tobytes())
    wanted = np.array([numbers[offset + sum(i * s for i, s in zip(place, stride, strict=True))]
                       for place in np.ndindex(*size)], np.float32).reshape(size)
    np.testing.assert_array_equal(torch_file.read(path), wanted)


@pytest.mark.parametrize(("count", "size", "stride", "offset", "key", "said"), [
    (6, (2, 3), (4, 1), 0, "0", "beyond its storage"), (6, (2,), (1,), 5, "0", "beyond its storage"),
    (6, (2,), (-1,), 3, "0", "stride"), (7, (1,), (1,), 0, "0", "too few"), (6, (1,), (1,), 0, "9", "lacks"),
    (6, (1,), (1,), 0, "../../x", "lacks"),
])
def test_a_tensor_that_reaches_outside_is_refused(count, size, stride, offset, key, said, tmp_path):
    path = archived(tmp_path / "t.pt", tensor(count, size, stride, offset, key), _0=bytes(24))
    with pytest.raises(torch_file.TorchFileError, match=said):
        torch_file.read(path)


def test_other_files_are_refused_with_advice(tmp_path):
    (tmp_path / "old.pth").write_bytes(pickle.dumps(119547037146038801333356, 2))
    with pytest.raises(torch_file.TorchFileError, match=r"torch\.save\(torch\.load"):
        torch_file.read(tmp_path / "old.pth")
    with pytest.raises(torch_file.TorchFileError, match="damaged"):
        torch_file.read(archived(tmp_path / "cut.pt", pickle.dumps({"a": 1})[:-2]))
    with pytest.raises(meta.MetaError, match=r"holds \['model'\]"):
        meta.tensors({"model": {}})
    with pytest.raises(meta.MetaError, match=r"V-JEPA 2\.1"):
        meta.tensors({"encoder": {"module.backbone.norms_block.0.weight": np.zeros(1)}, "predictor": {}})
    with pytest.raises(meta.MetaError, match=r"unknown in encoder or predictor: head\.weight"):
        meta.tensors({"encoder": {"head.weight": np.zeros(1)}, "predictor": {}})


# ---------------------------------------------------------------------------------------------- Cora's own, out and in


@cache
def trained(learn=config.Learn(), model=SMALL):  # noqa: B008
    """An encoder whose every number is its own."""
    chance = np.random.default_rng(0)
    shapes = weights.template(model, learn)
    arrays = {path: chance.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return weights.Pretrained(model, *weights.unnamed(model, learn, arrays), learn)


@pytest.mark.parametrize("form", ["native", "hf", "stablehlo"])
def test_every_export_reads_back_what_it_wrote(form, tmp_path):
    encoder = trained(config.Learn(seen=1.0))  # with parts that Hugging Face has no place for
    compared = exchange.write(tmp_path, tmp_path / "out", encoder, form)
    assert compared.weights in (0, None) and compared.latents < 1e-5
    if form == "stablehlo":
        clips = np.random.default_rng(1).integers(0, 256, (3, 4, 16, 16, 3), np.uint8)
        again = jax.export.deserialize(bytearray((tmp_path / "out" / "encoder.stablehlo").read_bytes()))
        last, levels = again.call(clips)  # another batch than any before
        np.testing.assert_allclose(levels, encoder(clips), atol=1e-5)
        np.testing.assert_array_equal(last, levels[-1])
        return
    again = cora.load(tmp_path / "out")
    whole = hugging_face.tensors(SMALL, weights.named(encoder.encoder, encoder.predictors))
    back = hugging_face.tensors(again.model, weights.named(again.encoder, again.predictors))
    assert all(whole[name].tobytes() == back[name].tobytes() for name in whole) and set(whole) == set(back)
    settings, same = features.trained(tmp_path / "out")
    assert settings.model == same.model == again.model


def test_an_onnx_graph_of_a_bfloat16_encoder_is_one_that_onnxruntime_computes(tmp_path):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    encoder = trained()
    half = weights.Pretrained(replace(encoder.model, dtype="bfloat16"), encoder.encoder)
    assert exchange.write(tmp_path, tmp_path / "out", half, "onnx").latents < 1e-4


@pytest.mark.parametrize("form", ["native", "hf", "stablehlo", "onnx"])
@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors"])
def test_an_export_writes_over_nothing_but_its_own_kind(form, name, tmp_path):
    (tmp_path / name).write_text(config.to_json(config.Pretrain()))
    with pytest.raises(config.ConfigError, match=rf"out = .* holds {name} and is no earlier {form} export"):
        exchange.write(tmp_path, tmp_path, trained(), form)
    with pytest.raises(config.ConfigError, match=rf"{name}': holds"):
        exchange.write(tmp_path, tmp_path / name, trained(), form)
    with pytest.raises(config.ConfigError, match="no earlier native export"):
        exchange.bring(ORACLES / "vjepa2", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == config.to_json(config.Pretrain())


def test_an_export_writes_over_its_own_kind_whole_or_cut_short(tmp_path, monkeypatch):
    def full(path, *_):
        path.touch()
        raise OSError("no room")

    for form in ("native", "hf"):
        (tmp_path / form).mkdir()
        (tmp_path / form / ".gitattributes").touch()
        with monkeypatch.context() as disk:
            disk.setattr(weights, "write_arrays", full)
            with pytest.raises(OSError, match="no room"):
                exchange.write(tmp_path, tmp_path / form, trained(), form)
        for _ in range(2):
            exchange.write(tmp_path, tmp_path / form, trained(), form)
    for form, other in (("native", "hf"), ("hf", "native"), ("native", "stablehlo")):
        with pytest.raises(config.ConfigError, match=f"no earlier {other} export"):
            exchange.write(tmp_path, tmp_path / form, trained(), other)


def test_what_a_level_hears_from_above_is_in_its_mask_tokens(tmp_path):
    encoder = trained(config.Learn(top_down=True))
    exchange.write(tmp_path, tmp_path / "hf", encoder, "hf")
    again = cora.load(tmp_path / "hf")
    masks = Masks(jnp.array([[0, 3, 5]]), jnp.array([[1, 2]]))
    z = jax.random.normal(jax.random.key(1), (1, 3, 24))
    last = lambda it: jax.tree.map(lambda leaf: leaf[-1], it.predictors)  # noqa: E731
    heard = compiled(lambda z: encoder.network.predict(last(encoder), z, masks, 2, jnp.zeros((1, 2, 24))))(z)
    told = compiled(lambda z: again.network.predict(last(again), z, masks, 2))(z)
    np.testing.assert_allclose(told, heard, rtol=1e-5, atol=1e-4)


def test_a_predictor_of_all_levels_leaves_zeros_in_its_stead(tmp_path):
    exchange.write(tmp_path, tmp_path / "hf", trained(config.Learn(rule="dense")), "hf")
    found = weights.read_folder(tmp_path / "hf")
    assert not any(array.any() for name, array in found.items() if name.startswith("predictor."))
    assert "skip_predictor=True" in (tmp_path / "hf" / "README.md").read_text()


@pytest.mark.parametrize(("change", "said"), [
    ({"rope": "interleaved"}, "model.rope = 'interleaved'"), ({"rope_grid": 4}, "model.rope_grid = 4"),
    ({"size": (16, 24)}, r"model.size = \(16, 24\)"),
])
def test_what_hugging_face_cannot_hold_is_refused(change, said, tmp_path):
    with pytest.raises(config.ConfigError, match=said):
        exchange.write(tmp_path, tmp_path / "hf", trained(model=replace(SMALL, **change)), "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(("change", "said"), [
    ({"heads": 4}, "--heads 2"), ({"of": "change"}, "--tokens whole"), ({"level": 0}, "--level 1"),
    ({"step": 200}, r"probe\.step = 200: .* of step None.* export RUN/checkpoints/200"),
])
def test_a_probe_that_does_not_fit_says_how_to_train_one(change, said, tmp_path):
    encoder = trained()
    head = {"classifier": {"linear": {"kernel": np.zeros((24, 2))}}}
    probe = exchange.Probe(head, 2, 1, 1, "whole", ("a", "b"), None)
    save_probe(tmp_path, probe._replace(**change))
    with pytest.raises(config.ConfigError, match=said):
        exchange.write(tmp_path, tmp_path / "hf", encoder, "hf", probe=True)
    with pytest.raises(config.ConfigError, match="nearest: --format hf"):
        exchange.write(tmp_path, tmp_path / "native", encoder, "native", probe=True)


@pytest.mark.parametrize(("change", "said"), [
    ({"model_type": "vit"}, "model_type"), ({"hidden_act": "silu"}, "hidden_act"), ({"layer_norm_eps": 1e-5}, "eps"),
    ({"qkv_bias": False}, "qkv_bias"), ({"use_SiLU": True}, "use_SiLU"), ({"num_hidden_layers": 3}, "encoder.layer.2"),
    ({"pred_num_mask_tokens": 4}, "mask_tokens"),
])
def test_another_architecture_is_refused_by_name(change, said, tmp_path):
    given = json.loads((ORACLES / "vjepa2" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(given | change))
    (tmp_path / "model.safetensors").write_bytes((ORACLES / "vjepa2" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=said):
        cora.load(tmp_path)


def test_weights_in_shards_are_read_through_their_index(tmp_path):
    whole = weights.read_folder(ORACLES / "vjepa2")
    names = sorted(whole)
    index = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(index.values()):
        weights.write_arrays(tmp_path / part, {n: whole[n] for n in names if index[n] == part}, {"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = weights.read_folder(tmp_path)
    assert all(np.array_equal(found[name], whole[name]) for name in names)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index | {"odd": index[names[0]]}}))
    with pytest.raises(weights.WeightsError, match="odd"):
        weights.read_folder(tmp_path)


# ----------------------------------------------------------------------------------------- other sizes, and training on


def test_an_encoder_reads_other_lengths_sizes_and_pictures():
    encoder = trained()
    chance = np.random.default_rng(0)
    frames, wide = (chance.integers(0, 256, shape, np.uint8) for shape in ((1, 6, 16, 16, 3), (2, 2, 16, 32, 3)))
    for clips in (frames, wide):
        model = replace(SMALL, frames=clips.shape[1], size=clips.shape[2:4])
        alone = compiled(lambda c, m=model: latents(build(m), encoder.encoder, c))(clips)
        np.testing.assert_allclose(encoder(clips), alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(encoder(frames[:, :1]), encoder(np.repeat(frames[:, :1], 2, axis=1)))
    compiled_before = weights._latents._cache_size()
    encoder(frames[::-1])
    assert weights._latents._cache_size() == compiled_before
    with pytest.raises(ValueError, match="this encoder reads"):
        encoder(frames[:, :3])


@pytest.mark.parametrize(("rule", "count"), [("local", 2), ("backprop_last", 1)])
def test_training_begins_where_a_folder_ends(rule, count, tmp_path):
    exchange.write(tmp_path, tmp_path / "hf", trained(), "hf")
    exchange.write(tmp_path, tmp_path / "native", trained(), "native")
    wanted = config.Pretrain(model=replace(SMALL, frames=8, size=(24, 16)), learn=config.Learn(rule=rule))
    for folder in ("hf", "native"):
        model, params, teacher = weights.start(tmp_path / folder, wanted)
        tokens = params.predictors["mask_tokens"]
        assert model.width == 24 and tokens.shape[0] == count
        np.testing.assert_array_equal(tokens[-1], trained().predictors["mask_tokens"][-1])
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(teacher), jax.tree.leaves(params.encoder),
                                                        strict=True))


@pytest.mark.parametrize(("model", "learn", "said"), [
    ({"heads": 4}, {}, "model.heads: 2 there, 4 wanted"), ({"width": 48}, {}, "model.width: 24 there"),
    ({"mask_tokens": 1}, {}, "model.mask_tokens"), ({}, {"top_down": True}, "predictors.above"),
    ({}, {"rule": "dense"}, "predictors.fuse"),
])
def test_another_model_than_the_one_to_be_trained_is_named(model, learn, said, tmp_path):
    exchange.write(tmp_path, tmp_path / "native", trained(), "native")
    wanted = config.Pretrain(model=replace(SMALL, **model), learn=config.Learn(**learn))
    with pytest.raises(weights.WeightsError, match=said):
        weights.start(tmp_path / "native", wanted)


def test_an_encoder_of_the_former_format_is_still_read(tmp_path):
    encoder = trained()
    weights.save(tmp_path, SMALL, encoder.encoder)
    meta = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"format": weights.BEFORE, "model": meta["model"]}))
    again = cora.load(tmp_path)
    assert again.predictors is None
    np.testing.assert_array_equal(again.encoder.embed["proj"]["linear"]["kernel"],
                                  encoder.encoder.embed["proj"]["linear"]["kernel"])
    with pytest.raises(weights.WeightsError, match="no predictors"):
        weights.start(tmp_path)
