"""The benchmark: every program computes the same step, and what is asked for is what is reported."""

import json

import numpy as np
import pytest

from cora import cli
from cora.bench import race
from cora.bench.problem import Contender, Problem, material

TINY = Problem((6, 5, 5, 5, 3), "tanh", 2, batch=4)


@pytest.fixture
def tiny(monkeypatch):
    """Nothing is compiled: every program takes two seconds, and peers three."""
    monkeypatch.setitem(race.NAMES, "pc", (TINY,))
    monkeypatch.setattr(race, "clock", lambda contender, seconds: contender.step())
    monkeypatch.setattr(race, "programs", lambda peer: (
        lambda problem, start: Contender(lambda: 2.0 if peer == "cora" else 3.0, lambda: [np.ones((2, 3))]),))


@pytest.fixture(scope="module")
def ours():
    return first(race.programs("cora")[0])


def first(build):
    """Returns the gradient of a program's first step."""
    contender = build(TINY, material(TINY))
    contender.step()
    return np.concatenate([g.ravel() for g in contender.gradient()])


@pytest.mark.parametrize("peer", race.PEERS)
def test_every_program_computes_the_same_gradient(peer, ours):
    if not race.present(peer):
        pytest.skip(f"{peer} is not installed")
    assert np.linalg.norm(ours) > 0.1
    for build in race.programs(peer):
        np.testing.assert_allclose(first(build), ours, rtol=0, atol=1e-7)


def test_the_json_has_what_was_promised(tiny, tmp_path, capsys):
    cli.main(["bench", "pc", "--peers", "loop", "--json", str(tmp_path / "bench.json")])
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["ratios"] == {"loop": 1.5} and found["spread"] == {"loop": [1.5, 1.5]} and found["absent"] == []
    row = found["cases"][0]["programs"]["loop"]
    assert row["seconds"] == 3.0 and row["difference"] == 0.0
    assert "loop" in capsys.readouterr().out


def test_a_peer_that_is_not_installed_is_absent_and_status_one_if_it_was_named(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(race, "present", lambda peer: False)
    cli.main(["bench", "--json", str(tmp_path / "all.json")])
    assert json.loads((tmp_path / "all.json").read_text())["absent"] == list(race.PEERS)
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "pc", "--peers", "pcx,fabricpc", "--json", str(tmp_path / "named.json")])
    assert end.value.code == 1 and "pcx, fabricpc" in capsys.readouterr().err
    assert json.loads((tmp_path / "named.json").read_text())["ratios"] == {}


def test_a_program_that_computes_something_else_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(race, "programs", lambda peer: (
        lambda problem, start: Contender(lambda: None, lambda: [np.full((2, 3), 1.0 + 0.01 * (peer == "loop"))]),))
    with pytest.raises(ValueError, match="loop's gradient"):
        race.bench("pc", ["loop"])


@pytest.mark.parametrize(("words", "nearest"), [
    (["bench", "pcc"], "'pc'"), (["bench", "--peers", "fabric"], "'fabricpc'"),
])
def test_an_unknown_name_is_answered_with_the_nearest(words, nearest, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    error = capsys.readouterr().err
    assert end.value.code == 1 and f"nearest: {nearest}" in error and "Traceback" not in error
