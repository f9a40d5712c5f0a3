"""The control with labels: a recipe's encoder trained to tell classes apart, at equal steps, from scratch or, with
`run.start`, on from a pretrained encoder.

    uv run python eval/supervised.py pretrain/utd_mhad_depth.py DATA/utd_mhad_depth/manifest.csv --seeds 0 1 2

Same encoder, clips, crops, optimiser, schedule, steps and batch as the recipe's; on top of it the attentive probe's
query, trained with it by end-to-end backprop of the cross-entropy. A test clip is answered for as the probes do: by the
mean probability of its centre view and random ones. Prints one JSON object a seed.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cora import config, train
from cora.cli import load_recipe
from cora.measure import evaluation, features
from cora.measure.attentive import heads_for
from cora.measure.groups import judged
from cora.nets.hierarchy import build, latents
from cora.nets.pooler import Classifier, init
from cora.nets.vit import apply
from cora.types import Params
from cora.video import manifest
from cora.video.clips import clips
from cora.video.ledger import Ledger

Row = dict[str, Any]
Weights = tuple[Params, Any]
"""Of the encoder (and predictors, which nothing moves) and of the probe."""


def scores(recipe: config.Pretrain, classes: int) -> tuple[Callable[[jax.Array], Weights], Callable[..., jax.Array]]:
    """Returns (key -> first weights, (weights, uint8 clips) -> scores of the classes)."""
    network, model = build(recipe.model), recipe.model
    probe = Classifier(heads_for(model.width, 0, model.heads), 0, classes)

    def first(key: jax.Array) -> Weights:
        return network.init(key), init(probe, model.width, jax.random.fold_in(key, 1))

    def of(weights: Weights, video: jax.Array) -> jax.Array:
        return apply(probe, weights[1], latents(network, weights[0].encoder, video)[-1])

    return first, of


def fit(recipe: config.Pretrain, rows: manifest.Manifest, ledger: Ledger) -> Callable[[np.ndarray], np.ndarray]:
    """Returns uint8 clips -> probabilities of the classes, as learned from the rows in the recipe's steps."""
    model, run = recipe.model, recipe.run
    first, of = scores(recipe, len(rows.classes))
    tx = train.optimiser(recipe.optim, run.steps)

    @jax.jit
    def step(weights: Weights, moments: Any, video: jax.Array, label: jax.Array) -> tuple[Weights, Any, jax.Array]:
        def loss(weights: Weights) -> jax.Array:
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(of(weights, video), label))

        value, gradient = jax.value_and_grad(loss)(weights)
        update, moments = tx.update(gradient, moments, weights)
        return optax.apply_updates(weights, update), moments, value

    weights = jax.jit(first)(jax.random.key(run.seed))
    begin = train.given(recipe)[0]
    if begin is not None:
        weights = begin, weights[1]
    moments = tx.init(weights)
    batches = iter(clips(rows, recipe.corpus, frames=model.frames, size=model.size, batch=run.batch, seed=run.seed,
                         ledger=ledger))
    for i in range(run.steps):
        batch = next(batches)
        weights, moments, loss = step(weights, moments, batch["video"], batch["label"])
        if (i + 1) % 100 == 0:
            print(f"with labels: step {i + 1}, loss {float(loss):.3f}", flush=True)
    return jax.jit(lambda video: jax.nn.softmax(of(weights, video)))


def run(recipe: config.Pretrain, source: Path, folder: Path, views: int = evaluation.VIEWS) -> Row:
    """Trains on the labelled training rows of a corpus and returns the accuracy on its test rows, with its interval.

    They are the rows that the probes learn from and answer for, whatever the recipe's seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = evaluation.settled(evaluation.labelled(source), 0)
    ledger = Ledger(folder / "bad_files.csv", rows.paths, recipe.corpus.max_bad)
    answer = fit(recipe, manifest.select(rows, "train"), ledger)
    table = features.tables({"it": lambda video: np.asarray(answer(video))[None]}, rows, recipe, ledger, views)["it"]
    test = table.split == "test"
    right = table.every(0)[test].mean(1).argmax(1) == table.label[test]
    return judged(right, table.group[test], 0)._asdict()


def main() -> None:
    """One training with labels a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/supervised"))
    parser.add_argument("--views", type=int, default=evaluation.VIEWS, help="random views of a clip, as cora probe's")
    given = parser.parse_args()
    recipe = load_recipe(given.recipe)
    for seed in given.seeds:
        print(json.dumps(run(replace(recipe, run=replace(recipe.run, seed=seed)), given.manifest, given.out,
                             given.views)))


if __name__ == "__main__":
    main()
