"""Frozen evaluation: how well classes are read from features that no label has touched.

A simple classifier (multinomial logistic regression, cosine nearest neighbours) is fitted to the training rows
of a table and scored once on its test rows. Level and hyper-parameter are chosen on held-out training groups,
so that no test row can influence them. This file is the only one that uses scikit-learn; it knows no video,
no encoder and no file.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from cora.measure.groups import judged, paired, settle_split, sizes, training_folds
from cora.measure.table import Table

Method = Literal["linear", "knn"]
Number = int | float

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""C of the logistic regression (inverse strength of L2), strongest penalty first: it wins a tie."""
TOLERANCE = 1e-3
"""Steepest slope of the mean loss at which the logistic fit stops; 1e-4 doubles the time and moves accuracy 0.005."""
NEIGHBOURS = (20, 10, 5, 3, 1)
"""k of the nearest neighbours, smoothest first: it wins a tie."""
CHOOSING = 9
"""Settings are chosen by so many views of each clip, the first ones, for speed; the last fit has them all."""
COMPONENTS = 512
"""At most so many principal components are kept by `principal`."""


class Score(NamedTuple):
    """What one method reads from one table; the first four as in `Judged`, at the chosen level."""

    accuracy: float
    ci95: tuple[float, float]
    ci_over: Literal["groups", "clips"]
    by_group: dict[str, float]
    level: int
    """Chosen on held-out training groups, or by the reader of an attentive probe; from 0."""
    per_level: tuple[float, ...]
    """Test accuracy of each level at its own setting; an attentive probe reads but one."""
    settings: tuple[Number | tuple[Number, Number], ...]
    """C, k, or (learning rate, weight decay) of each level, chosen on held-out training groups."""
    held_out: tuple[float, ...]
    """Accuracy of each level on held-out training groups, at its setting."""
    right: tuple[bool, ...]
    """Which of the test rows the chosen level answers rightly."""


# ------------------------------------------------------------------------------------------------ whole evaluations


def probe(trained: Table, others: Mapping[str, Table], methods: Sequence[Method] = ("linear", "knn"), *,
          seed: int = 0) -> dict[str, Any]:
    """Returns the evaluation of an encoder beside that of `others` (its random initialisation, pixels), for JSON.

    {method: {accuracy, ci95, ci_over, by_group, level, per_level, settings, held_out, and for each name of the others
    the same and how far the encoder is ahead of it, as `paired` says}, chance, n_train, n_test, groups, rows_by_group},
    where `groups` counts the named groups of the test rows. All are read through their principal components. Raises
    ValueError as `evaluate` does, and if the tables are not of the same clips in the same order.
    """
    for name, other in others.items():
        for column in ("label", "group", "split"):
            if not np.array_equal(getattr(trained, column), getattr(other, column)):
                raise ValueError(f"the {name} table differs from the trained one in {column}: "
                                 "all must hold the same clips in the same order")
    each = {name: together(table, methods, seed=seed, prepare=principal)
            for name, table in {"trained": trained, **others}.items()}
    split = settle_split(trained, seed).split
    group = trained.group[split == "test"]
    report: dict[str, Any] = {method: beside({name: scores[method] for name, scores in each.items()}, group, seed)
                              for method in methods}
    return report | {"chance": 1 / len(np.unique(trained.label)),
                     "n_train": int((split == "train").sum()), "n_test": int((split == "test").sum()),
                     "groups": len(set(group.tolist()) - {""}), "rows_by_group": sizes(group)}


def beside(scores: Mapping[str, Score], group: np.ndarray, seed: int) -> dict[str, Any]:
    """Returns the first score as JSON holds it, with the others by their names, and how far it is ahead of each."""
    (_, own), *others = scores.items()
    return plain(own) | {name: plain(other) | paired(np.array(own.right), np.array(other.right), group, seed)
                         for name, other in others}


def evaluate(table: Table, method: Method, *, seed: int = 0, prepare: "Prepare | None" = None) -> Score:
    """Returns the test accuracy of one method, as `together` does."""
    return together(table, (method,), seed=seed, prepare=prepare)[method]


def together(table: Table, methods: Sequence[Method], *, seed: int = 0, prepare: "Prepare | None" = None,
             ) -> dict[Method, Score]:
    """Returns the test accuracy of each method, with everything it has to choose chosen on training rows alone.

    Every view of a clip is learned from, or is a neighbour that may be found, and a clip is answered for by the mean of
    its views' probabilities. For each level, the setting with the best accuracy on held-out training groups is refitted
    on all training rows; the level is chosen by the same held-out accuracy. `prepare` brings rows to a common scale, by
    default `standardise`; it learns from the rows of each fit alone, once for all methods. Raises ValueError as
    `table.require` does, for an unknown method, and if either split is empty or training has too few rows or classes to
    hold any out.
    """
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"method = {method!r}: must be one of {', '.join(METHODS)}")
    if not methods:
        return {}
    table = settle_split(table, seed)
    train, test = table.split == "train", table.split == "test"
    label, fold = table.label[train], training_folds(table, seed)
    ways = [_offered(method, int(len(label) - np.bincount(fold).max())) for method in methods]
    # One thread: for products of a few hundred rows, a busy machine's threads wait on each other 100 times longer.
    with threadpool_limits(1):
        levels = []
        for i in range(len(table.features)):
            x = table.every(i)
            levels.append(_level(x[train], label, fold, x[test], prepare or standardise, ways))

    def score(own: Sequence[Chosen]) -> Score:
        settings, held_out, answers = zip(*own, strict=True)
        level = int(np.argmax(held_out))
        right = np.stack(answers) == table.label[test]
        per_level = tuple(right.mean(1).tolist())
        return Score(*judged(right[level], table.group[test], seed), level, per_level, settings, held_out,
                     tuple(right[level].tolist()))

    return {method: score(own) for method, own in zip(methods, zip(*levels, strict=True), strict=True)}


def plain(score: Score) -> dict[str, Any]:
    """Returns the score as JSON holds it, without every row's answer."""
    def bare(value: Any) -> Any:
        return [bare(one) for one in value] if isinstance(value, tuple) else value

    return {name: bare(value) for name, value in score._asdict().items() if name != "right"}


class Chosen(NamedTuple):
    """What one method makes of one level."""

    setting: Number
    held_out: float
    answers: np.ndarray
    """For the test clips."""


def _level(x: np.ndarray, label: np.ndarray, fold: np.ndarray, x_test: np.ndarray, prepare: "Prepare",
           ways: Sequence["Way"]) -> list[Chosen]:
    """Returns what each method chooses and answers; x is [clip, view, F]."""
    few = x[:, :CHOOSING]
    right = [np.zeros((len(grid), len(label)), bool) for _, grid in ways]
    for held in range(fold.max() + 1):
        out = fold == held
        rows = _prepared(few[~out], few[out], prepare)
        for own, (predict, grid) in zip(right, ways, strict=True):
            own[:, out] = _answers(*rows, label[~out], predict, grid) == label[out]
    rows = _prepared(x, x_test, prepare)
    found = []
    for own, (predict, grid) in zip(right, ways, strict=True):
        accuracy = own.mean(1)
        best = int(np.argmax(accuracy))
        # The whole path up to the chosen setting, so that the last fit starts from where it started in the folds.
        answers = _answers(*rows, label, predict, grid[:best + 1])[-1]
        found.append(Chosen(grid[best], float(accuracy[best]), answers))
    return found


def _prepared(fit: Float[np.ndarray, "m V F"], rest: Float[np.ndarray, "r V F"], prepare: "Prepare",
              ) -> tuple[Float[np.ndarray, "m V P"], Float[np.ndarray, "r V P"]]:
    """Returns the views of both, prepared by what those of `fit` can teach."""
    many = fit.shape[1]
    rows = prepare(fit.reshape(-1, fit.shape[-1]), rest.reshape(-1, rest.shape[-1]))
    mine, its = (x.reshape(-1, many, x.shape[-1]) for x in rows)
    return mine, its


def _answers(fit: Float[np.ndarray, "m V P"], rest: Float[np.ndarray, "r V P"], label: np.ndarray, predict: "Predict",
             grid: Sequence[Number]) -> Int[np.ndarray, "G r"]:
    """Returns each setting's answers for the clips of `rest`, by the mean of their views' probabilities."""
    many, width = fit.shape[1:]
    classes, chance = predict(fit.reshape(-1, width), rest.reshape(-1, width), np.repeat(label, many), grid)
    return classes[chance.reshape(len(grid), len(rest), many, -1).mean(2).argmax(-1)]


# ------------------------------------------------------------------------------------------------------ preparations


Prepare = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(rows to fit, rows to answer for) -> both, prepared by what the first alone can teach."""


def standardise(fit: Float[np.ndarray, "m F"], rest: Float[np.ndarray, "r F"],
                ) -> tuple[Float[np.ndarray, "m F"], Float[np.ndarray, "r F"]]:
    """Returns both with the mean of `fit` taken away and divided by its deviation; constant columns become 0."""
    mean, deviation = fit.mean(0), fit.std(0)
    varies = deviation > 1e-9 * np.abs(fit).max(0)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
    return (fit - mean) * scale, (rest - mean) * scale


def principal(fit: Float[np.ndarray, "m F"], rest: Float[np.ndarray, "r F"],
              ) -> tuple[Float[np.ndarray, "m P"], Float[np.ndarray, "r P"]]:
    """Returns both on the first P = min(COMPONENTS, m, F) principal components of `fit`, divided by one number.

    For numbers of one unit, as pixels and latents are: to give each the same deviation would raise the noise of those
    that hardly ever change to the height of those that tell classes apart. Where there are more than COMPONENTS, the
    first are found by random projection and one power iteration (Halko et al. 2011), so only nearly.
    """
    mean = fit.mean(0)
    fit, rest = fit - mean, rest - mean
    if min(fit.shape) > COMPONENTS:  # exactly, a small corpus seen in many views would take minutes
        axes = randomized_svd(fit, COMPONENTS, n_iter=1, random_state=0)[2].T
    else:
        fit, rest = rotate(fit, rest)
        axes = np.linalg.svd(fit, full_matrices=False)[2].T
    fit, rest = fit @ axes, rest @ axes
    size = np.sqrt(np.square(fit).mean()) or 1.0
    return fit / size, rest / size


def rotate(fit: Float[np.ndarray, "m F"], rest: Float[np.ndarray, "r F"],
           ) -> tuple[Float[np.ndarray, "m D"], Float[np.ndarray, "r D"]]:
    """Returns both in an orthonormal basis of a space that holds every row of `fit`; D = min(m, F).

    With fit^T = Q R, fit Q = R^T. The optimum of L2-regularised logistic regression is a combination of the rows
    it is fitted to, so nothing outside their span matters, and a rotation changes neither penalty nor scores: the
    predictions are those of all F numbers, at the cost of m. (Short of the optimum, by TOLERANCE, a few differ.)
    """
    if fit.shape[1] <= fit.shape[0]:
        return fit, rest
    basis, triangle = np.linalg.qr(fit.T)
    return triangle.T, rest @ basis


# ------------------------------------------------------------------------------------------------------- classifiers


Predict = Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[Number]], tuple[np.ndarray, np.ndarray]]
"""(rows to fit, rows to answer for, labels, settings) -> classes, and their probabilities [setting, row, class]."""


def _linear(fit: np.ndarray, rest: np.ndarray, label: np.ndarray, grid: Sequence[Number],
            ) -> tuple[np.ndarray, np.ndarray]:
    if (label == label[0]).all():  # all that a fold of one class can teach
        return label[:1], np.ones((len(grid), len(rest), 1))
    fit, rest = rotate(fit, rest)
    model = LogisticRegression(tol=TOLERANCE, max_iter=1000, warm_start=True)
    found = []
    with warnings.catch_warnings():
        # A fit that stops early is a valid classifier with a little more shrinkage, chosen and scored as it is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in grid:
            found.append(model.set_params(C=strength).fit(fit, label).predict_proba(rest))
    return model.classes_, np.stack(found)


def _knn(fit: np.ndarray, rest: np.ndarray, label: np.ndarray, grid: Sequence[Number]) -> tuple[np.ndarray, np.ndarray]:
    # Sought once for the whole grid: among all views of a large corpus a search takes seconds.
    distance, near = NearestNeighbors(n_neighbors=int(max(grid)), metric="cosine").fit(fit).kneighbors(rest)
    # Votes are weighted by 1 / distance, else a tie would go to the class with the lowest number.
    weight = 1 / np.maximum(distance, np.finfo(distance.dtype).tiny ** 0.5)
    classes, dense = np.unique(label, return_inverse=True)
    chance = np.zeros((len(grid), len(rest), len(classes)))
    for votes, k in zip(chance, map(int, grid), strict=True):
        np.add.at(votes, (np.arange(len(rest))[:, None], dense[near[:, :k]]), weight[:, :k])
        votes /= votes.sum(1, keepdims=True)
    return classes, chance


Way = tuple[Predict, tuple[Number, ...]]
"""A classifier and the settings it chooses from."""
METHODS: dict[str, Way] = {"linear": (_linear, PENALTIES), "knn": (_knn, NEIGHBOURS)}


def _offered(method: Method, rows: int) -> Way:
    """Returns a method with those of its settings that a fit to so many rows can have."""
    predict, grid = METHODS[method]
    return predict, tuple(k for k in grid if k <= rows) if method == "knn" else grid
