"""The wheel holds `cora/` and nothing else, and works from another folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=ROOT, check=True,
                   capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_only_cora(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"cora", "cora-0.1.0.dist-info"}
    assert {f"cora/{p.relative_to(ROOT / 'cora')}" for p in (ROOT / "cora").rglob("*.py")} <= set(names)


def test_the_wheel_works_alone(wheel, tmp_path):
    code = f"import cora.cli, cora.demo; assert cora.__file__.startswith({str(tmp_path)!r}); cora.cli.main(['--help'])"
    zipfile.ZipFile(wheel).extractall(tmp_path)
    run = subprocess.run([sys.executable, "-c", code], cwd="/", env=os.environ | {"PYTHONPATH": str(tmp_path)},
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    code = "import cora.cli; cora.cli.main(['pretrain', 'small', '--help'])"
    found = subprocess.run([sys.executable, "-c", code], cwd="/", env=os.environ | {"PYTHONPATH": str(tmp_path)},
                           capture_output=True, text=True)
    assert found.returncode == 0 and "--optim.lr" in found.stdout, found.stderr
    own = {path.name for path in (ROOT / "pretrain").glob("*.py")}
    assert {path.name for path in (tmp_path / "cora" / "recipes").iterdir()} == own
    assert all(verb in run.stdout for verb in ("demo", "pretrain", "features", "probe", "export", "report"))
