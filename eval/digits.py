"""Classification and compression of digits: the rules of predictive coding against backprop, and what each costs.

    uv run python eval/digits.py --out runs/digits

`classify`: 3 hidden layers of ReLU, 10 outputs, squared error on one-hot classes; every rule on scikit-learn's digits
(100 units), those of JPC's example on the 5,000 MNIST digits (300 units). `compress`: an autoencoder through 20 units,
whose goal is its input; and a decoder alone, whose latent is inferred. Adam at 1e-3, batches of 64. Scores are of the
forward pass; only the decoder's latents are inferred when it is tested. What OUT holds already is not run again.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from tasks import Data, Judge, accuracy, evidence, load, once, one_hot, output, rows_of, save, spread, table, train

from cora.nets import chain as nets
from cora.nets.chain import Chain
from cora.pc import energy as F
from cora.pc.infer import settle
from cora.pc.learn import Learner, Rule, step
from cora.pc.presets import preset

MARKS = (100, 200, 300)
RULES: dict[str, tuple[()] | tuple[int, float]] = {
    "bp": (), "pc": (8, 0.5), "pc, rate/64": (8, 0.5 / 64), "pc_ode": (), "epc": (5, 0.001),
    "zil": (), "fixed_pred": (8, 0.5), "strict": (8, 0.5), "ipc": (8, 0.5), "accumulate": (8, 0.5),
    "nudged": (8, 0.5), "local": (),
}
"""Preset -> inference steps and rate, where it takes them; JPC's energy is a mean over the batch of 64, so that its
rates are 64 times smaller here. `local` has no error but the top's: its lower levels stay as they were drawn."""


def smaller(chain: Chain) -> Chain:
    """Returns the chain with initial weights of variance 1/(3 inputs), Equinox's and so JPC's.

    With 1/inputs a rate of .5 is past the stability of inference: state optimisation then learns worse.
    """
    return chain._replace(init=lambda key: jax.tree.map(lambda leaf: leaf / 3**0.5, chain.init(key)))


def flops(chain: Chain, rule: Rule, x: np.ndarray, goal: np.ndarray) -> float:
    """Returns the floating-point operations of one training step by XLA's count, Adam's among them.

    XLA counts the body of a loop once, so loops are unrolled for the count; a flow's length is not known beforehand.
    """
    if rule[0].variable == "flow":
        return float("nan")
    tx = optax.adam(1e-3)
    params = chain.init(jax.random.key(0))
    learner = Learner(params, tx.init(params))
    energy = F.Energy(chain.hierarchy)
    with mock.patch.object(jax.lax, "scan", partial(jax.lax.scan, unroll=True)):
        lowered = jax.jit(lambda s, x, t: step(energy, s, evidence(chain, x, t), rule, tx)[0]).lower(learner, x, goal)
    counted: Any = lowered.compile().cost_analysis()
    return float(counted["flops"])


def study(
    file: Path, task: str, chain: Chain, rules: tuple[str, ...], sets: list[Data], judge: Judge,
    goals: Callable[[Data], np.ndarray],
) -> None:
    """Makes one row a rule: scores of every seed after each of MARKS, flops of a step, seconds of all seeds."""
    pairs = [(data.train[0], goals(data)) for data in sets]

    def one(name: str) -> dict[str, Any]:
        rule = preset(name.split(",")[0], chain.hierarchy, *RULES[name])
        begun = time.perf_counter()
        _, marks = train(chain, rule, pairs, steps=max(MARKS), report=MARKS, judge=judge)
        return {"settings": RULES[name], "scores": [marks[m] for m in MARKS],
                "seconds_of_all_seeds": time.perf_counter() - begun,
                "flops": flops(chain, rule, pairs[0][0][:64], pairs[0][1][:64])}

    for name in rules:
        once(file, {"task": task, "rule": name}, partial(one, name))


def reconstruction(chain: Chain, sets: list[Data]) -> Judge:
    """Returns a judge: the autoencoder's squared error of a pixel on a seed's test pictures, times 1000."""
    miss = jax.jit(lambda p, x: 1000 * jnp.mean((output(chain, p, x) - x) ** 2))
    return lambda params, seed: float(miss(params, sets[seed].test[0]))


def decoder(file: Path, sets: list[Data], latents: int = 20) -> None:
    """Makes a generative net's row, with some test pictures and what it makes of them.

    A latent is predicted from nothing; pictures pull it away in 20 inference steps, in training and in the test alike.
    """
    chain = nets.mlp((latents, 128, 784), jnp.tanh, prior="zero")
    rule = preset("pc", chain.hierarchy, 20, 0.1)

    @jax.jit
    def miss(params: F.Trees, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        energy = F.Energy(chain.hierarchy)
        z = settle(energy, params, evidence(chain, jnp.zeros((len(x), 1)), x), rule[0])[0].z
        guess = F.read(energy, params, z, None)[-1][-1]
        return 1000 * jnp.mean((guess - x) ** 2), guess

    pairs = [(np.zeros((len(data.train[0]), 1), np.float32), data.train[0]) for data in sets]
    def one() -> dict[str, Any]:
        begun = time.perf_counter()
        params, marks = train(chain, rule, pairs, steps=max(MARKS), report=MARKS,
                              judge=lambda p, seed: float(miss(p, sets[seed].test[0])[0]))
        shown = sets[0].test[0][:6]
        return {"settings": (20, 0.1), "scores": [marks[m] for m in MARKS],
                "seconds_of_all_seeds": time.perf_counter() - begun,
                "flops": flops(chain, rule, pairs[0][0][:64], pairs[0][1][:64]),
                "shown": np.stack([shown, np.asarray(miss(params[0], shown)[1])]).round(2).tolist()}

    once(file, {"task": "decode, MNIST", "rule": "pc"}, one)


def report(rows: list[dict[str, Any]]) -> str:
    """Returns the tables of the tasks."""
    texts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        unit = "accuracy, %" if task.startswith("classify") else "squared error of a pixel x 1000"
        lines = []
        for row in own:
            cost = "not counted" if np.isnan(row["flops"]) else f"{row['flops'] / own[0]['flops']:.2f}"
            marks = [spread(scores) for scores in row["scores"]]
            lines.append([f"`{row['rule']}` {tuple(row['settings'])}", *marks, cost])
        head = [f"{task}: rule (steps, rate)", *(f"{unit}, after {m}" for m in MARKS), "flops of a step / first row's"]
        texts.append(table(head, lines))
    return "\n\n".join(texts)


def figure(rows: list[dict[str, Any]], file: Path) -> None:
    """Draws accuracy over the flops spent, the same for the autoencoder, and the decoder's pictures."""
    canvas, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained", width_ratios=(1, 1, 1.1))
    for axis, task in zip(axes, ("classify, digits", "compress, MNIST"), strict=False):
        for i, row in enumerate(row for row in rows if row["task"] == task and np.isfinite(row["flops"])):
            spent = np.array(MARKS) * row["flops"] / 1e9
            scores = np.mean(row["scores"], axis=1)
            colour = ["k", *map("C{}".format, range(10)), "gold"][i]
            axis.semilogx(spent, scores, "os^v*xD+<>Ph"[i] + "-", color=colour, label=row["rule"], ms=4)
        axis.set_xlabel("10^9 flops spent in training")
        if axis.lines:
            axis.legend(fontsize=7)
    axes[0].set_title("test accuracy, %")
    axes[1].set_title("autoencoder: squared error of a pixel x 1000")
    for row in (row for row in rows if "shown" in row):
        tiles = np.array(row["shown"]).reshape(2, -1, 28, 28).transpose(0, 2, 1, 3).reshape(56, -1)
        axes[2].imshow(tiles, cmap="gray", vmin=0, vmax=1)
    axes[2].set_title("decoder: test digits, and their inferred latents decoded", fontsize=10)
    axes[2].axis("off")
    canvas.savefig(file, dpi=85)


def main(out: Path, seeds: int = 3, only: tuple[str, ...] = ("mnist", "digits", "compress", "flow")) -> None:
    """Trains everything; OUT gets digits.jsonl, digits.md and a figure."""
    file = out / "digits.jsonl"
    small, sets = ([load(name, seed) for seed in range(seeds)] for name in ("digits", "mnist"))
    wide, narrow = smaller(nets.mlp((784, 300, 300, 300, 10))), nets.mlp((784, 128, 20, 128, 784), jnp.tanh)
    for name, task, chain, rules, used in (
        ("mnist", "classify, MNIST", wide, ("bp", "pc", "pc, rate/64", "epc"), sets),
        ("digits", "classify, digits", smaller(nets.mlp((64, 100, 100, 100, 10))), tuple(RULES), small),
        ("flow", "classify, MNIST", wide, ("pc_ode",), sets),
    ):
        if name in only:
            study(file, task, chain, rules, used, accuracy(chain, [data.test for data in used]),
                  lambda data: one_hot(data.train[1]))
    if "compress" in only:
        study(file, "compress, MNIST", narrow, ("bp", "pc", "epc", "zil", "local"), sets,
              reconstruction(narrow, sets), lambda data: data.train[0])
        decoder(file, sets)
    rows = rows_of(file)
    save(out, "digits", report(rows))
    figure(rows, out / "digits.png")


if __name__ == "__main__":
    tyro.cli(main)
