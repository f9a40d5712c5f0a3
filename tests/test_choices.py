"""Every field of every dataclass and every argument of every builder refuses, by name, what its annotation does not
allow, and what the other choices leave unread."""

import collections.abc
import dataclasses
import importlib.util
import inspect
import json
import math
import types
import typing
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cora
from cora import config as c
from cora import meaning
from cora.demo import RECIPE
from cora.measure import attentive
from cora.nets import chain
from cora.options import SETTLING, STEPPED
from cora.pc import presets, schedules, theory
from cora.pc.energy import Energy
from cora.pc.infer import Inference
from cora.pc.learn import Learning
from cora.train import optimiser

pytestmark = pytest.mark.usefixtures("as_users_have_it")
ROOT = Path(__file__).parent.parent
DATA = {"Manifest", *(kind.__name__ for kind in (meaning.Range, meaning.Not, meaning.Entries, meaning.Rising,
                                                 meaning.Only))}
"""Dataclasses that nobody chooses by: what was read from a list, and the marks of annotations themselves."""
NET = chain.mlp((4, 8, 8, 2))
GIVEN = {"Energy": {"hierarchy": NET.hierarchy}, "Settings": {"out": Path("x")}}
"""What has no default."""


def dataclasses_of_the_house():
    for path in sorted([*(ROOT / "cora").rglob("*.py"), *(ROOT / "eval").glob("*.py"), *(ROOT / "data").glob("*.py")]):
        if "\n@dataclass(" not in path.read_text():
            continue
        if path.is_relative_to(ROOT / "cora"):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        else:
            spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        for kind in vars(module).values():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__:
                yield kind


KINDS = {f"{kind.__module__}.{kind.__name__}": kind for kind in dataclasses_of_the_house()
         if kind.__name__ not in DATA}


def test_all_dataclasses_are_found():
    sources = [*(ROOT / "cora").rglob("*.py"), *(ROOT / "eval").glob("*.py"), *(ROOT / "data").glob("*.py")]
    found = sum(path.read_text().count("\n@dataclass(") for path in sources)
    assert found == len(KINDS) + 1 and len(KINDS) >= 15  # and the manifest; the marks are written dataclasses.dataclass


def wrong(kind):
    """Values that this kind does not allow, written down here from the annotation alone."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        found = wrong(inner[0])
        for mark in inner[1:]:
            if isinstance(mark, meaning.Range):
                found += [x for x in (mark.low - 1, mark.high + 1) if math.isfinite(x)]
                found += [mark.low] * mark.above + [mark.high] * mark.below
            elif isinstance(mark, meaning.Entries):
                found += [()]
            elif isinstance(mark, meaning.Rising):
                found += [(0.9, 0.2)]
            elif isinstance(mark, meaning.Not):
                found += [mark.value]
            else:
                assert isinstance(mark, meaning.Only), f"{mark}: tell this test what it refuses"
        return found
    if origin is Literal:
        return ["zzz", None, True, *[word.upper() for word in inner if isinstance(word, str)]]
    if origin in (typing.Union, types.UnionType):
        return [object()]
    if origin is tuple:
        entries = inner[0] if len(inner) == 2 and inner[1] is ... else None
        some = [7, "zz"] if entries is None else [7]
        some += [(bad,) if entries is not None else (bad, *[1.0] * (len(inner) - 1)) for bad in wrong(inner[0])]
        return some + ([] if entries is not None else [(0.5,) * (len(inner) - 1), (0.5,) * (len(inner) + 1)])
    if origin is collections.abc.Callable:
        return ["relu", 3]
    by_kind = {int: [2.5, True, math.nan, math.inf, "x", None, (1,)], float: [math.nan, math.inf, -math.inf, True, "x",
               None, (1.0,)], bool: [1, 0, "yes", None], str: [3, None, True], Path: [3, None]}
    if kind in by_kind:
        return by_kind[kind]
    assert isinstance(kind, type) and meaning.checks(kind), f"{kind}: no field may have a kind that nobody checks"
    return [object(), "adam"]


def refusals(make, name, kind):
    bad = wrong(kind)
    assert bad
    for value in bad:
        with pytest.raises(ValueError, match="must") as error:
            make(value)
        said = str(error.value)
        assert name in said.split(" = ")[0] and "nearest: " in said, (value, said)


@pytest.mark.parametrize("name", KINDS)
def test_every_field_of_every_dataclass_refuses_what_it_does_not_mean(name):
    kind = KINDS[name]
    given = GIVEN.get(kind.__name__, {})
    for field in dataclasses.fields(kind(**given)):
        hint = typing.get_type_hints(kind, include_extras=True)[field.name]
        refusals(lambda value, field=field: kind(**given | {field.name: value}), f".{field.name}", hint)


W = (jnp.eye(2), jnp.eye(2))
ROW = jnp.ones((1, 2))
BUILDERS = {
    "preset": (presets.preset, {"name": "pc", "hierarchy": NET.hierarchy}), "sized": (c.sized, {"name": "tiny"}),
    "recipe": (attentive.recipe, {"name": "cpu"}), "mlp": (chain.mlp, {"sizes": (4, 8, 2)}),
    "cnn": (chain.cnn, {"image": (8, 8, 1), "channels": (2,), "outputs": 2}),
    "transformer": (chain.transformer, {"tokens": 2, "inputs": 3, "width": 4, "heads": 2, "blocks": 1, "outputs": 2}),
    "rescaling": (theory.rescaling, {"weights": W}),
    "equilibrium_energy": (theory.equilibrium_energy, {"weights": W, "x": ROW, "y": ROW}),
    "energy_gradient": (theory.energy_gradient, {"weights": W, "x": ROW, "y": ROW}),
    "activity_hessian": (theory.activity_hessian, {"weights": W}),
    "equilibrium_states": (theory.equilibrium_states, {"weights": W, "x": ROW, "y": ROW}),
    "rescaled": (schedules.rescaled, {"lr": 1e-3, "momentum": 0.9, "batch": 2.0, "steps": 2.0}),
    "warmup_cosine": (schedules.warmup_cosine, {"start": 0.0, "peak": 1.0, "end": 0.0, "warmup": 1, "total": 2}),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_argument_of_every_builder_refuses_what_it_does_not_mean(name):
    build, given = BUILDERS[name]
    hints = typing.get_type_hints(inspect.unwrap(build), include_extras=True)
    build(**given)
    for argument in inspect.signature(build).parameters:
        if argument not in ("changes", "weights", "x", "y"):
            refusals(lambda value, argument=argument: build(**given | {argument: value}), f".{argument}",
                     hints[argument])


@pytest.mark.parametrize(("make", "words"), [
    (lambda: c.Optim(method="Muon"), "optim.method = 'Muon'.*nearest: 'muon'"),
    (lambda: c.Target(of="chnage"), "target.of = 'chnage'.*nearest: 'change'"),
    (lambda: c.Run(steps=2.5), "run.steps = 2.5.*whole number; nearest: 2"),
    (lambda: c.Model(size="64"), "model.size = '64'.*whole number; nearest: 64"),
    (lambda: c.Corpus(sampling="span", span=(0.5,)), r"corpus.span = \(0.5,\): must have 2 entries; nearest: \(0.5, 1"),
    (lambda: c.Corpus(crop_aspect=(0.5, math.inf)), r"corpus.crop_aspect = \(0.5, inf\): entry 1 must be a finite"),
    (lambda: Inference(variable="states"), "inference.variable = 'states'.*nearest: 'state'"),
    (lambda: chain.mlp((4, 3, 2), order="befor"), "mlp.order = 'befor'.*nearest: 'before'"),
    (lambda: chain.mlp((4, 2)), r"mlp.sizes = \(4, 2\): has no hidden layer"),
    (lambda: chain.transformer(2, 3, 10, 4, 1, 2), "transformer.width = 10.*nearest: 8"),
    (lambda: Energy(NET), "energy.hierarchy = .*its .hierarchy is"),
    (lambda: Energy((NET.hierarchy[0]._replace(repeat=0),)), "repeat = 0 must be at least 1"),
    (lambda: c.from_json(c.Pretrain, '{"optim": {"method": "Muon"}}'), "optim.method = 'Muon'.*nearest: 'muon'"),
    (lambda: c.from_json(c.Pretrain, '{"run": {"batch": true}}'), "run.batch = True.*nearest: 1"),
    (lambda: c.from_json(c.Pretrain, '{"optim": {"lr": NaN}}'), "optim.lr = nan.*finite"),
    (lambda: c.from_json(c.Pretrain, '{"optim": 3}'), "pretrain.optim = 3: must be an Optim"),
    (lambda: c.from_json(c.Pretrain, '{"mix": [3]}'), "pretrain.mix.0 = 3: must be an object"),
    (lambda: c.from_json(c.Pretrain, "[]"), r"pretrain = \[\]: must be an object"),
])
def test_the_nearest_choice_is_named(make, words):
    with pytest.raises(c.ConfigError, match=words):
        make()


def test_numbers_of_all_sorts_become_plain_ones():
    """A whole number is a float, numpy's numbers are numbers, lists are tuples: what is kept is plain, so that it goes
    to JSON and compares as what it was read from."""
    made = c.Optim(lr=1, weight_decay=np.float32(0.5), b1=np.float64(0.5))
    assert made == c.Optim(lr=1.0, weight_decay=0.5, b1=0.5)
    assert all(type(getattr(made, name)) is float for name in ("lr", "weight_decay", "b1"))
    run = c.Run(steps=np.int64(3), start=Path("a"))
    assert type(run.steps) is int and run.start == "a" and json.loads(c.to_json(run))["steps"] == 3
    assert c.Corpus(crop_scale=[0.5, 1]).crop_scale == (0.5, 1.0)
    assert len(chain.mlp([4, np.int32(3), 2]).hierarchy) == 1


MARKED = [(kind, field.name, mark) for kind in KINDS.values() for field in dataclasses.fields(kind)
          for mark in getattr(typing.get_type_hints(kind, include_extras=True)[field.name], "__metadata__", ())
          if isinstance(mark, meaning.Only)]


BESIDE = {"cells": {"kind": "hog3d"}, "grain": {"kind": "hog3d"}, "slices": {"prior": 0.1},
          "context_ramp": {"rule": "dense"}, "context_distance": {"rule": "dense"}}
"""What a field that asks two questions wants besides."""


def other_than(kind, name):
    """A legal value of a field that is not its default."""
    hint = typing.get_args(typing.get_type_hints(kind, include_extras=True)[name])[0]
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    default = field.default
    if typing.get_origin(hint) is Literal:
        return next(word for word in typing.get_args(hint) if word != default)
    if isinstance(default, bool):
        return not default
    special = {"start": "x", "shortcut": (1, 0.5), "cells": (1,), "optimiser": optax.sgd(0.2), "momentum": (0.5, 0.6),
               "precision": lambda step: jnp.ones(3), "noise": 0.1, "lr_start": 1e-4, "lr_end": 1e-4, "warmup": 0.2}
    if name in special:
        return special[name]
    if isinstance(default, tuple):
        return (0.3, 0.35)
    return default + 1 if isinstance(default, int) else default / 2 or 0.5


@pytest.mark.parametrize(("kind", "name", "mark"), MARKED, ids=lambda x: getattr(x, "__name__", getattr(x, "field", x)))
def test_what_nothing_reads_is_refused_by_name(kind, name, mark):
    value = other_than(kind, name)
    if "." in mark.field:
        section, field = mark.field.split(".")
        make = lambda word: c.Pretrain(**{section: c.Learn(rule=word), "infer": kind(**{name: value})})  # noqa: E731
        choices = typing.get_args(typing.get_type_hints(c.Learn)[field])
    else:
        holder = next(field for field in dataclasses.fields(kind) if field.name == mark.field)
        hint = typing.get_type_hints(kind)[mark.field]
        tuples = isinstance(holder.default, tuple)
        choices = typing.get_args(typing.get_args(hint)[0] if tuples else hint)
        if not mark.values or not choices:
            choices = {"warmup": (0.0,), "prior": (0.0,), "context": (0.0,), "out": (None,), "forward_only": (True,)}[
                mark.field]
        beside = {field: word for field, word in BESIDE.get(name, {}).items() if field != mark.field}
        make = lambda word: kind(**beside | {mark.field: (word,) if tuples else word, name: value})  # noqa: E731
    unread = [word for word in choices if not mark.reads(word)]
    assert unread
    for word in unread:
        with pytest.raises(c.ConfigError, match=rf"\.{name} = .*nothing reads it unless .*nearest: "):
            make(word)


@pytest.mark.parametrize("make", [
    lambda: c.Pretrain(optim=c.Optim(schedule="constant", stretch=1.25), target=c.Target(kind="hog3d")),
    lambda: c.Pretrain(mix=(c.Corpus(max_bad=0.1),)), lambda: c.Pretrain(mix=(c.Corpus(workers=1),)),
    lambda: Energy(NET.hierarchy, reverse=0.5), lambda: Energy((NET.hierarchy[0],), target=0.5),
    lambda: Inference(shortcut=(0, 0.5)), lambda: c.Pretrain(learn=c.Learn(rule="zil"), infer=c.Infer(steps=3)),
])
def test_what_an_annotation_cannot_tell_is_refused_too(make):
    with pytest.raises(c.ConfigError, match=r"(optim.stretch|mix.0.(max_bad|workers)|energy.|shortcut|infer.steps) ?.*"
                                            "nearest: "):
        make()


@pytest.mark.parametrize("make", [
    lambda: c.Pretrain(optim=c.Optim(schedule="constant", stretch=1.25)),
    lambda: c.Pretrain(mix=(c.Corpus(workers=1, frames=2),)),
    lambda: c.Pretrain(mix=(c.Corpus(threads=3, pack=80),)),
    lambda: c.Optim(schedule="constant", lr=1e-6),
    lambda: RECIPE,
])
def test_what_is_read_is_not_refused_and_comes_back_from_json(make):
    made = make()
    assert c.from_json(type(made), c.to_json(made)) == made


def parts_of(rule):
    """What of a rule depends on steps and rate, as numbers: the state optimiser's first move of a slope of 1 too."""
    inference, learning = rule
    one = jnp.ones(1)
    update = inference.optimiser.update(one, inference.optimiser.init(one), one)[0]
    return inference.variable, inference.steps, float(update[0]), inference.noise, learning


def test_the_rules_that_read_steps_and_rate_are_those_whose_presets_do():
    rules = set(typing.get_args(typing.get_type_hints(c.Learn)["rule"])) - set(c.DIRECT)
    assert rules == set(SETTLING)
    for rule in rules:
        if rule not in STEPPED:
            for pace, field in (((5, None), "steps"), ((None, 0.1), "rate")):
                with pytest.raises(c.ConfigError, match=rf"preset.{field} = .*nothing reads it under '{rule}'"):
                    presets.preset(rule, NET.hierarchy, *pace)
            continue
        base, more, faster = (parts_of(presets.preset(rule, NET.hierarchy, *it))
                              for it in ((5, 0.1), (7, 0.1), (5, 0.15)))
        assert base != more and base != faster, rule


@pytest.mark.parametrize("eps", [1e-8, 0.5, 10.0])
def test_muon_s_adam_divides_by_the_epsilon_that_is_asked_for(eps):
    """The first step of Adam with Nesterov's momentum, by hand: m̂ = b1 m / (1 - b1²) + (1 - b1) g / (1 - b1)."""
    made = c.Optim(method="muon", schedule="constant", warmup=0.0, lr=0.1, weight_decay=0.0, eps=eps)
    g = np.array([0.3, -2.0], np.float32)
    params = {"kernel": jnp.ones((3, 3)), "bias": jnp.zeros(2)}
    tx = optimiser(made, 10)
    update = tx.update({"kernel": jnp.ones((3, 3)), "bias": jnp.asarray(g)}, tx.init(params), params)[0]
    moment = 0.9 * 0.1 * g / (1 - 0.9**2) + g
    np.testing.assert_allclose(update["bias"], -0.1 * moment / (np.abs(g) + eps), rtol=1e-5)


def test_learning_with_weights_that_move_reads_the_errors_where_states_stand():
    rule = Inference(keep="stale"), Learning(when="every")
    params = jax.eval_shape(NET.init, jax.random.key(0))
    learner = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    tx = optax.sgd(0.1)
    with pytest.raises(ValueError, match="keep = 'stale'"):
        cora.step(Energy(NET.hierarchy), cora.Learner(learner, tx.init(learner)),
                  cora.Evidence(jnp.zeros((1, 4)), (None, jnp.zeros((1, 1, 2)))), rule, tx)
