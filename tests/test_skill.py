"""Laws of the measure of prediction: guesses by plain loops, skill of what is known, and no gain from a collapse."""

import json
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import drawn
from sklearn.linear_model import Ridge

from cora import config
from cora.measure import guesses, skill
from cora.nets.hierarchy import build
from cora.pc import masks, prediction, rules
from cora.pc.learn import learn
from cora.pc.settled import rule_of
from cora.types import Masks, Sight

MODEL = config.Model(frames=8, size=32, patch=8, width=24, heads=2, levels=2, predictor_width=12, predictor_heads=1)
GRID = MODEL.grid


def tokens(clips, numbers=5, seed=0):
    return np.random.default_rng(seed).normal(size=(clips, int(np.prod(GRID)), numbers)).astype(np.float32)


def hidden_of(clips, kind, seed=0):
    drawn_masks = masks.sample(jax.random.key(seed), masks.kinds(skill.ASKED, GRID)[kind], clips)
    return np.asarray(drawn_masks.target), np.asarray(drawn_masks.context)


@pytest.mark.parametrize("kind", ["random", "short", "future"])
def test_guesses_are_those_of_a_plain_loop(kind):
    """Nearest seen token, and the last one seen at a place, token by token."""
    x, (hidden, context) = tokens(3), hidden_of(3, kind)
    found = guesses.copied(x, hidden, GRID)
    place = np.array(list(np.ndindex(*GRID)))
    assert ("copy_last" in found) == (kind == "future")
    for clip in range(3):
        for at, token in enumerate(hidden[clip]):
            away = [((place[token] - place[seen]) ** 2).sum() for seen in context[clip]]
            np.testing.assert_array_equal(found["nearest"][clip, at], x[clip, context[clip][int(np.argmin(away))]])
            if "copy_last" in found:
                own = [seen for seen in context[clip] if (place[seen][1:] == place[token][1:]).all()]
                last, before = own[-1], own[-2]
                ahead = (place[token][0] - place[last][0]) / (place[last][0] - place[before][0])
                np.testing.assert_array_equal(found["copy_last"][clip, at], x[clip, last])
                line = x[clip, last] + ahead * (x[clip, last] - x[clip, before])
                np.testing.assert_allclose(found["line"][clip, at], line, rtol=1e-5)


def test_the_first_seen_token_along_an_axis_is_that_of_a_plain_loop():
    hidden, _ = hidden_of(2, "random", seed=3)
    seen = guesses.seen_of(hidden, GRID)
    ids = np.arange(np.prod(GRID)).reshape(GRID)
    for axis in range(3):
        for step in (-1, 1):
            found = guesses.first_seen(seen, axis, step).reshape(2, *GRID)
            for clip in range(2):
                for place in np.ndindex(*GRID):
                    here, expected = list(place), -1
                    while 0 <= here[axis] + step < GRID[axis]:
                        here[axis] += step
                        if seen[(clip, *here)]:
                            expected = ids[tuple(here)]
                            break
                    assert found[(clip, *place)] == expected


def test_neighbours_tell_nothing_of_what_is_hidden():
    """Whatever stands in hidden tokens, a ridge map is told the same."""
    x, (hidden, _) = tokens(3), hidden_of(3, "short")
    other = x.copy()
    np.put_along_axis(other, hidden[..., None], 1e6, axis=1)
    np.testing.assert_array_equal(guesses.neighbours(x, hidden, GRID), guesses.neighbours(other, hidden, GRID))


def test_the_errors_by_which_a_penalty_is_chosen_are_scikit_learn_s():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 7)) + 1, rng.normal(size=(300, 3))
    y += x[:, :3] * 0.3 + 2
    found = guesses._errors(x[:200], y[:200], x[200:], y[200:])
    plain = [np.square(Ridge(alpha=a).fit(x[:200], y[:200]).predict(x[200:]) - y[200:]).mean()
             for a in guesses.PENALTIES]
    np.testing.assert_allclose(found, plain, rtol=1e-9)
    assert len(set(np.round(plain, 6))) == len(plain)


def sample_of(clips, kind, level_of, seed):
    """Clips whose targets are smooth in time, so that neighbours tell much; `level_of` makes each level's guess."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(clips, *GRID, 6)).cumsum(1)
    targets = (steps - steps.mean((0, 1), keepdims=True)).reshape(clips, -1, 6).astype(np.float32)
    hidden, _ = hidden_of(clips, kind, seed)
    predicted = np.stack([f(guesses.take(targets, hidden)) for f in level_of])
    return skill.Sample(hidden, predicted, targets[None], targets.copy(), targets[..., :2].copy())


def test_skill_is_one_for_the_truth_none_for_the_mean_and_below_for_noise():
    rng = np.random.default_rng(5)
    guesses = (lambda goal: goal, lambda goal: 0 * goal, lambda goal: goal + 3 * rng.normal(size=goal.shape))
    train, test = (sample_of(40, "random", guesses, seed) for seed in (0, 1))
    found = skill.shares(train, test, GRID)
    assert found["left"][0] == 0 and found["skill"][0] == 1
    np.testing.assert_allclose(found["left"][1], 1, atol=0.1)
    assert found["skill"][1] < 0 and found["skill"][2] < 0
    best = min(values[0] for values in found["trivial"].values())
    assert best == found["trivial"]["neighbours"][0] < 0.6, "steps of a walk are told by their neighbours"
    report = {"random": found}
    assert skill.alarms(report)[0].startswith("level 1, 2 predicts nothing" if found["left"][1] > 0.98 else "level 2")


def test_no_trivial_predictor_is_told_the_targets_of_seen_tokens_but_copies():
    """A target that departs from a mean over time holds what is hidden; the ridge map among the guesses reads facts."""
    def other(sample):
        changed = sample.targets + 0.0
        seen = guesses.seen_of(sample.hidden, GRID).reshape(len(sample.hidden), -1)
        changed[:, seen] = np.random.default_rng(9).normal(size=changed[:, seen].shape)
        return sample._replace(targets=changed)

    train, test = (sample_of(40, "random", (lambda goal: 0 * goal,), seed) for seed in (0, 1))
    found, blind = (skill.shares(a, b, GRID) for a, b in ((train, test), (other(train), other(test))))
    mean_at_each_place = found["trivial"]["mean"][0] / blind["trivial"]["mean"][0]
    assert blind["trivial"]["neighbours"][0] * mean_at_each_place == pytest.approx(
        found["trivial"]["neighbours"][0], rel=0.1) and found["trivial"]["neighbours"][0] < 0.6
    assert found["told"][0] < 0.6 < blind["told"][0]


def test_no_collapse_of_the_targets_improves_what_is_read_of_energies():
    """Targets and predictions shrunk to one direction leave nothing unexplained, and tell less of the facts."""
    def collapsed(sample):
        one = np.ones(6) / 6**0.5
        flat = lambda x: (x @ one)[..., None] * one  # noqa: E731
        return sample._replace(predicted=flat(sample.predicted), targets=flat(sample.targets))

    train, test = (sample_of(40, "random", (lambda goal: goal,), seed) for seed in (0, 1))
    full, flat = skill.readout(train, test, GRID), skill.readout(collapsed(train), collapsed(test), GRID)
    assert skill.shares(collapsed(train), collapsed(test), GRID)["left"][0] < 1e-6
    assert full["energies"]["predicted"][0] > 0.99 and flat["energies"]["predicted"][0] < 0.4
    assert full["energies"]["neighbours"] == flat["energies"]["neighbours"]


# -------------------------------------------------------------------------------------------- a network's predictions


@cache
def case(**choices):
    model, learning = MODEL, config.Learn(**choices)
    target = config.Target(kind="hog3d", cells=(1,), of="change", error="squared") if not choices.get("latent") \
        else config.Target(error="squared")
    network = build(model, target, learning)
    params, teacher = drawn(network, 0), drawn(network, 1).encoder
    clips = np.random.default_rng(2).integers(0, 256, (3, 8, 32, 32, 3)).astype(np.uint8)
    kinds = masks.kinds(config.Mask(kinds=("random", "short")), GRID)
    shown = tuple(masks.sample(jax.random.key(i), kind, 3) for i, kind in enumerate(kinds.values()))
    return network, learning, target, params, teacher, Sight(network.patches(jnp.asarray(clips)), shown)


@pytest.mark.parametrize("choices", [{}, {"top_down": True}, {"rule": "backprop_last"}])
def test_predictions_have_the_error_that_the_learning_rule_reports(choices):
    """Half the mean squared gap, averaged over kinds of mask, is each level's target error under its own rule."""
    network, learning, target, params, teacher, sight = case(**choices)
    whole = prediction.targets(network, teacher, sight.patches)
    errors = []
    for kind, seen in enumerate(sight.masks):
        guess = prediction.predictions(network, params, sight.patches, seen, kind)
        goal = jax.vmap(rules.gather, (0, None))(whole, seen.target)
        errors.append(jnp.mean(jnp.square(goal - guess), axis=(1, 2, 3)) / 2)
    rule = rule_of(learning, config.Infer(), MODEL, target, learn)
    np.testing.assert_allclose(np.mean(errors, axis=0), rule(network, params, teacher, sight)[1], rtol=1e-4)


def test_logged_skill_is_one_less_the_error_over_the_better_guess():
    network, _, _, params, teacher, sight = case()
    found = np.asarray(prediction.batch_skill(network, params, teacher, sight, GRID))
    goals = np.asarray(prediction.targets(network, teacher, sight.patches))[0]
    expected = []
    for kind, seen in enumerate(sight.masks):
        guess = np.asarray(prediction.predictions(network, params, sight.patches, seen, kind))
        hidden = np.asarray(seen.target)
        goal = guesses.take(goals, hidden)
        mean, near = goals.mean(0)[hidden], guesses.copied(goals, hidden, GRID)["nearest"]
        best = min(np.square(goal - mean).mean(), np.square(goal - near).mean())
        expected.append(1 - np.square(goal - guess).mean((1, 2, 3)) / best)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-4)


def test_a_sample_counts_every_clip_once_whatever_the_batch():
    """35 clips are two batches, the last one filled up; each clip is asked in the masks of its batch."""
    network, learning, target, params, teacher, _ = case()
    run = config.Pretrain(model=MODEL, target=target, learn=learning)
    clips = np.random.default_rng(7).integers(0, 256, (35, 8, 32, 32, 3)).astype(np.uint8)
    found = skill.sample(skill.Predictor(run, params, teacher), clips, "random")
    assert found.hidden.shape[0] == found.energies.shape[0] == found.pixels.shape[0] == 35
    assert found.predicted.shape[:2] == (2, 35) and found.pixels.shape[2] == 64
    seen = Masks(jnp.asarray(np.sort(np.stack([np.setdiff1d(np.arange(64), h) for h in found.hidden[32:]]))),
                 jnp.asarray(found.hidden[32:]))
    own = prediction.predictions(network, params, network.patches(jnp.asarray(clips[32:])), seen, 0)
    np.testing.assert_allclose(found.predicted[:, 32:], own, atol=2e-5)


def test_one_predictor_of_all_levels_has_no_skill_by_level():
    run = config.Pretrain(model=MODEL, learn=config.Learn(rule="dense"))
    with pytest.raises(config.ConfigError, match="dense"):
        skill.sample(skill.Predictor(run, None, None), np.zeros((1, 8, 32, 32, 3), np.uint8), "random")


def test_the_report_is_plain_json_and_has_a_row_for_every_level():
    _, learning, target, params, teacher, _ = case()
    run = config.Pretrain(model=MODEL, target=target, learn=learning)
    rng = np.random.default_rng(8)
    train, test = (rng.integers(0, 256, (n, 8, 32, 32, 3)).astype(np.uint8) for n in (12, 6))
    found = skill.skill(skill.Predictor(replace(run), params, teacher), train, test)
    again = json.loads(json.dumps(found, allow_nan=False))
    assert set(again) == {"random", "blocks", "future"}
    assert [len(again["future"]["by_horizon"]["left"][level]) for level in range(2)] == [2, 2]
    table = skill.as_table({"n_train": 12, "n_test": 6, **found})
    assert table.row_count == 6
