"""What README shows in Python runs as it stands and does what a reader expects of it; the names of the package."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import drawn

import cora
from cora import config
from cora.nets.hierarchy import build
from cora.store import exchange, weights
from cora.video import codec

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)
README, EVAL = (FENCE.findall((ROOT / name).read_text()) for name in ("README.md", "eval/README.md"))
MODEL = config.Model(frames=4, size=16, patch=8, width=12, heads=2, levels=2, blocks=1, predictor_width=8,
                     predictor_heads=1)
pytestmark = pytest.mark.usefixtures("as_users_have_it")


def snippet(word):
    """The one snippet of README that holds this word."""
    found = [code for code in README if word in code]
    assert len(found) == 1, word
    return found[0]


KNOWN = ("cora.views(", "jax.export.deserialize", "chain.mlp((784, 300", "cora.predict(", "cora.pcx.encoder")


def test_every_snippet_is_run_here():
    assert [[word in code for word in KNOWN].count(True) for code in README] == [1] * len(KNOWN)
    assert len(EVAL) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as README has it: an encoder, a program and a film."""
    out = tmp_path_factory.mktemp("readme")
    weights.save(out / "demo/encoder", MODEL, drawn(build(MODEL)).encoder, None, config.Learn())
    (out / "program").mkdir()
    exchange.write(out, out / "program", cora.load(out / "demo/encoder"), "stablehlo")
    codec.write(out / "video.mp4", np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8), 8.0)
    return out


def run(code, folder, monkeypatch, **given):
    if folder is not None:
        monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), given)
    return given


def test_an_exported_encoder_in_six_lines(folder, monkeypatch):
    found = run(snippet("cora.views("), folder, monkeypatch)
    assert found["clips"].shape == (1, 4, 16, 16, 3) and found["clips"].dtype == np.uint8
    assert found["latents"].shape == (2, 1, 8, 12)  # two levels; 2 time steps of 2 x 2 patches
    np.testing.assert_allclose(np.mean(found["latents"], axis=-1), 0, atol=0.5)


@pytest.mark.parametrize("count", [1, 3])
def test_a_program_needs_no_cora(folder, monkeypatch, count):
    clips = np.random.default_rng(1).integers(0, 256, (count, 4, 16, 16, 3), np.uint8)
    found = run(snippet("jax.export.deserialize"), folder, monkeypatch, clips=clips)
    wanted = cora.load(folder / "demo/encoder")(clips)
    np.testing.assert_allclose(found["levels"], wanted, atol=1e-5)
    np.testing.assert_array_equal(found["last"], found["levels"][-1])


def test_a_pretrained_encoder_goes_into_a_ruleset(folder, monkeypatch):
    clips = np.random.default_rng(1).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    found = run(snippet("cora.pcx.encoder"), folder, monkeypatch, clips=clips)
    np.testing.assert_allclose(found["latents"], cora.load(folder / "demo/encoder")(clips), atol=1e-5)
    assert float(found["energy"]) == 0.0


def pictures(count, seed):
    """Pictures of ten kinds, each kind one pattern with some noise, and their kinds."""
    patterns = np.random.default_rng(0).choice([-1.0, 1.0], (10, 784))
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 10, count)
    images = patterns[kinds] + 0.5 * rng.normal(size=(count, 784))
    return jnp.asarray(images, jnp.float32), kinds


def test_a_classifier_learns_and_a_memory_fills_in(monkeypatch):
    """After forty batches the net tells kinds of new pictures; a memory that saw pictures restores a hidden half."""
    images, kinds = pictures(64, 1)
    found = run(snippet("chain.mlp((784, 300"), None, monkeypatch, images=images,
                one_hot=jax.nn.one_hot(jnp.asarray(kinds), 10))
    assert found["trace"].energy.shape == (8 + 1, 3)
    learner = found["learner"]
    for seed in range(2, 42):
        images, kinds = pictures(64, seed)
        learner, trace = found["step"](learner, images, jax.nn.one_hot(jnp.asarray(kinds), 10))
    assert float(jnp.sum(trace.energy[0])) < 0.1 * float(jnp.sum(found["trace"].energy[0]))
    images, kinds = pictures(200, 99)
    guess = cora.predict(found["energy"], learner.params, cora.Evidence(images))
    assert np.mean(np.argmax(guess, axis=1) == kinds) > 0.95

    seen = jnp.broadcast_to(jnp.arange(784) < 392, images.shape)
    memory = found["chain"].mlp((64, 784), jax.nn.tanh, prior="zero", clamped=True)
    start, tx = memory.init(jax.random.key(1)), optax.adam(1e-2)
    rule, energy = cora.preset("pc", memory.hierarchy, steps=20, rate=0.02), cora.Energy(memory.hierarchy)
    learn = jax.jit(lambda learner, x: cora.step(energy, learner, cora.Evidence(x[:, :1], top=x), rule, tx)[0])
    keeper = cora.Learner(start, tx.init(start))
    for seed in range(60):
        keeper = learn(keeper, pictures(64, seed)[0])
    given = {"images": images, "seen": seen, "weights": keeper.params}
    filled = run(snippet("cora.predict("), None, monkeypatch, **found | given)
    np.testing.assert_array_equal(np.asarray(filled["whole"])[:, :392], np.asarray(images)[:, :392])
    hidden = np.asarray(filled["whole"] - images)[:, 392:]
    assert np.mean(hidden**2) < 0.5 * np.mean(np.asarray(images)[:, 392:] ** 2)


def test_the_tasks_in_short(monkeypatch):
    images, kinds = pictures(16, 0)
    found = run(EVAL[0], None, monkeypatch, jax=jax, pictures=images, one_hot=jax.nn.one_hot(jnp.asarray(kinds), 10))
    assert jax.tree.structure(found["gradient"].params) == jax.tree.structure(found["params"])
    assert float(jnp.sum(found["trace"].energy[-1])) < float(jnp.sum(found["trace"].energy[0]))


# ------------------------------------------------------------------------------------------------------------- names

NAMES = {
    "ConfigError", "Pretrain", "Encoder", "Evidence", "Hierarchy", "Hold", "Level", "Masks", "Network", "Params",
    "Energy", "stack", "unstack", "Inference", "Start", "predict", "settle", "Learner", "Learning", "learn", "step",
    "preset", "restore", "save", "load", "fit", "views", "__version__",
}


def test_a_reader_finds_the_public_names_and_no_others():
    code = "import sys, cora; print(*dir(cora)); print('diffrax' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    names, heavy = said.splitlines()
    assert set(names.split()) == NAMES and names.split() == sorted(names.split()) and heavy == "False"
    assert set(dir(cora)) == NAMES and all(getattr(cora, name) is not None for name in NAMES)


def test_the_names_are_those_that_the_package_imports_for_type_checkers():
    tree = ast.parse((ROOT / "cora/__init__.py").read_text())
    imported = {alias.asname: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                for alias in node.names if alias.asname}
    assert set(imported) | {"__version__"} == NAMES
    for name, module in imported.items():
        assert getattr(importlib.import_module(module), name) is getattr(cora, name)
