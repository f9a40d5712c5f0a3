"""Laws of precision and surprise: against formulas, plain loops and files read by another way."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import compiled, drawn, near
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cora import config
from cora.measure import surprise
from cora.measure.skill import Predictor
from cora.nets.hierarchy import build
from cora.pc import masks, rules, targets
from cora.pc.prediction import foreseen, predictions
from cora.pc.settled import rule_of
from cora.types import Masks, Sight
from cora.video import clips, codec, events, manifest

MODEL = config.Model(frames=8, size=32, patch=8, width=24, heads=2, levels=2, predictor_width=12, predictor_heads=1)
TARGETS = {
    "hog3d": config.Target(kind="hog3d", cells=(1,), of="change", error="squared"),
    "below": config.Target(kind="below", cells=(1,), of="change", error="squared"),
    "ema": config.Target(kind="ema", of="change", error="squared"),
}


@cache
def case(kind="hog3d", **choices):
    settings = config.Pretrain(model=MODEL, target=TARGETS[kind], learn=config.Learn(**choices))
    network = build(settings.model, settings.target, settings.learn)
    params, teacher = drawn(network, 0), drawn(network, 1).encoder
    videos = np.random.default_rng(2).integers(0, 256, (3, 8, 32, 32, 3)).astype(np.uint8)
    kinds = masks.kinds(config.Mask(kinds=("random", "short")), MODEL.grid)
    shown = tuple(masks.sample(jax.random.key(i), one, 3) for i, one in enumerate(kinds.values()))
    return settings, network, params, teacher, Sight(network.patches(jnp.asarray(videos)), shown), videos


def at(tree, level):
    return jax.tree.map(lambda leaf: leaf[level], tree)


# ------------------------------------------------------------------------------------------------- the level below


def goals_of(network, teacher, patches):
    """What each level is asked for when it predicts the level below, as a Python loop over whole clips."""
    z, goals = network.embed(teacher.embed, patches), [network.fixed(patches)]
    ids = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
    change = targets.change(MODEL.grid[0])
    for level in range(MODEL.levels - 1):
        z = network.encode(at(teacher.levels, level), z, ids)
        goals.append(change(network.norm(at(teacher.levels, level), z)))
    return goals


@pytest.mark.parametrize("name", ["local", "backprop_all"])
def test_each_level_predicts_the_latents_of_the_level_below(name):
    settings, network, params, teacher, sight, _ = case("below", rule=name)
    goals = goals_of(network, teacher, sight.patches)
    z, errors = rules.start(network, params.encoder.embed, sight), []
    for level, goal in enumerate(goals):
        own = at(params.encoder.levels, level)
        z = [network.encode(own, x, m.context) for x, m in zip(z, sight.masks, strict=True)]
        guess = [network.predict(at(params.predictors, level), network.norm(own, x), m, kind)
                 for kind, (x, m) in enumerate(zip(z, sight.masks, strict=True))]
        errors.append(np.mean([jnp.mean(jnp.square(rules.gather(goal, m.target) - g)) / 2
                               for g, m in zip(guess, sight.masks, strict=True)]))
    rule = compiled(rule_of(settings.learn, config.Infer(), MODEL, settings.target), static_argnums=0)
    np.testing.assert_allclose(rule(network, params, teacher, sight)[1], errors, rtol=1e-4)


def test_no_level_moves_the_target_of_its_own():
    """The target of level 1 is of level 0's latents: the teacher's level 1 changes no error."""
    _, network, params, teacher, sight, _ = case("below")
    other = teacher._replace(levels=jax.tree.map(lambda leaf: leaf.at[1].multiply(1.5), teacher.levels))
    rule = compiled(rules.local, static_argnums=0)
    np.testing.assert_array_equal(rule(network, params, teacher, sight)[1], rule(network, params, other, sight)[1])
    lower = teacher._replace(levels=jax.tree.map(lambda leaf: leaf.at[0].multiply(1.5), teacher.levels))
    changed = rule(network, params, lower, sight)[1] != rule(network, params, teacher, sight)[1]
    assert changed.tolist() == [False, True]


# ------------------------------------------------------------------------------------------------------- precision


def test_a_precision_is_learned_by_the_gaussian_s_likelihood_and_the_prediction_by_its_squared_error():
    """Slopes against SciPy's log density, of D channels with one variance a token, by differences."""
    rng = np.random.default_rng(0)
    guess, goal, s = rng.normal(size=(2, 5, 7)), rng.normal(size=(2, 5, 7)), rng.normal(size=(2, 5, 1))
    with jax.enable_x64(True):
        slope = jax.grad(lambda said: jnp.sum(targets.weighed(said, jnp.asarray(goal))))(
            jnp.asarray(np.concatenate([guess, s], -1)))

    def likelihood(s):
        bounded = targets.SUREST * np.tanh(s / targets.SUREST)
        return -norm.logpdf(goal, guess, np.exp(-bounded / 2)).sum() / 7 / 5

    expected = np.zeros_like(s)
    for place in np.ndindex(s.shape):
        step = np.zeros_like(s)
        step[place] = 1e-5
        expected[place] = (likelihood(s + step) - likelihood(s - step)) / 2e-5
    np.testing.assert_allclose(slope[..., -1:], expected, rtol=1e-6)
    np.testing.assert_allclose(slope[..., :-1], (guess - goal) / 7 / 5, rtol=1e-6)


def test_levels_that_say_how_sure_they_are_predict_and_learn_what_they_would_without():
    settings, network, params, teacher, sight, _ = case(precision=True)
    plain = {name: tree for name, tree in params.predictors.items() if name != "precision"}
    silent = build(MODEL, settings.target, config.Learn())
    found = np.zeros(MODEL.levels)
    for kind, seen in enumerate(sight.masks):
        guess = predictions(network, params, sight.patches, seen, kind)
        np.testing.assert_array_equal(guess, predictions(silent, params._replace(predictors=plain), sight.patches,
                                                         seen, kind))
        s = foreseen(network, params, sight.patches, seen, kind)[1]
        goal = rules.gather(network.fixed(sight.patches), seen.target)[None]
        error = jnp.mean(jnp.square(goal - guess), axis=-1)
        found += np.asarray(jnp.mean(error + jnp.exp(s) * error - s, axis=(1, 2))) / 4
        assert np.asarray(s).std() > 0.01, "drawn weights say something of every token"
    rule = compiled(rules.local, static_argnums=0)
    learned, errors = rule(network, params, teacher, sight)
    np.testing.assert_allclose(errors, found, rtol=1e-4)
    without = rule(silent, params._replace(predictors=plain), teacher, sight)[0]
    own = {name: tree for name, tree in learned.predictors.items() if name != "precision"}
    near(learned._replace(predictors=own), without, 1e-6)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(learned.predictors["precision"]))


def test_what_has_no_precision_is_refused_it():
    for choices, word in (({"rule": "dense"}, "learn"), ({"top_down": True}, "learn")):
        with pytest.raises(config.ConfigError, match=word):
            config.Learn(precision=True, **choices)
    with pytest.raises(config.ConfigError, match=r"target\.error = 'absolute'"):
        config.Pretrain(learn=config.Learn(precision=True))


# -------------------------------------------------------------------------------------------------------- surprise


def test_a_window_ends_with_its_step_and_begins_with_a_film_that_stands_still():
    film = np.arange(13)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    found = surprise.windows(film.astype(np.uint8), replace(MODEL, frames=6, tubelet=2))[:, :, 0, 0, 0]
    assert found.tolist() == [
        [0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 8, 9],
        [6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize(("kind", "context"), [("hog3d", 0), ("ema", 2), ("below", 1)])
def test_surprise_is_the_error_at_the_last_step_given_those_before(kind, context):
    """Films of two lengths, against one forward pass of every window, all in one batch."""
    settings, network, params, teacher, _, _ = case(kind, precision=True)
    rng = np.random.default_rng(5)
    films = [rng.integers(0, 256, (length, 32, 32, 3)).astype(np.uint8) for length in (9, 12)]
    found = surprise.surprise(Predictor(settings, params, teacher), films, context)
    assert [one.error.shape for one in found] == [(2, 4, 4, 4), (2, 6, 4, 4)]
    every = np.concatenate([surprise.windows(film, MODEL) for film in films])
    patches, last = network.patches(jnp.asarray(every)), np.arange(48, 64)
    past = np.arange((3 - context) * 16 if context else 0, 48)
    seen = Masks(*(jnp.asarray(np.tile(ids, (10, 1))) for ids in (past, last)))
    guess = predictions(network, params, patches, seen, 0)
    ids = jnp.broadcast_to(jnp.arange(64), (10, 64))
    own = rules.levels_of(network, teacher, network.embed(teacher.embed, patches), ids)
    goals = {"hog3d": lambda: jnp.stack([network.fixed(patches)] * 2), "ema": lambda: jax.vmap(network.goal)(own),
             "below": lambda: jnp.stack(goals_of(network, teacher, patches))}[kind]()
    error = np.asarray(jnp.mean(jnp.square(goals[:, :, last] - guess), axis=-1)).reshape(2, 10, 4, 4)
    s = np.asarray(foreseen(network, params, patches, seen, 0)[1]).reshape(2, 10, 4, 4)
    np.testing.assert_allclose(np.concatenate([one.error for one in found], 1), error, rtol=2e-4)
    np.testing.assert_allclose(np.concatenate([one.precision for one in found], 1), s, atol=1e-4)
    spread = jnp.mean(jnp.square(goals - goals.mean(1, keepdims=True)), axis=-1)[:, :, last].reshape(2, 10, 4, 4)
    np.testing.assert_allclose(np.concatenate([one.spread for one in found], 1), spread, rtol=1e-4)
    np.testing.assert_allclose(np.concatenate([one.energy for one in found], 1), (np.exp(s) * error - s) / 2, rtol=1e-3,
                               atol=1e-4)


def test_films_that_are_measured_in_parts_are_measured_alike(monkeypatch):
    """Time step by time step: the same step of every film is in one part, whatever the parts."""
    settings, _, params, teacher, _, _ = case("hog3d")
    film = np.random.default_rng(5).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    monkeypatch.setattr(surprise, "WINDOWS", 5)
    first, second = surprise.surprise(Predictor(settings, params, teacher), [film, film])
    np.testing.assert_array_equal(first.error, second.error)


def test_pairs_are_told_apart_as_counted_by_hand():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(12, 2)).round(1)
    pairs = [(2 * i, 2 * i + 1) for i in range(6)]
    kinds = ["a", "b"] * 3
    found = surprise.told_apart(scores, pairs, kinds)
    for kind in ("a", "b", "all"):
        own = [p for p, k in zip(pairs, kinds, strict=True) if kind in (k, "all")]
        for level in (0, 1):
            wins = np.mean([1.0 if scores[b, level] > scores[a, level] else 0.5 * (scores[b, level] == scores[a, level])
                            for a, b in own])
            rows = [i for pair in own for i in pair]
            assert found[kind]["accuracy"][level] == pytest.approx(wins)
            assert found[kind]["auroc"][level] == pytest.approx(roc_auc_score([i % 2 for i in rows],
                                                                              scores[rows, level]))
        assert found[kind]["pairs"] == len(own)


def test_pairs_are_groups_of_one_possible_and_one_impossible_clip():
    assert surprise.pairs_of([1, 0, 0, 0, 0, 1, None], ["x", "x", "y", "y", "z", "z", "w"]) == [(1, 0), (4, 5)]


def test_a_whole_file_is_all_of_its_frames_at_the_spacing_asked_for(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    codec.write(tmp_path / "a.mp4", video, 12.0)
    stored = codec.read(tmp_path / "a.mp4", np.arange(12))
    for corpus, numbers in ((config.Corpus(sampling="span"), range(12)), (config.Corpus(stride=3), range(0, 12, 3)),
                            (config.Corpus(sampling="fps", fps=6.0), range(0, 12, 2))):
        np.testing.assert_array_equal(clips.whole(tmp_path / "a.mp4", corpus, size=32), stored[list(numbers)])


def test_a_further_column_of_a_list_is_read_by_place(tmp_path):
    source = events.events(tmp_path, 3, 4)
    assert list(manifest.column(source, "kind").values()) == [kind for kind in events.EVENTS for _ in range(2)]
    assert manifest.column(tmp_path, "kind") == manifest.column(source, "kind")
    assert manifest.column(source, "nothing") == {}
