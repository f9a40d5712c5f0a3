"""The attentive probe: a small transformer of V-JEPA 2's shape that is trained to read classes from frozen tokens.

Every pair (learning rate, weight decay) of a grid is trained at once, on all training groups but one part, for each
part in turn; the best there is trained again on all training rows and scored once on the test rows. This file knows
tokens and labels; it knows no encoder, no video and no file.
Source: V-JEPA 2 (arXiv 2506.09985), which reports the best of its grid on the very rows it is scored on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from cora.meaning import Count, Entries, Natural, Positive, Weight
from cora.measure.groups import judged, settle_split, training_folds
from cora.measure.probe import Score
from cora.measure.table import Table
from cora.nets.pooler import Classifier, init
from cora.nets.vit import apply
from cora.schema import check, choice, guard
from cora.types import Tree

Setting = tuple[float, float]
"""Learning rate, weight decay."""
CHUNK = 16
"""Clips answered at a time."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the probe is made and trained: AdamW (decaying all parameters) on a cosine from the learning rate to 0."""

    rates: Annotated[tuple[Positive, ...], Entries((1e-3,))] = (5e-3, 2e-3, 1e-3)
    decays: Annotated[tuple[Weight, ...], Entries((0.1,))] = (0.1,)
    epochs: Count = 60
    """Passes over the clips, each time in one of their views."""
    batch: Count = 16
    folds: Count = 5
    """Parts of the training groups that are held out in turn to choose a setting, at most; 1: the first part alone."""
    depth: Natural = 0
    """Self-attention layers before the query."""
    heads: Natural = 0
    """0: as many as the encoder has, without which Hugging Face cannot load the probe."""
    level: int = -1
    """Whose tokens are read; -1: the highest."""
    of: Literal["whole", "change", "placed"] = "placed"
    """Tokens told where they are (`features.waves`), as they are (V-JEPA; the only ones that Hugging Face can be given
    a probe of), or without their mean over time at the same place."""

    def __post_init__(self) -> None:
        check("attentive", self)

    @property
    def grid(self) -> tuple[Setting, ...]:
        """Every pair of the grid, the gentlest first: it wins a tie."""
        return tuple((rate, decay) for rate in sorted(self.rates) for decay in sorted(self.decays, reverse=True))


RECIPES = {
    "cpu": Recipe(),
    "meta": Recipe(rates=(5e-3, 3e-3, 1e-3, 3e-4, 1e-4), decays=(0.01, 0.1, 0.4, 0.8), depth=3, heads=16, batch=256,
                   epochs=20, folds=1, of="whole"),
}


@guard
def recipe(name: str, **changes: Any) -> Recipe:
    """Returns the recipe of this name with every field of `changes` that is not None. Raises ConfigError for an unknown
    name or a value that cannot be meant."""
    choice("grid", name, RECIPES)
    return replace(RECIPES[name], **{field: value for field, value in changes.items() if value is not None})


def heads_for(width: int, wanted: int, own: int) -> int:
    """Returns `wanted` heads, or the encoder's `own` where 0 are wanted, or where `wanted` do not divide the width or
    leave fewer than 4 channels a head."""
    return wanted if wanted and width % wanted == 0 and width // wanted >= 4 else own


class Fitted(NamedTuple):
    """A trained probe with its score."""

    score: Score
    weights: Tree
    classes: Int[np.ndarray, " c"]
    """The label that each output stands for."""


# --------------------------------------------------------------------------------------------------------- training


@partial(jax.jit, static_argnames=("probe", "epochs", "batch"))
def train(
    probe: Classifier, tokens: Float[Array, "n V N D"], label: Int[Array, " n"], settings: Float[Array, "G 2"],
    key: Array, *, epochs: int, batch: int,
) -> Tree:
    """Returns the parameters after `epochs` passes of mean cross-entropy, every leaf [G, ...], one row a setting.

    All settings begin with the same parameters and see the same batches; each pass shuffles the clips anew, draws a
    view of each, and leaves out those that fill no batch.
    """
    n, size = len(label), min(batch, len(label))
    start, order = jax.random.split(key)
    rows = jax.vmap(lambda k: jax.random.permutation(k, n))(jax.random.split(order, epochs))
    rows = rows[:, : n // size * size].reshape(epochs, -1, size)
    views = jax.random.randint(jax.random.fold_in(key, 2), rows.shape, 0, tokens.shape[1])
    first = init(probe, tokens.shape[-1], start)

    def loss(weights: Tree, mine: Int[Array, " b"], view: Int[Array, " b"]) -> Float[Array, ""]:
        scores = apply(probe, weights, tokens[mine, view])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, label[mine]))

    def alone(setting: Float[Array, "2"]) -> Tree:
        schedule = optax.cosine_decay_schedule(setting[0], rows.shape[0] * rows.shape[1])
        tx = optax.adamw(schedule, weight_decay=setting[1])

        def step(carry: tuple, own: tuple[Int[Array, " b"], Int[Array, " b"]]) -> tuple[tuple, None]:
            weights, moments = carry
            change, moments = tx.update(jax.grad(loss)(weights, *own), moments, weights)
            return (optax.apply_updates(weights, change), moments), None

        def epoch(carry: tuple, own: tuple[Int[Array, "s b"], Int[Array, "s b"]]) -> tuple[tuple, None]:
            return jax.lax.scan(step, carry, own)[0], None

        return jax.lax.scan(epoch, (first, tx.init(first)), (rows, views))[0][0]

    return jax.vmap(alone)(settings)


@partial(jax.jit, static_argnames="probe")
def _answer(probe: Classifier, weights: Tree, tokens: Float[Array, "n V N D"]) -> Int[Array, "G n"]:
    def one(own: Tree) -> Int[Array, " n"]:
        each = apply(probe, own, tokens.reshape(-1, *tokens.shape[2:])).reshape(*tokens.shape[:2], -1)
        return jnp.argmax(jnp.mean(jax.nn.softmax(each), axis=1), axis=-1)

    return jax.vmap(one)(weights)


def answer(probe: Classifier, weights: Tree, tokens: Float[np.ndarray, "n V N D"]) -> Int[np.ndarray, "G n"]:
    """Returns the class that each of the stacked probes sees in each clip, by the mean of its views' probabilities."""
    found = []
    for first in range(0, len(tokens), CHUNK):
        part = tokens[first : first + CHUNK]
        whole = np.concatenate([part, np.repeat(part[-1:], CHUNK - len(part), axis=0)])  # nothing compiles twice
        found.append(np.asarray(_answer(probe, weights, whole))[:, : len(part)])
    return np.concatenate(found, axis=1)


# -------------------------------------------------------------------------------------------------------- evaluation


def evaluate(table: Table, tokens: int, plan: Recipe, heads: int, *, seed: int = 0) -> Fitted:
    """Returns the probe trained on the training rows of a table of one level, and its accuracy on the test rows.

    Each row of the features holds `tokens` tokens one after the other; every view of a clip is learned from, and heard
    when it is answered for. The setting is the one that is best on `plan.folds` of the folds of the training groups,
    each when trained on all others. Raises ValueError as `table.require` does, if either split is empty, if training
    has too few rows or classes, or for features of other than one level.
    """
    if table.features.shape[0] != 1 or table.features.shape[2] % tokens:
        raise ValueError(f"features of shape {table.features.shape}: must be [1, clips, {tokens} * width]")
    table = settle_split(table, seed)
    train_rows, test = table.split == "train", table.split == "test"
    every = table.every(0)
    x = np.asarray(every.reshape(*every.shape[:2], tokens, -1), np.float32)
    fold = training_folds(table, seed)
    classes, label = np.unique(table.label[train_rows], return_inverse=True)
    probe = Classifier(heads, plan.depth, len(classes))
    fit = partial(_fit, probe, plan, seed=seed)
    inside, right_of = x[train_rows], []
    for part in range(min(plan.folds, fold.max() + 1)):
        out = fold == part
        right_of.append(answer(probe, fit(inside[~out], label[~out], plan.grid), inside[out]) == label[out])
    held_out = np.concatenate(right_of, axis=1).mean(1)
    best = int(np.argmax(held_out))
    weights = fit(inside, label, plan.grid[best : best + 1])
    right = classes[answer(probe, weights, x[test])[0]] == table.label[test]
    found = judged(right, table.group[test], seed)
    score = Score(*found, plan.level, (found.accuracy,), (plan.grid[best],), (float(held_out[best]),),
                  tuple(right.tolist()))
    return Fitted(score, jax.tree.map(lambda leaf: np.asarray(leaf[0]), weights), classes)


def _fit(probe: Classifier, plan: Recipe, tokens: np.ndarray, label: np.ndarray, grid: Sequence[Setting], *,
         seed: int) -> Tree:
    return train(probe, jnp.asarray(tokens), jnp.asarray(label), jnp.asarray(grid, jnp.float32), jax.random.key(seed),
                 epochs=plan.epochs, batch=plan.batch)
