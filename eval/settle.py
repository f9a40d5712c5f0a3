"""Does settling help a trained encoder to see what is hidden? Value nodes settle on what is seen, then predict.

    uv run python eval/settle.py runs/utd DATA/utd_mhad_depth/manifest.csv --out runs/settle

Takes a run that reads seen tokens (`learn.seen` above 0). At test time the seen tokens' own targets are evidence: every
level's value nodes descend on

    F = sum_l |z_l - f_l(z_{l-1})|^2 / 2 + W C D sum_l error of what is read of the seen tokens off z_l,

K steps at a rate, weights untouched; the hidden tokens' targets are no part of it. Then every level's predictor answers
for them. Two questions: hidden places at random (reconstruction), and the clip's later half (forecast). Errors are
given as fractions of what "no change at all" would cost: the prediction 0. Appends a row a question, W, rate and K to
OUT/settle.jsonl and prints a table.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cora import config
from cora.measure import evaluation, features
from cora.nets.hierarchy import build
from cora.pc import masks, settled
from cora.pc.energy import read
from cora.pc.infer import Inference, settle
from cora.pc.targets import error
from cora.schema import require
from cora.store import weights
from cora.types import Network, Params, Sight
from cora.video import manifest
from cora.video.ledger import Ledger

QUESTIONS = {"reconstruction": config.Mask(kinds=("random",), random=(0.75, 0.25)),
             "forecast": config.Mask(kinds=("future",), future=(1.0, 1.0), cut=0.5)}
STEPS, RATES, WEIGHTS = (0, 1, 4, 16), (0.1,), (0.1, 1.0, 10.0)


def fractions(
    network: Network, target: config.Target, weight: float, rule: Inference, params: Params, sight: Sight
) -> dict[str, jax.Array]:
    """Returns by level the errors of seen and hidden tokens as fractions of the prediction 0, and how far z has moved,
    |z - f| / |z|, after settling by `rule` on the seen tokens alone."""
    penalty = error(target)

    def seen(guess: list[jax.Array], goal: list[jax.Array]) -> jax.Array:
        return penalty(guess[1], goal[1])  # of one kind of mask: what is hidden, then what is seen

    asked = network._replace(level=network.level._replace(error=seen))
    energy, trees, evidence, _ = settled.problem(asked, params, params.encoder, sight)
    assert isinstance(energy.target, float)  # C D, alike for all levels
    rest, _ = settle(replace(energy, target=weight * energy.target), trees, evidence, rule)
    guesses, goals = read(energy, trees, rest.z, evidence.context)[0], evidence.goals[0]
    cost = jax.vmap(lambda g, t: jnp.mean(penalty(g, t)) / jnp.mean(penalty(jnp.zeros_like(t), t)))
    moved, whole = (jnp.sqrt(jnp.sum(jnp.square(x[0][0]), axis=(1, 2, 3))) for x in (rest.errors.state, rest.z))
    return {"hidden": cost(guesses[0], goals[0]), "seen": cost(guesses[1], goals[1]), "moved": moved / whole}


def rows(ckpt: Path, source: Path, clips: int) -> list[dict[str, Any]]:
    """Returns one row for each question, weight, rate and number of steps."""
    settings, _, params, _ = weights.read_run(ckpt)
    require(settings.learn.seen > 0, "learn.seen", settings.learn.seen, "the run reads no seen tokens; train one that "
            "does, as pretrain/utd_mhad_depth.py")
    network = build(settings.model, settings.target, settings.learn)
    labelled = evaluation.labelled(source)
    ledger = Ledger(ckpt / "bad_files_settle.csv", len(labelled.clips), settings.corpus.max_bad)
    test = manifest.select(labelled, "test")
    shown: list[np.ndarray] = []

    def keep(video: np.ndarray) -> np.ndarray:
        shown.append(video)
        return np.zeros((1, len(video), 1))

    features.tables({"it": keep}, replace(test, clips=test.clips[:clips]), settings, ledger)
    found = []
    for question, mask in QUESTIONS.items():
        kind = masks.kinds(mask, settings.model.grid)[mask.kinds[0]]
        for weight, rate, steps in [(w, r, k) for w in WEIGHTS for r in RATES for k in STEPS]:
            rule = Inference("state", steps=steps, optimiser=optax.sgd(rate))

            @jax.jit
            def answer(params: Params, video: jax.Array, key: jax.Array, kind: Any = kind, weight: float = weight,
                       rule: Inference = rule) -> dict[str, jax.Array]:
                drawn = (masks.sample(key, kind, video.shape[0]),)
                return fractions(network, settings.target, weight, rule, params, Sight(network.patches(video), drawn))

            each = [answer(params, video, jax.random.key(i)) for i, video in enumerate(shown)]
            mean = {name: np.mean([one[name] for one in each], axis=0).tolist() for name in each[0]}
            found.append({"question": question, "weight": weight, "rate": rate, "steps": steps, **mean})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Returns a Markdown table of the highest level and of the mean over levels."""
    lines = ["| question | W | rate | K | hidden, highest level | hidden, mean | seen, mean | moved, mean |",
             "|---|---|---|---|---|---|---|---|"]
    for row in found:
        cells = row["hidden"][-1], np.mean(row["hidden"]), np.mean(row["seen"]), np.mean(row["moved"])
        head = row["question"], row["weight"], row["rate"], row["steps"]
        lines.append(f"| {' | '.join(map(str, head))} | {' | '.join(f'{x:.3f}' for x in cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Settles a trained run's value nodes on test clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=128)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = rows(given.ckpt, given.manifest, given.clips)
    with (given.out / "settle.jsonl").open("a") as file:
        file.writelines(json.dumps({"ckpt": str(given.ckpt), **row}) + "\n" for row in found)
    print(table(found))


if __name__ == "__main__":
    main()
