"""Depth: where errors do not reach the lowest levels, what helps, and learning rates that hold at every depth.

    uv run python eval/depth.py --out runs/depth

`reach`: a 20-layer perceptron (128 GELU, orthogonal weights of gain √2) on scikit-learn's digits under state and error
optimisation, and how much of backprop's gradient each level gets. `transfer`: residual nets of 8, 16 and 32 layers on
the 5,000 MNIST digits with one set of rates. `choices`: a small fixed task, one choice of inference or initialisation
changed at a time.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from tasks import accuracy, evidence, load, once, one_hot, rows_of, save, spread, table, train

from cora.nets import chain as nets
from cora.nets.chain import Chain
from cora.nets.vit import gelu
from cora.pc import diagnose
from cora.pc.energy import Energy
from cora.pc.infer import Inference, settle
from cora.pc.learn import Learning, Rule, learn
from cora.pc.presets import preset, sgd

REACH: dict[str, tuple[str] | tuple[str, int, float]] = {
    "backprop": ("bp",), "states, 20 steps of .1": ("pc", 20, 0.1),
    "errors, 5 steps of .001": ("epc", 5, 0.001), "errors, 5 steps of .05": ("epc", 5, 0.05),
}
"""name -> (preset, steps, rate)."""


def digits(seeds: int, name: str = "digits") -> tuple[list, list]:
    """Returns (inputs, one-hot goals) and the test set of every seed."""
    sets = [load(name, seed) for seed in range(seeds)]
    return [(data.train[0], one_hot(data.train[1])) for data in sets], [data.test for data in sets]


def reach(file: Path, seeds: int, steps: int) -> None:
    """Makes one row a rule for the 20-layer net: test accuracies, and at first each level's share of backprop."""
    made = nets.mlp((64, *[128] * 19, 10), gelu, init="orthogonal", order="after")
    chain = made._replace(init=lambda key: jax.tree.map(lambda leaf: 2**0.5 * leaf, made.init(key)))
    pairs, tests = digits(seeds)
    energy, params = Energy(chain.hierarchy), jax.jit(chain.init)(jax.random.key(0))
    now = evidence(chain, jnp.asarray(pairs[0][0][:64]), jnp.asarray(pairs[0][1][:64]))
    exact = jax.jit(lambda p: learn(energy, p, now, preset("bp", energy.hierarchy))[0].params)(params)

    def one(kind: str, *pace: Any) -> dict[str, Any]:
        rule = preset(kind, chain.hierarchy, *pace)
        found = jax.jit(lambda p: learn(energy, p, now, rule)[0].params)(params)
        _, marks = train(chain, rule, pairs, steps=steps, report=(steps,), judge=accuracy(chain, tests))
        return {"scores": marks[steps], "ratio": np.asarray(diagnose.norm_ratio(found, exact)).tolist(),
                "cosine": np.asarray(diagnose.cosine(found, exact)).tolist()}

    for name, given in REACH.items():
        once(file, {"study": "reach", "rule": name}, partial(one, *given))


def transfer(file: Path, seeds: int, steps: int) -> None:
    """Makes a row for each parameterisation and depth: residual nets, inference as long as the net is deep."""
    pairs, tests = digits(seeds, "mnist")

    def one(how: nets.Parameterisation, rate: float, depth: int) -> dict[str, Any]:
        chain = nets.mlp((784, *[64] * (depth - 1), 10), residual=True, bias=False, parameterisation=how)
        rule = preset("pc", chain.hierarchy, depth, 0.5 / 64)  # JPC's .5 on an energy that is a mean over 64 samples
        _, marks = train(chain, rule, pairs, steps=steps, rate=rate, report=(steps,), judge=accuracy(chain, tests))
        return {"scores": marks[steps]}

    tried: tuple[tuple[nets.Parameterisation, float], ...] = (("mupc", 0.1), ("mupc", 0.03), ("sp", 1e-3), ("sp", 3e-4))
    for how, rate in tried:
        for depth in (8, 16, 32):
            named = {"study": "transfer", "how": how, "rate": rate, "depth": depth}
            once(file, named, partial(one, how, rate, depth))


def late(step: jax.Array) -> jax.Array:
    """Returns precisions of 7 levels that are 4 where the output's error has just arrived, 1 elsewhere."""
    return jnp.where(jnp.arange(7) == 7 - step, 4.0, 1.0)


def rising(step: jax.Array) -> jax.Array:
    """Returns precisions that grow from .2 to 1 over the 20 steps: errors travel first and are paid for later."""
    return jnp.full(7, 0.2) + 0.8 * jnp.minimum(step / 19, 1.0)


def choices() -> dict[str, tuple[Chain, Rule]]:
    """Returns the small task's net and rule with one thing changed at a time."""

    def net(**changed: Any) -> Chain:
        return nets.mlp((64, *[64] * 7, 10), jnp.tanh, **changed)

    base = net()
    plain, learning = preset("pc", base.hierarchy)

    def infer(**changed: Any) -> tuple[Chain, Rule]:
        return base, (replace(plain, **changed), learning)

    return {
        "nothing (lecun, 20 steps of .1)": (base, (plain, learning)),
        "init xavier": (net(init="xavier"), (plain, learning)),
        "init orthogonal": (net(init="orthogonal"), (plain, learning)),
        "init settled": (net(init="settled"), (plain, learning)),
        "residual": (net(residual=True), (plain, learning)),
        "shortcut (2, 1.0)": infer(shortcut=(2, 1.0)),
        "shortcut (3, 1.0)": infer(shortcut=(3, 1.0)),
        "steps 5": infer(steps=5), "steps 80": infer(steps=80),
        "rate .5": infer(optimiser=sgd(0.5)),
        "stop .5": infer(stop=0.5), "stop .2": infer(stop=0.2),
        "precision 4 at the wavefront": infer(precision=late),
        "precision .2 rising to 1": infer(precision=rising),
        "errors, not states (5 of .001)": (base, preset("epc", base.hierarchy, 5, 0.001)),
        "backprop": (base, preset("bp", base.hierarchy)),
    }


def try_choices(file: Path, seeds: int, steps: int) -> None:
    """Makes one row a choice: accuracies, inference steps taken and cosine with backprop at first, lowest level."""
    pairs, tests = digits(seeds)

    def one(chain: Chain, rule: Rule) -> dict[str, Any]:
        energy, params = Energy(chain.hierarchy), jax.jit(chain.init)(jax.random.key(0))
        now = evidence(chain, jnp.asarray(pairs[0][0][:64]), jnp.asarray(pairs[0][1][:64]))
        taken, cosine, ratio = jax.jit(first_batch(energy, now, rule))(params)
        _, marks = train(chain, rule, pairs, steps=steps, report=(steps,), judge=accuracy(chain, tests))
        return {"scores": marks[steps], "taken": int(taken), "cosine": float(cosine), "ratio": float(ratio)}

    for name, given in choices().items():
        once(file, {"study": "choices", "choice": name}, partial(one, *given))


def first_batch(energy: Energy, now: Any, rule: tuple[Inference, Learning]) -> Callable:
    """Returns a function of parameters: steps until the rule stops, cosine and norm ratio to backprop, lowest level."""

    def look(params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        sizes = settle(energy, params, now, rule[0])[1].residual[: rule[0].steps]
        going = sizes >= rule[0].stop * jax.lax.cummax(sizes)
        ours = learn(energy, params, now, rule)[0].params
        theirs = learn(energy, params, now, preset("bp", energy.hierarchy))[0].params
        return (jnp.sum(jnp.cumprod(going)), diagnose.cosine(ours, theirs)[0], diagnose.norm_ratio(ours, theirs)[0])

    return look


def report(rows: list[dict[str, Any]]) -> str:
    """Returns the three tables."""
    of = {name: [row for row in rows if row["study"] == name] for name in ("reach", "transfer", "choices")}
    texts = [table(
        ["20 layers", "accuracy, %", "share of backprop's gradient at first: levels 1, 10, 19", "cosine there"],
        [[row["rule"], spread(row["scores"]), *(", ".join(f"{row[k][i]:.2g}" for i in (0, 9, -1))
                                                for k in ("ratio", "cosine"))] for row in of["reach"]])]
    lines = []
    for how, rate in dict.fromkeys((row["how"], row["rate"]) for row in of["transfer"]):
        own = [row for row in of["transfer"] if (row["how"], row["rate"]) == (how, rate)]
        lines.append([f"{how}, Adam at {rate:g}", *(spread(row["scores"]) for row in own)])
    texts.append(table(["parameterisation", *(f"{depth} layers" for depth in (8, 16, 32))], lines))
    texts.append(table(
        ["changed", "accuracy, %", "steps taken", "lowest level: cosine with backprop", "norm ratio"],
        [[row["choice"], spread(row["scores"]), str(row["taken"]), f"{row['cosine']:.3f}", f"{row['ratio']:.2g}"]
         for row in of["choices"]]))
    return "\n\n".join(texts)


def figure(rows: list[dict[str, Any]], file: Path) -> None:
    """Draws the share of backprop's gradient by level, and accuracy over depth; a share of 0 stands at 1e-12."""
    deep, wide = ([row for row in rows if row["study"] == name] for name in ("reach", "transfer"))
    canvas, panels = plt.subplots(1, bool(deep) + bool(wide), figsize=(5 * (bool(deep) + bool(wide)), 3.6),
                                  layout="constrained", squeeze=False)
    axes = iter(panels[0])
    if deep:
        axis = next(axes)
        for row in deep:
            axis.semilogy(np.arange(1, 20), np.maximum(row["ratio"], 1e-12), "o-", ms=3, label=row["rule"])
        axis.set_title("20 layers: a level's gradient over backprop's, first batch", fontsize=9)
        axis.set_xlabel("level")
        axis.legend(fontsize=7)
    if wide:
        axis = next(axes)
        for how, rate in dict.fromkeys((row["how"], row["rate"]) for row in wide):
            own = [row for row in wide if (row["how"], row["rate"]) == (how, rate)]
            axis.errorbar([row["depth"] for row in own], [np.mean(row["scores"]) for row in own],
                          [np.ptp(row["scores"]) / 2 for row in own], marker="o", label=f"{how}, Adam at {rate:g}")
        axis.set_title("residual nets, MNIST digits: test accuracy, %", fontsize=9)
        axis.set_xlabel("layers")
        axis.legend(fontsize=7)
    canvas.savefig(file, dpi=85)


def main(out: Path, seeds: int = 3, steps: int = 150, only: tuple[str, ...] = ("reach", "choices", "transfer")) -> None:
    """Measures everything; OUT gets depth.jsonl, depth.md and a figure. What is there already is not run again."""
    file = out / "depth.jsonl"
    for name, study in (("reach", reach), ("choices", try_choices), ("transfer", transfer)):
        if name in only:
            study(file, seeds, steps)
    rows = rows_of(file)
    save(out, "depth", report(rows))
    figure(rows, out / "depth.png")


if __name__ == "__main__":
    tyro.cli(main)
