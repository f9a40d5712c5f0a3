"""Does settling help a trained encoder to see what is hidden? Value nodes settle on what is seen, then predict.

    uv run python eval/settle.py runs/utd DATA/utd_mhad_depth/manifest.csv --out runs/settle

Takes a run that reads seen tokens (`learn.seen` above 0). At test time the seen tokens' own targets are evidence: every
level's value nodes descend on

    F = sum_l |z_l - f_l(z_{l-1})|^2 / 2 + W C D sum_l error of what is read of the seen tokens off z_l

at a rate, weights untouched; the hidden tokens' targets are no part of it. Before every step each level's predictor
answers for the hidden ones. Two questions: hidden places at random (reconstruction), and the clip's later half
(forecast). Errors are given as fractions of what "no change at all" would cost: the prediction 0. Appends a row a
question and W to OUT/settle.jsonl, prints a table, and draws OUT/settle.png.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float

from cora import config
from cora.measure import evaluation, features
from cora.nets.hierarchy import build
from cora.pc import masks, settled
from cora.pc.energy import Trees, read
from cora.pc.infer import Inference, Settled, settle_and_learn
from cora.pc.targets import error
from cora.schema import require
from cora.store import weights
from cora.types import Network, Params, Sight
from cora.video import manifest
from cora.video.ledger import Ledger

QUESTIONS = {"reconstruction": config.Mask(kinds=("random",), random=(0.75, 0.25)),
             "forecast": config.Mask(kinds=("future",), future=(1.0, 1.0), cut=0.5)}
SHOWN = 0, 1, 4, 16, 64, 256
Curve = dict[str, Float[Array, "K L"]]


def course(network: Network, target: config.Target, steps: int, rate: float, params: Params, sight: Sight,
           weight: Float[Array, ""]) -> Curve:
    """Returns, after 0 ... `steps` steps and by level, the errors of seen and hidden tokens as fractions of the
    prediction 0, and how far z has moved, |z - f| / |z|, while it settles on the seen tokens alone."""
    penalty = error(target)

    def seen(guess: list[Array], goal: list[Array]) -> Array:
        return weight * penalty(guess[1], goal[1])  # of one kind of mask: what is hidden, then what is seen

    asked = network._replace(level=network.level._replace(error=seen))
    energy, trees, evidence, _ = settled.problem(asked, params, params.encoder, sight)
    goals = evidence.goals[0]
    cost = jax.vmap(lambda g, t: jnp.mean(penalty(g, t)) / jnp.mean(penalty(jnp.zeros_like(t), t)))

    def note(learned: tuple[Trees, Curve], here: Settled, step: Array) -> tuple[Trees, Curve]:
        guesses = read(energy, trees, here.z, evidence.context)[0]
        moved, whole = (jnp.sqrt(jnp.sum(jnp.square(x[0][0]), axis=(1, 2, 3))) for x in (here.errors.state, here.z))
        row = {"hidden": cost(guesses[0], goals[0]), "seen": cost(guesses[1], goals[1]), "moved": moved / whole}
        return learned[0], {name: learned[1][name].at[step].set(row[name]) for name in row}

    empty = {name: jnp.zeros((steps + 1, energy.depth)) for name in ("hidden", "seen", "moved")}
    rule = Inference("state", steps=steps + 1, optimiser=optax.sgd(rate))
    return settle_and_learn(energy, (trees, empty), evidence, rule, note)[0][1]


def pictures(settings: config.Pretrain, source: Path, bad: Path, clips: int | None = None) -> list[np.ndarray]:
    """Returns the first `clips` test clips, or all, in batches; those that cannot be read go to the ledger `bad`."""
    labelled = evaluation.labelled(source)
    ledger = Ledger(bad, labelled.paths, settings.corpus.max_bad)
    test = manifest.select(labelled, "test")
    read = features.batches(replace(test, clips=test.clips[:clips]), settings, ledger)
    return [video[:, 0] for _, video in read]


def rows(
    ckpt: Path, source: Path, clips: int, steps: int, rate: float, strengths: Sequence[float]
) -> list[dict[str, Any]]:
    """Returns one row for each question and weight: the mean course over the test clips."""
    settings, _, params, _ = weights.read_run(ckpt)
    require(settings.learn.seen > 0, "learn.seen", settings.learn.seen, "the run reads no seen tokens; train one that "
            "does, as pretrain/utd_mhad_depth.py")
    network = build(settings.model, settings.target, settings.learn)
    shown = pictures(settings, source, ckpt / "bad_files_settle.csv", clips)
    found = []
    for question, mask in QUESTIONS.items():
        kind = masks.kinds(mask, settings.model.grid)[mask.kinds[0]]

        @jax.jit
        def answer(params: Params, video: Array, key: Array, weight: Array, kind: Any = kind) -> Curve:
            drawn = (masks.sample(key, kind, video.shape[0]),)
            sight = Sight(network.patches(video), drawn)
            return course(network, settings.target, steps, rate, params, sight, weight)

        for weight in strengths:
            each = [answer(params, video, jax.random.key(i), jnp.float32(weight)) for i, video in enumerate(shown)]
            mean = {name: np.mean([one[name] for one in each], axis=0).tolist() for name in each[0]}
            found.append({"question": question, "weight": weight, "rate": rate, **mean})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Returns a Markdown table of the highest level and of the mean over levels."""
    lines = ["| question | W | steps | hidden, highest level | hidden, mean | seen, mean | moved, mean |",
             "|---|---|---|---|---|---|---|"]
    for row in found:
        for k in SHOWN:
            if k < len(row["hidden"]):
                cells = row["hidden"][k][-1], *(np.mean(row[name][k]) for name in ("hidden", "seen", "moved"))
                head = row["question"], row["weight"], k
                lines.append(f"| {' | '.join(map(str, head))} | {' | '.join(f'{x:.3f}' for x in cells)} |")
    return "\n".join(lines)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draws what settling does to the mean error of seen and of hidden tokens."""
    figure, axes = plt.subplots(1, len(QUESTIONS), figsize=(9, 3.2), sharey=True, layout="constrained")
    for panel, question in zip(axes, QUESTIONS, strict=True):
        for i, row in enumerate(one for one in found if one["question"] == question):
            for name, dash in (("hidden", "-"), ("seen", ":")):
                panel.plot(np.mean(row[name], axis=1), dash, color=f"C{i}", label=f"{name}, W {row['weight']:g}")
        panel.set(title=question, xlabel="steps of inference", ylabel="error / that of the prediction 0")
        panel.set_xscale("symlog", linthresh=1)
        panel.grid(alpha=0.3)
    axes[-1].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Settles a trained run's value nodes on test clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0, 10.0, 100.0], help="W")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = rows(given.ckpt, given.manifest, given.clips, given.steps, given.rate, given.weights)
    with (given.out / "settle.jsonl").open("a") as file:
        file.writelines(json.dumps({"ckpt": str(given.ckpt), **row}) + "\n" for row in found)
    draw(found, given.out / "settle.png")
    print(table(found))


if __name__ == "__main__":
    main()
