"""The shape of the house: imports go one way, each outside library stands in one place, `import cora` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "cora").rglob("*.py"))
LAYERS = [
    {"cora.meaning", "cora.schema", "cora.options", "cora.files"},
    {"cora.types", "cora.config"},
    {"cora.pc"},
    {"cora.nets"},
    {"cora.pcx"},
    {"cora.video", "cora.store"},
    {"cora.train"},
    {"cora.measure"},
    {"cora.report"},
    {"cora.bench"},
    {"cora.demo"},
    {"cora.cli"},
]
PLACES = {
    "flax": {"cora/nets/vit.py", "cora/nets/pooler.py"},
    "grain": {"cora/video/clips.py", "cora/store/checkpoint.py", "cora/train.py"},
    "decord": {"cora/video/codec.py"},
    "av": {"cora/video/codec.py", "cora/video/packets.py"},
    "orbax": {"cora/store/checkpoint.py"},
    "safetensors": {"cora/store/weights.py"},
    "jax2onnx": {"cora/store/onnx_file.py"},
    "onnxruntime": {"cora/store/onnx_file.py"},
    "sklearn": {"cora/measure/probe.py", "cora/measure/guesses.py"},
    "matplotlib": {"cora/report/figures.py"},
    "tensorboardX": {"cora/store/record.py"},
    "tyro": {"cora/cli.py"},
    "diffrax": {"cora/pc/flow.py"},
    "pcx": {"cora/pcx.py", "cora/bench/with_pcx.py"},
    "fabricpc": {"cora/bench/with_fabricpc.py"},
}


def imports(path):
    """Every module that a file imports, under its full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module):
    return next((i for i, names in enumerate(LAYERS) if any(module == n or module.startswith(n + ".") for n in names)),
                None)


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    own = layer(name_of(path))
    if own is None:
        assert name_of(path) == "cora"
        return
    for module in imports(path):
        below = layer(module)
        assert below is None or below <= own, f"{path}: imports {module}, which lies above it"


@pytest.mark.parametrize("library", PLACES)
def test_one_library_one_place(library):
    users = {str(p.relative_to(ROOT)) for p in FILES if any(m.split(".")[0] == library for m in imports(p))}
    assert users == PLACES[library]


def test_mathematics_does_no_io():
    for path in FILES:
        if layer(name_of(path)) == 2:
            roots = {m.split(".")[0] for m in imports(path)}
            assert not roots & {"os", "pathlib", "time", "random", "json", "sys", "rich"}, path


def test_import_cora_is_light():
    code = ("import sys, cora; heavy = {'decord', 'av', 'sklearn', 'orbax', 'matplotlib', 'tyro', 'pcx', 'grain'};"
            "print(sorted(heavy & set(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout.strip() == "[]"


def test_no_function_has_outgrown_its_reader():
    """Budgets guide review; this bound is where a function certainly hides something."""
    for path in FILES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 70, f"{path}: {node.name}"
