"""Configs: what cannot be meant is refused by name, and JSON gives back what it was given."""

import json
import re
import runpy
import typing
from pathlib import Path

import pytest

from cora import config as c
from cora.pc.presets import PRESETS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("make", "words"), [
    (lambda: c.Model(size=70), ["model.size", "70", "64"]),
    (lambda: c.Model(frames=15), ["model.frames", "15", "16"]),
    (lambda: c.Model(width=30, heads=4), ["model.width", "30", "32"]),
    (lambda: c.Model(width=16, heads=4), ["model.heads", "4", "2"]),
    (lambda: c.Mask(long=(0.4, 0.7)), ["mask.long", "0.6"]),
    (lambda: c.Mask(kinds=()), ["mask.kinds", "short"]),
    (lambda: c.Optim(weight_decay_end=-1.0), ["optim.weight_decay_end", "0.0"]),
    (lambda: c.Optim(stretch=0.5), ["optim.stretch", "1.0"]),
    (lambda: c.Mask(short_scale=0.0), ["mask.short_scale", "0.0"]),
    (lambda: c.Corpus(crop_scale=(0.9, 0.3)), ["corpus.crop_scale", "0.9"]),
    (lambda: c.Corpus(longest=-1.0), ["corpus.longest", "-1.0", "nearest: 0.0"]),
    (lambda: c.Optim(lr=-1.0), ["optim.lr", "-1.0"]),
    (lambda: c.Run(batch=0), ["run.batch", "0"]),
    (lambda: c.Learn(reach=0), ["learn.reach", "0"]),
    (lambda: c.Learn(reach=2, rule="pc"), ["learn.reach", "'pc'", "nearest: 1"]),
    (lambda: c.Learn(reach=2, top_down=True), ["learn.reach", "top_down"]),
    (lambda: c.Pretrain(learn=c.Learn(reach=5)), ["learn.reach", "5", "nearest: 4"]),
    (lambda: c.from_json(c.Pretrain, '{"optim": {"rate": 1}}'), ["optim.rate", "optim."]),
])
def test_an_impossible_value_is_refused_by_name(make, words):
    with pytest.raises(c.ConfigError) as error:
        make()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_json_round_trip():
    settings = c.Pretrain(model=c.Model(levels=3), corpus=c.Corpus(sampling="span", span=(0.2, 0.4)), run=c.Run(seed=7))
    assert c.from_json(c.Pretrain, c.to_json(settings)) == settings
    assert json.loads(c.to_json(settings))["model"]["levels"] == 3


def test_difference_names_exactly_what_differs():
    a, b = c.Pretrain(), c.Pretrain(run=c.Run(seed=3))
    assert c.difference(a, b) == {"run.seed": (0, 3)}
    assert c.difference(a, a) == {}


@pytest.mark.parametrize("path", sorted((ROOT / "pretrain").glob("*.py")), ids=lambda p: p.name)
def test_every_recipe_binds_a_config_and_is_in_the_table(path):
    assert isinstance(runpy.run_path(str(path))["recipe"], c.Pretrain)
    assert path.name in (ROOT / "pretrain" / "README.md").read_text()


def test_readme_names_the_rules_that_a_run_takes_and_those_that_it_does_not():
    """Against the annotation itself, and the presets that it lacks: four in a table, two lists below it."""
    text = (ROOT / "README.md").read_text()
    taken = set(typing.get_args(typing.get_type_hints(c.Learn)["rule"]))
    table = text[text.index("| `--learn.rule` | gradient |") :]
    four = re.findall(r"^\| `(\w+)`", table[: table.index("\n\n")], re.MULTILINE)
    lists = re.search(r"pretraining run takes(.*)besides the\s+four above;(.*), below, are for nets of your own", text,
                      re.DOTALL)
    runs, own = (re.findall(r"`(\w+)`", part) for part in lists.groups())
    assert len(four) == 4 and sorted([*four, *runs]) == sorted(taken)
    assert sorted(own) == sorted(set(PRESETS) - taken - {"bp"})  # which is `exact`
