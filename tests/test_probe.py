"""Laws of the frozen evaluation: what it may look at, what it must not change, what it refuses."""

import json
import warnings

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from cora.measure import probe
from cora.measure.table import Table

pytestmark = pytest.mark.filterwarnings("error")


def toy(seed: int = 0, *, classes: int = 3, groups: int = 6, repeats: int = 4, width: int = 40,
        signal: float = 8.0, levels: int = 1) -> Table:
    """Gaussian classes; every group has `repeats` clips of each class, the last third of the groups is for testing."""
    rng = np.random.default_rng(seed)
    label = np.tile(np.repeat(np.arange(classes), repeats), groups)
    number = np.repeat(np.arange(groups), classes * repeats)
    centres = rng.normal(size=(classes, width))
    centres *= signal / np.linalg.norm(centres, axis=1, keepdims=True)
    features = centres[label] + rng.normal(size=(levels, len(label), width))
    group = np.array([f"g{i}" for i in number])
    split = np.where(number < groups - groups // 3, "train", "test")
    order = rng.permutation(len(label))
    return Table(features[:, order], label[order], group[order], split[order])


# ------------------------------------------------------------------------------------------------------- accuracies


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_separable_classes_are_read_perfectly(method: probe.Method) -> None:
    score = probe.evaluate(toy(signal=20.0), method)
    assert score.accuracy == 1.0 and score.ci95 == (1.0, 1.0) and score.held_out == (1.0,)


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_shuffled_labels_are_read_at_chance(method: probe.Method) -> None:
    table = toy(signal=20.0, groups=12)
    accuracy = [probe.evaluate(table._replace(label=np.random.default_rng(s).permutation(table.label)), method).accuracy
                for s in range(4)]
    assert 0.2 < np.mean(accuracy) < 0.47  # 1/3; 192 test rows: four standard deviations


def test_level_is_chosen_on_held_out_groups_and_every_level_is_reported() -> None:
    noise, good = toy(3, signal=0.0, levels=2), toy(3, signal=20.0)
    score = probe.evaluate(good._replace(features=np.concatenate([noise.features, good.features])), "linear")
    assert score.level == 2 and score.accuracy == score.per_level[2] == 1.0
    assert max(score.per_level[:2]) < 0.7 and len(score.settings) == 3


def test_level_is_not_chosen_by_its_test_accuracy() -> None:
    table = toy(signal=20.0, levels=2)
    test = table.split == "test"
    table.features[0, ~test] = np.random.default_rng(1).normal(size=(int((~test).sum()), 40))  # good on test rows only
    table.features[1, test] = 0
    assert probe.evaluate(table, "linear").level == 1


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_test_rows_influence_no_choice(method: probe.Method) -> None:
    table = toy(signal=3.0, levels=3)
    test = np.flatnonzero(table.split == "test")
    label, features = table.label.copy(), table.features.copy()
    label[test] = np.random.default_rng(5).permutation(label[test])
    features[:, test] = 1e3 * np.random.default_rng(6).normal(size=features[:, test].shape)
    plain = probe.evaluate(table, method)
    for changed in (table._replace(label=label), table._replace(features=features)):
        other = probe.evaluate(changed, method)
        assert (other.level, other.settings, other.held_out) == (plain.level, plain.settings, plain.held_out)
        assert other.per_level != plain.per_level


def test_held_out_accuracy_is_that_of_groups_left_out() -> None:
    table = toy(signal=2.5)
    train = table.split == "train"
    x, label, group = table.features[0, train], table.label[train], table.group[train]
    accuracy = []
    for strength in probe.PENALTIES:
        right = 0
        for name in np.unique(group):
            out = group == name
            mean, deviation = x[~out].mean(0), x[~out].std(0)
            model = LogisticRegression(C=strength, max_iter=1000).fit((x[~out] - mean) / deviation, label[~out])
            right += (model.predict((x[out] - mean) / deviation) == label[out]).sum()
        accuracy.append(right / len(label))
    assert probe.evaluate(table, "linear").held_out[0] == pytest.approx(max(accuracy), abs=2 / len(label))


def test_neighbours_vote_by_cosine() -> None:
    table = toy(signal=2.5)
    x, rest = probe.standardise(table.features[0, :40], table.features[0, 40:])
    unit, other = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, rest))
    nearest = np.argmax(other @ unit.T, axis=1)
    classes, chance = probe._knn(x, 7 * rest, table.label[:40], [1])
    assert np.array_equal(classes[chance[0].argmax(1)], table.label[:40][nearest])


def test_nearer_neighbours_weigh_more_and_break_ties() -> None:
    angles = np.array([0.3, 0.1])  # class 0 is farther from the row in question than class 1
    fit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert probe._knn(fit, np.array([[1.0, 0.0]]), np.array([0, 1]), [2])[1][0, 0].argmax() == 1


def test_constant_pixels_are_read_at_chance_and_not_an_error() -> None:
    table = toy()
    flat = table._replace(features=table.features * 0 + 1)
    assert probe.evaluate(flat, "linear", prepare=probe.principal).accuracy == pytest.approx(1 / 3)


# ----------------------------------------------------------------------------------------------------- preparations


def test_rotation_into_the_span_keeps_every_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    table = toy(signal=3.0, width=300)
    train = table.split == "train"
    fit, rest = probe.standardise(table.features[0, train], table.features[0, ~train])
    inside, outside = probe.rotate(fit, rest)
    assert inside.shape == (train.sum(), train.sum()) and outside.shape == ((~train).sum(), train.sum())
    np.testing.assert_allclose(inside @ inside.T, fit @ fit.T, atol=1e-9)
    np.testing.assert_allclose(outside @ inside.T, rest @ fit.T, atol=1e-9)
    for strength in (1e-3, 1.0):
        full, small = (LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x, table.label[train])
                       for x in (fit, inside))
        np.testing.assert_allclose(small.predict_proba(outside), full.predict_proba(rest), atol=1e-5)
    monkeypatch.setattr(probe, "TOLERANCE", 1e-7)
    rotated = probe._linear(fit, rest, table.label[train], probe.PENALTIES)[1]
    monkeypatch.setattr(probe, "rotate", lambda fit, rest: (fit, rest))
    np.testing.assert_allclose(rotated, probe._linear(fit, rest, table.label[train], probe.PENALTIES)[1], atol=1e-3)


def test_scale_and_offset_of_a_column_change_nothing() -> None:
    table = toy(signal=3.0)
    rng = np.random.default_rng(2)
    moved = table.features * rng.uniform(0.01, 100, 40) + rng.normal(size=40) * 10
    dead = np.concatenate([moved, np.full((*moved.shape[:2], 2), 0.1)], axis=2)  # and constant columns carry nothing
    for method in ("linear", "knn"):
        assert probe.evaluate(table._replace(features=dead), method) == probe.evaluate(table, method)


def test_principal_components_are_those_of_the_fitted_rows() -> None:
    rng = np.random.default_rng(0)
    fit, rest = rng.normal(size=(200, 300)) @ rng.normal(size=(300, 300)) + 5, rng.normal(size=(7, 300))
    inside, outside = probe.principal(fit, rest)
    assert inside.shape == (200, 200) and outside.shape == (7, 200)
    _, values, axes = np.linalg.svd(fit - fit.mean(0), full_matrices=False)
    size = np.sqrt((values**2).mean() / 200)
    np.testing.assert_allclose(np.linalg.norm(inside, axis=0)[:-1], values[:-1] / size, rtol=1e-8)
    expected = (rest - fit.mean(0)) @ axes[:-1].T / size  # the last has no variance: 200 rows around their mean
    np.testing.assert_allclose(np.abs(outside[:, :-1]), np.abs(expected), rtol=1e-6)


def test_the_first_principal_components_hold_all_that_has_so_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "COMPONENTS", 32)
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(20, 60))
    fit, rest = rng.normal(size=(200, 20)) @ axes, rng.normal(size=(7, 20)) @ axes
    inside, outside = probe.principal(fit, rest)
    assert inside.shape == (200, 32)
    fit, rest = fit - fit.mean(0), rest - fit.mean(0)
    scale = np.linalg.norm(inside) / np.linalg.norm(fit)
    np.testing.assert_allclose(inside @ inside.T, scale**2 * fit @ fit.T, atol=1e-8)
    np.testing.assert_allclose(outside @ inside.T, scale**2 * rest @ fit.T, atol=1e-8)


# ------------------------------------------------------------------------------------------------------------- views


def many(signal: float = 0.6, noise: float = 3.0) -> Table:
    """A table of clips whose views have their own noise; the views' mean tells more than one of them."""
    table, rng = toy(signal=signal), np.random.default_rng(3)
    own, *views = (table.features + noise * rng.normal(size=table.features.shape) for _ in range(12))
    return table._replace(features=own, views=np.stack(views, axis=2))


def test_a_linear_probe_learns_from_all_views_and_hears_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As logistic regression of all views, and the largest mean probability of a clip's views; chosen by the first."""
    monkeypatch.setattr(probe, "CHOOSING", 2)
    table = many(signal=3.0)
    inside, fit = table.split == "train", table.every(0)[table.split == "train"]
    score = probe.evaluate(table, "linear")
    mean, deviation = (getattr(fit.reshape(-1, fit.shape[-1]), name)(0) for name in ("mean", "std"))
    model = LogisticRegression(C=score.settings[0], tol=1e-6, max_iter=5000).fit(
        ((fit - mean) / deviation).reshape(-1, fit.shape[-1]), np.repeat(table.label[inside], 12))
    rest = ((table.every(0)[~inside] - mean) / deviation).reshape(-1, fit.shape[-1])
    answers = model.predict_proba(rest).reshape(-1, 12, 3).mean(1).argmax(1)
    assert score.accuracy == pytest.approx((answers == table.label[~inside]).mean(), abs=1 / 24)
    alone = probe.evaluate(table._replace(views=None), "linear")
    assert score.accuracy > alone.accuracy + 0.1
    few = probe.evaluate(table._replace(views=table.views[:, :, :probe.CHOOSING - 1]), "linear")
    assert (score.settings, score.held_out) == (few.settings, few.held_out)
    assert score.accuracy > few.accuracy + 0.1


def test_neighbours_are_found_among_all_views_and_a_clips_views_answer_together() -> None:
    """As scikit-learn's weighted neighbours of every view, and the largest mean probability of a clip's views."""
    table = many(signal=2.0, noise=1.0)
    inside, every = table.split == "train", table.every(0)
    score = probe.evaluate(table, "knn")
    mean, deviation = (getattr(every[inside].reshape(-1, every.shape[-1]), name)(0) for name in ("mean", "std"))
    fit, rest = (((every[rows] - mean) / deviation).reshape(-1, every.shape[-1]) for rows in (inside, ~inside))
    model = KNeighborsClassifier(score.settings[0], metric="cosine", weights="distance")
    chance = model.fit(fit, np.repeat(table.label[inside], 12)).predict_proba(rest)
    answers = chance.reshape(-1, 12, 3).mean(1).argmax(1)
    assert score.accuracy == (answers == table.label[~inside]).mean() < 1
    assert score.accuracy > probe.evaluate(table._replace(views=None), "knn").accuracy


@pytest.mark.parametrize("k", [1, 3, 10])
def test_one_search_gives_every_number_of_neighbours_its_own_votes(k: int) -> None:
    table = toy(signal=1.0)
    fit, rest = table.features[0, :40], np.concatenate([table.features[0, 40:], table.features[0, :1]])  # one is known
    model = KNeighborsClassifier(k, metric="cosine", weights="distance").fit(fit, table.label[:40])
    classes, chance = probe._knn(fit, rest, table.label[:40], (10, 3, 1))
    assert np.array_equal(classes, model.classes_)
    np.testing.assert_allclose(chance[(10, 3, 1).index(k)], model.predict_proba(rest), atol=1e-6)


def test_methods_read_together_are_each_as_alone_and_rows_are_prepared_once() -> None:
    table, calls = many(signal=2.0), list[int]()

    def counted(fit: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(len(fit))
        return probe.principal(fit, rest)

    found = probe.together(table, ("linear", "knn"), prepare=counted)
    made = len(calls)
    alone = {method: probe.evaluate(table, method, prepare=counted) for method in ("linear", "knn")}
    assert list(found.items()) == list(alone.items()) and alone["linear"] != alone["knn"]
    assert len(calls) == 3 * made
    assert probe.together(table, (), prepare=counted) == {} and len(calls) == 3 * made


def test_views_that_repeat_a_clip_change_nothing() -> None:
    table = toy(signal=1.0)
    twice = table._replace(views=np.repeat(table.features[:, :, None], 1, axis=2))
    assert probe.evaluate(twice, "linear").accuracy == pytest.approx(probe.evaluate(table, "linear").accuracy, abs=0.1)
    with pytest.raises(ValueError, match="views of shape"):
        probe.evaluate(table._replace(views=table.features[:, :-1, None]), "linear")
    with pytest.raises(ValueError, match="not finite"):
        probe.evaluate(table._replace(views=table.features[:, :, None] * np.inf), "linear")


# ------------------------------------------------------------------------------------------- the report and the rest


def test_report_is_json_with_every_part_and_its_split_is_drawn_where_there_is_none() -> None:
    table = toy(signal=20.0, levels=2)
    other, pixels = table._replace(features=table.features * 0 + 1), table._replace(features=table.features[:1])
    report = probe.probe(table, {"random": other, "pixels": pixels})
    assert json.loads(json.dumps(report)) == report
    assert (report["n_train"], report["n_test"], report["groups"]) == (48, 24, len(report["rows_by_group"]))
    for method in ("linear", "knn"):
        part = report[method]
        assert part["accuracy"] == part["pixels"]["accuracy"] == 1.0
        assert part["random"]["accuracy"] == pytest.approx(1 / 3)
        for one in (part, part["random"], part["pixels"]):
            assert {"accuracy", "ci95", "ci_over", "level", "per_level"} <= set(one) and len(one["ci95"]) == 2
            assert np.mean(list(one["by_group"].values())) == pytest.approx(one["accuracy"])  # groups of one size
            assert one["by_group"].keys() == report["rows_by_group"].keys()
    lone = table._replace(group=np.arange(72).astype(str))
    apart = probe.probe(lone, {"pixels": lone}, ("knn",))
    assert apart["rows_by_group"] == apart["knn"]["by_group"] == {} and apart["groups"] == 24
    bare = [t._replace(split=np.full(72, "")) for t in (table, other, pixels)]
    drawn = probe.probe(bare[0], {"random": bare[1], "pixels": bare[2]}, ("linear",))
    assert drawn["n_test"] + drawn["n_train"] == 72 and "knn" not in drawn
    with pytest.raises(ValueError, match="pixels table differs from the trained one in label"):
        probe.probe(table, {"pixels": pixels._replace(label=pixels.label[::-1])})


def test_a_fold_that_teaches_one_class_still_counts() -> None:
    table = toy(signal=20.0, classes=2, groups=6)
    group = np.where(table.split == "test", table.group, np.array(["a", "b"])[table.label])  # a class is a group
    score = probe.evaluate(table._replace(group=group), "linear")
    assert score.held_out == (0.0,) and score.accuracy == 1.0


def test_few_rows_limit_the_neighbours() -> None:
    table = toy(signal=30.0, classes=2, groups=3, repeats=1)
    assert probe.evaluate(table, "knn").accuracy == 1.0


def test_unseen_test_class_is_wrong_and_not_an_error() -> None:
    table = toy(signal=20.0)
    label = np.where((table.split == "test") & (table.label == 2), 7, table.label)
    assert probe.evaluate(table._replace(label=label), "linear").accuracy == pytest.approx(2 / 3)


def test_a_fit_stopped_early_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LogisticRegression", lambda **named: LogisticRegression(**(named | {"max_iter": 1})))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe.evaluate(toy(signal=20.0), "linear").accuracy > 0.9


BROKEN = {
    "no label": lambda t: t._replace(label=np.where(np.arange(72) < 5, -1, t.label)),
    "1 class in 72": lambda t: t._replace(label=np.zeros(72, int)),
    "not finite": lambda t: t._replace(features=np.where(np.arange(40) == 3, np.nan, t.features)),
    "group of shape": lambda t: t._replace(group=t.group[1:]),
    "must be .levels, clips, numbers": lambda t: t._replace(features=t.features[0]),
    "split = 'val'": lambda t: t._replace(split=np.where(t.split == "test", "val", t.split)),
    "split = ''": lambda t: t._replace(split=np.where(t.split == "test", "", t.split)),
    "no row has split 'test'": lambda t: t._replace(split=np.full(72, "train")),
    "no row has split 'train'": lambda t: t._replace(split=np.full(72, "test")),
    "training clips in 1 class": lambda t: t._replace(label=np.where(t.split == "train", 0, t.label)),
    "cannot be split": lambda t: t._replace(split=np.full(72, ""), group=t.label.astype(str)),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_what_cannot_be_evaluated_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        probe.evaluate(BROKEN[reason](toy()), "linear")


def test_unknown_method_is_refused() -> None:
    # The tests check annotations; without that, evaluate refuses the name itself.
    with pytest.raises((ValueError, TypeCheckError), match="forest"):
        probe.evaluate(toy(), "forest")  # type: ignore[arg-type]
