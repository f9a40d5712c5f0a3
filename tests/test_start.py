"""Where a run starts: exactly the weights of the folder it names, or a refusal that names the field."""

import shutil
from dataclasses import replace
from functools import cache

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import drawn

from cora import config, train
from cora.nets.hierarchy import build
from cora.store import checkpoint, weights

MODEL = config.Model(frames=4, size=16, patch=8, width=12, heads=2, levels=3, predictor_width=8, predictor_heads=1)
LEARNS = {"local": config.Learn(), "last": config.Learn(rule="backprop_last"), "dense": config.Learn(rule="dense"),
          "top_down": config.Learn(top_down=True), "seen": config.Learn(seen=1.0),
          "sure": config.Learn(precision=True)}


@cache
def made(kind="local", seed=0, model=MODEL):
    """Learned parameters, every number its own."""
    return drawn(build(model, learn=LEARNS[kind]), seed)


def native(folder, kind="local", predictors=True, model=MODEL):
    params = made(kind, model=model)
    weights.save(folder, model, params.encoder, params.predictors if predictors else None, LEARNS[kind])
    return str(folder)


def wanted(kind="local", start="", teacher="", model=MODEL, target="ema"):
    return config.Pretrain(model=model, learn=LEARNS[kind], run=config.Run(start=start, steps=4, batch=2),
                           target=config.Target(kind="frozen" if teacher else target, start=teacher, error="squared"))


def begun(settings):
    """The state at step 0; not compiled, for each call would be anew."""
    return train.initialise(build(settings.model, settings.target, settings.learn), settings, *train.given(settings))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b):
    return all(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# ------------------------------------------------------------------------------------------------------- what begins


@pytest.mark.parametrize("kind", LEARNS)
def test_a_run_begins_with_exactly_a_native_folders_weights(kind, tmp_path):
    state = begun(wanted(kind, native(tmp_path / "native", kind)))
    same(state.params, made(kind))
    same(state.teacher, made(kind).encoder)
    assert state.step == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.optimiser))  # no moments come along


@pytest.mark.parametrize(("kind", "part"), [("seen", "beside"), ("sure", "precision")])
def test_the_map_of_seen_tokens_and_precision_begin_at_zero_or_are_left_behind(kind, part, tmp_path):
    bare = begun(wanted(kind, native(tmp_path / "bare"))).params.predictors
    same({name: tree for name, tree in bare.items() if name != part}, made().predictors)
    assert all(not leaf.any() for leaf in jax.tree.leaves(bare[part]))
    left = begun(wanted("local", native(tmp_path / kind, kind))).params.predictors
    same(left, {name: tree for name, tree in made(kind).predictors.items() if name != part})


@pytest.mark.parametrize("target", ["ema", "frozen", "own"])
def test_a_run_that_names_nothing_is_drawn_and_its_teacher_a_copy(target):
    settings = wanted(target=target)
    assert train.given(settings) == (None, None)
    network = build(MODEL)._replace(init=lambda key: jax.tree.map(
        lambda leaf: leaf + jax.random.uniform(key), made()))  # its own init is test_vit's, and slow to compile
    state = train.initialise(network, settings)
    same(state.teacher, state.params.encoder)
    assert differ(state.params, made())


def test_a_learner_given_alone_is_copied_into_the_teacher_and_not_shared():
    network = build(MODEL)
    state = train.initialise(network, wanted(), made())
    same(state.teacher, made().encoder)
    for one, other in zip(jax.tree.leaves(state.teacher), jax.tree.leaves(state.params.encoder), strict=True):
        assert one.unsafe_buffer_pointer() != other.unsafe_buffer_pointer()  # a step donates both


def test_learner_and_teacher_of_a_folder_share_no_buffer(tmp_path):
    params, teacher = train.given(wanted("local", native(tmp_path / "native")))
    for one, other in zip(jax.tree.leaves(teacher), jax.tree.leaves(params.encoder), strict=True):
        assert one.unsafe_buffer_pointer() != other.unsafe_buffer_pointer()


@pytest.mark.parametrize(("there", "here"), [("last", "local"), ("local", "last"), ("local", "local")])
def test_one_predictor_goes_to_every_level_and_of_many_the_last_one_goes_on(there, here, tmp_path):
    params = begun(wanted(here, native(tmp_path / "native", there))).params
    source, count = made(there).predictors, 1 if here == "last" else MODEL.levels
    for leaf, own in zip(jax.tree.leaves(params.predictors), jax.tree.leaves(source), strict=True):
        assert leaf.shape[0] == count
        for level in range(count):
            np.testing.assert_array_equal(leaf[level], own[level if there == here else -1])
    same(params.encoder, made(there).encoder)


def test_other_clips_and_other_ways_to_compute_are_welcome(tmp_path):
    model = replace(MODEL, frames=8, size=(16, 24), dtype="bfloat16", attention="xla", remat=True, scaled_init=True)
    same(begun(wanted("local", native(tmp_path / "native"), model=model)).params, made())


# ------------------------------------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs stopped at step 3, learner and teacher apart, with a moving average and with the learner's own targets."""
    found = {}
    for target in ("ema", "own"):
        folder = tmp_path_factory.mktemp(target)
        settings = wanted(target=target)
        checkpoint.claim(folder, settings)
        state = train.initialise(build(MODEL), settings, made(), made(seed=1).encoder)._replace(
            step=jnp.array(3, jnp.int32))
        book = checkpoint.Checkpoints(folder)
        book.save(3, state, iter(grain.MapDataset.range(2).to_iter_dataset()))
        book.close()
        found[target] = folder
    return found


@pytest.mark.parametrize("part", ["", "checkpoints/3"])
def test_a_run_gives_its_learner_and_its_moving_average_apart(part, runs):
    state = begun(wanted("local", str(runs["ema"] / part)))
    same(state.params, made())
    same(state.teacher, made(seed=1).encoder)
    assert state.step == 0


@pytest.mark.parametrize("name", ["mine", "7"])
def test_a_run_may_lie_in_a_folder_called_checkpoints(name, runs, tmp_path):
    """What makes a step folder is its number and that it is no run itself, not its parent's name alone."""
    folder = shutil.copytree(runs["own"], tmp_path / "checkpoints" / name)
    for part, step in ((folder, None), (folder / "checkpoints" / "3", 3)):
        assert checkpoint.run_of(part) == folder and checkpoint.step_of(part) == step
        assert weights.read_run(part)[:2] == (wanted(target="own"), 3)
    with pytest.raises(checkpoint.CheckpointError, match="nowhere: not a run folder"):
        weights.read_run(folder.parent / "nowhere")


def test_what_teaches_is_the_encoder_that_the_run_was_for(runs):
    same(weights.frozen_teacher(runs["ema"], MODEL), made(seed=1).encoder)
    same(weights.frozen_teacher(runs["own"], MODEL), made().encoder)
    same(begun(wanted("local", str(runs["own"]))).teacher, made().encoder)


def test_learner_and_frozen_teacher_come_from_two_folders(runs, tmp_path):
    state = begun(wanted("local", native(tmp_path / "native"), str(runs["ema"])))
    same(state.params, made())
    same(state.teacher, made(seed=1).encoder)


# --------------------------------------------------------------------------------------------------- a frozen teacher


def test_a_frozen_teacher_needs_no_predictors_and_may_have_had_others(tmp_path):
    other = replace(MODEL, predictor_width=16, predictor_heads=2, predictor_depth=2, predictor_mlp_ratio=2.0,
                    mask_tokens=5)
    bare = wanted(teacher=native(tmp_path / "bare", predictors=False))
    params, teacher = train.given(bare)
    assert params is None
    same(teacher, made().encoder)
    _, teacher = train.given(wanted(teacher=native(tmp_path / "dense", "dense", model=other)))
    same(teacher, made("dense", model=other).encoder)
    with pytest.raises(weights.WeightsError, match="no predictors"):
        train.given(wanted("local", bare.target.start))


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("change", "said"), [
    ({"width": 24}, "model.width: 12 there, 24 wanted"), ({"levels": 1, "blocks": 3}, "model.levels: 3 there, 1 want"),
    ({"patch": 4}, "model.patch: 8 there, 4 wanted"), ({"tubelet": 4}, "model.tubelet: 2 there, 4 wanted"),
    ({"heads": 1}, "model.heads: 2 there, 1 wanted"), ({"mlp_ratio": 2.0}, "model.mlp_ratio: 4.0 there, 2.0 wanted"),
    ({"rope": "interleaved"}, "model.rope: 'tiled' there"), ({"rope_grid": 4}, "model.rope_grid: 0 there, 4 wanted"),
])
def test_another_encoder_is_refused_by_its_field_as_learner_and_as_teacher(change, said, tmp_path):
    folder, model = native(tmp_path / "native"), replace(MODEL, **change)
    for settings in (wanted("local", folder, model=model), wanted(teacher=folder, model=model)):
        with pytest.raises(weights.WeightsError, match=said):
            train.given(settings)


@pytest.mark.parametrize("change", [{"predictor_width": 16}, {"predictor_depth": 2}, {"predictor_mlp_ratio": 2.0},
                                    {"mask_tokens": 5}])
def test_another_predictor_is_refused_by_its_field(change, tmp_path):
    with pytest.raises(weights.WeightsError, match=f"model.{next(iter(change))}"):
        train.given(wanted("local", native(tmp_path / "native"), model=replace(MODEL, **change)))


@pytest.mark.parametrize(("there", "here", "said"), [
    ("local", "dense", "predictors.fuse"), ("dense", "local", "predictors.fuse"), ("dense", "last", "predictors.fuse"),
    ("local", "top_down", "predictors.above"), ("top_down", "local", "predictors.above"),
    ("dense", "top_down", "predictors.above"),
])
def test_predictors_of_another_kind_are_refused_by_name(there, here, said, tmp_path):
    with pytest.raises(weights.WeightsError, match=said) as refusal:
        train.given(wanted(here, native(tmp_path / "native", there)))
    assert f"learn.rule = {LEARNS[here].rule!r}" in str(refusal.value)


def test_a_start_in_the_home_folder_is_found_there(tmp_path, monkeypatch):
    native(tmp_path / "native")
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = wanted(start="~/native")
    same(weights.start("~/native", settings)[1], made())
    same(train.given(settings)[0], made())
    same(train.given(wanted(teacher="~/native"))[1], made().encoder)
