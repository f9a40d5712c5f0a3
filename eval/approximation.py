"""How close is predictive coding's gradient to backprop's? Every rule, three kinds of network, and the limits.

    uv run python eval/approximation.py --out runs/approximation

Gradients are compared at freshly drawn weights on one batch of scikit-learn's digits, in float64; each level's cosine
and ratio of norms is against `jax.grad` of the plain loss. Every rule starts from the forward pass.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from tasks import evidence, load, once, output, rows_of, save, table

from cora.nets import chain as nets
from cora.nets.chain import Chain
from cora.pc import diagnose
from cora.pc.energy import Energy, Trees
from cora.pc.infer import Inference
from cora.pc.learn import Learner, Learning, Rule, learn, step
from cora.pc.presets import preset, sgd
from cora.types import Evidence, Key

SETTINGS: dict[str, tuple[()] | tuple[int, float]] = {
    "bp": (), "zil": (), "fixed_pred": (20, 0.1), "nudged": (20, 0.1), "epc": (5, 0.001),
    "pc_ode": (), "pc": (20, 0.1), "strict": (20, 0.1), "accumulate": (20, 0.1), "ipc": (20, 0.1),
    "hybrid": (20, 0.1), "mcpc": (20, 0.1), "local": (), "bpc": (20, 0.1), "hpc": (20, 0.1),
}
"""Preset -> inference steps and rate, where it takes them. `bpc` and `hpc` need levels that decode: the perceptron."""


def plain(chain: Chain, params: Trees, now: Evidence) -> Trees:
    """Returns backprop's gradient of the mean loss of the composed network, by jax.grad alone."""
    loss = chain.hierarchy[-1].error
    assert loss is not None
    return jax.grad(lambda p: jnp.mean(loss(output(chain, p, now.input), now.goals[-1][0])))(params)


def direction(energy: Energy, params: Trees, now: Evidence, rule: Rule, key: Key) -> Trees:
    """Returns a rule's gradient; for rules that learn while settling, the sum of theirs, read off a tiny SGD step."""
    if rule[1].when != "every":
        return learn(energy, params, now, rule, key)[0].params
    tx = optax.sgd(1e-6)
    after = step(energy, Learner(params, tx.init(params)), now, rule, tx, key)[0].params
    return jax.tree.map(lambda a, b: (a - b) / 1e-6, params, after)


def parts(gradient: Trees) -> Trees:
    """Returns the weights of f of every level, then those of the readout, each a part of its own."""
    return (*({"f": {k: v for k, v in part["f"].items() if k != "v"}} for part in gradient), {"g": gradient[-1]["g"]})


def compare(chain: Chain, energy: Energy, params: Trees, now: Evidence, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cosine with backprop and the ratio of norms, one number a level, the readout's last."""

    @jax.jit
    def both(params: Trees) -> tuple[jax.Array, jax.Array]:
        ours = parts(direction(energy, params, now, rule, jax.random.key(7)))
        theirs = parts(plain(chain, params, now))
        return diagnose.cosine(ours, theirs), diagnose.norm_ratio(ours, theirs)

    cosine, ratio = both(params)
    return np.asarray(cosine), np.asarray(ratio)


def networks(batch: int) -> dict[str, tuple[Chain, tuple[int, ...]]]:
    """Returns the three networks and the shape that each sees a digit in."""
    return {
        "mlp": (nets.mlp((64, 48, 48, 48, 10), jnp.tanh), (batch, 64)),
        "cnn": (nets.cnn((8, 8, 1), (8, 16, 16), 10), (batch, 8, 8, 1)),
        "transformer": (nets.transformer(8, 8, 24, 2, 3, 10), (batch, 8, 8)),
    }


def every_preset(file: Path, x: jax.Array, goal: jax.Array) -> None:
    """Makes one row for each network and preset."""

    def one(chain: Chain, params: Trees, rule: str, x: jax.Array) -> dict[str, Any]:
        energy = Energy(chain.hierarchy)
        cosine, ratio = compare(chain, energy, params, evidence(chain, x, goal),
                                preset(rule, chain.hierarchy, *SETTINGS[rule]))
        return {"cosine": cosine.tolist(), "ratio": ratio.tolist()}

    for name, (chain, shape) in networks(len(x)).items():
        both = nets.mlp((64, 48, 48, 48, 10), jnp.tanh, decode=True)
        params, more = jax.jit(chain.init)(jax.random.key(0)), jax.jit(both.init)(jax.random.key(0))
        for rule in SETTINGS:
            decodes = rule in ("bpc", "hpc")
            if decodes and name != "mlp":
                continue
            once(file, {"study": "presets", "network": name, "rule": rule},
                 partial(one, both if decodes else chain, more if decodes else params, rule, x.reshape(shape)))


def limits(file: Path, x: jax.Array, goal: jax.Array) -> None:
    """Measures how the perceptron's hidden gradients near backprop's: in steps, and in the rate of one error step."""
    chain = networks(len(x))["mlp"][0]
    energy, params = Energy(chain.hierarchy), jax.jit(chain.init)(jax.random.key(0))
    now = evidence(chain, x, goal)
    theirs = parts(jax.jit(lambda p: plain(chain, p, now))(params))

    def one(rule: Rule) -> dict[str, Any]:
        """The relative distance to backprop's gradient at every level."""
        ours = parts(jax.jit(lambda p: direction(energy, p, now, rule, jax.random.key(7)))(params))
        gap = jax.tree.map(jnp.subtract, ours, theirs)
        return {"off": np.asarray(diagnose.norm_ratio(gap, theirs)).tolist()}

    for rule, rate, counts in (("fixed_pred", 1.0, (1, 2, 3, 4)), ("fixed_pred", 0.1, (5, 20, 80, 320)),
                               ("strict", 0.1, (5, 20, 80, 320)), ("pc", 0.1, (20, 320))):
        for n in counts:
            once(file, {"study": "steps", "rule": rule, "rate": rate, "steps": n},
                 partial(one, preset(rule, chain.hierarchy, n, rate)))
    for rate in (1e-4, 1e-3, 1e-2, 1e-1):
        step_once = (Inference(variable="error", steps=1, optimiser=sgd(rate)), Learning(amplify=1 / rate))
        once(file, {"study": "rate", "rate": rate}, partial(one, step_once))


def precision(file: Path) -> None:
    """Measures the Tutorial's scalar network, ŷ = θ1 tanh(θ0 tanh x), its output's precision divided by k.

    The data are y = tanh(tanh x) at 100 points of [-2, 2]; its α = .1 of an energy without the half is .2 here.
    """
    x = jnp.linspace(-2, 2, 100)[:, None]
    y = jnp.tanh(jnp.tanh(x))
    chain = nets.mlp((1, 1, 1), jnp.tanh, first_act=True, bias=False)
    params: Trees = ({"f": {"w": jnp.full((1, 1, 1), -0.7)}, "g": {"w": jnp.full((1, 1, 1), 1.3)}},)
    now = evidence(chain, x, y)

    def one(k: float) -> dict[str, Any]:
        energy, rule = Energy(chain.hierarchy, target=1 / (k or 1)), preset("pc", chain.hierarchy, 30, 0.2)

        def find(params: Trees) -> Trees:
            return learn(energy, params, now, rule)[0].params if k else plain(chain, params, now)

        found = jax.jit(find)(params)[0]
        theta1, theta0 = (float(found[part]["w"][0, 0, 0]) * (k or 1) for part in ("g", "f"))
        return {"theta1": theta1, "theta0": theta0}

    for k in (0, 1, 5, 50, 500):
        once(file, {"study": "precision", "case": f"k = {k}" if k else "backprop"}, partial(one, k))


def width(file: Path, x: jax.Array, goal: jax.Array) -> None:
    """Measures the lowest cosine over levels of settled PC with backprop as hidden layers widen."""

    def one(how: nets.Parameterisation, units: int) -> dict[str, Any]:
        chain = nets.mlp((64, units, units, units, 10), jnp.tanh, parameterisation=how)
        energy, params = Energy(chain.hierarchy), jax.jit(chain.init)(jax.random.key(0))
        rule = preset("pc", chain.hierarchy, 200, 0.2)
        cosine, ratio = compare(chain, energy, params, evidence(chain, x, goal), rule)
        return {"cosine": cosine.tolist(), "ratio": ratio.tolist()}

    kinds: tuple[nets.Parameterisation, ...] = ("sp", "mupc")
    for how in kinds:
        for units in (8, 32, 128, 512):
            once(file, {"study": "width", "parameterisation": how, "units": units}, partial(one, how, units))


def heatmap(rows: list[dict[str, Any]], file: Path) -> None:
    """Draws every preset's cosine with backprop at every level of the three networks."""
    kinds = list(dict.fromkeys(row["network"] for row in rows))
    figure, axes = plt.subplots(1, len(kinds), figsize=(10, 4.4), sharey=True, layout="constrained")
    for axis, kind in zip(axes, kinds, strict=True):
        own = {row["rule"]: row["cosine"] for row in rows if row["network"] == kind}
        levels = len(own["bp"])
        grid = np.array([own.get(rule, [np.nan] * levels) for rule in SETTINGS])
        axis.imshow(grid, cmap="RdYlGn", vmin=-1, vmax=1, aspect="auto")
        for (r, c), value in np.ndenumerate(grid):
            axis.text(c, r, "-" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", fontsize=8)
        axis.set_title(kind)
        axis.set_xticks(range(levels), [f"f{i + 1}" for i in range(levels - 1)] + ["g"])
        axis.set_yticks(range(len(SETTINGS)), list(SETTINGS))
    figure.suptitle("Cosine of each level's gradient with backprop's (the input is at the left)")
    figure.savefig(file, dpi=90)


def curves(rows: list[dict[str, Any]], file: Path) -> None:
    """Draws the four limits in which predictive coding becomes backprop, or does not."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
    of = {name: [row for row in rows if row["study"] == name] for name in ("steps", "rate", "precision", "width")}
    for rule, rate in dict.fromkeys((row["rule"], row["rate"]) for row in of["steps"]):
        own = [row for row in of["steps"] if (row["rule"], row["rate"]) == (rule, rate)]
        axes[0].loglog([row["steps"] for row in own], [max(max(row["off"]), 1e-17) for row in own], "o-",
                       label=f"{rule}, rate {rate:g}")
    rates = [row["rate"] for row in of["rate"]]
    axes[1].loglog(rates, [max(row["off"][:-1]) for row in of["rate"]], "o-", label="one error step")
    axes[1].loglog(rates, [10 * r for r in rates], ":", color="grey", label="slope 1")
    goal, *cases = of["precision"]
    for name in ("theta1", "theta0"):
        axes[2].semilogx([float(row["case"][4:]) for row in cases], [row[name] for row in cases], "o-", label=name)
        axes[2].axhline(goal[name], ls=":", color="grey")
    for how in ("sp", "mupc"):
        own = [row for row in of["width"] if row["parameterisation"] == how]
        axes[3].semilogx([row["units"] for row in own], [min(row["cosine"]) for row in own], "o-", label=how)
    titles = ("distance to backprop over steps", "... over the rate (ePC)", "gradient over k (dotted: backprop)",
              "lowest cosine over width")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=7)
    figure.savefig(file, dpi=85)


def report(rows: list[dict[str, Any]]) -> str:
    """Returns all tables."""
    of = {name: [row for row in rows if row["study"] == name] for name in dict.fromkeys(r["study"] for r in rows)}
    pick = {(row["network"], row["rule"]): row for row in of["presets"]}
    lines = []
    for rule in SETTINGS:
        cells = [pick.get((kind, rule)) for kind in ("mlp", "cnn", "transformer")]
        lines.append([f"`{rule}`", *("" if row is None else f"{row['cosine'][at]:.3f} ({row['ratio'][at]:.3g})"
                                     for row in cells for at in (0, -1))])
    head = ["rule", *(f"{kind}, {at}" for kind in ("mlp", "cnn", "transformer") for at in ("lowest", "readout"))]
    texts = [table(head, lines)]
    texts.append(table(["rule", "rate", "steps", "largest distance to backprop", "at the lowest level"],
                       [[f"`{r['rule']}`", f"{r['rate']:g}", str(r["steps"]), f"{max(r['off']):.2g}",
                         f"{r['off'][0]:.2g}"] for r in of["steps"]]))
    texts.append(table(["rate of one error step", "largest distance to backprop, hidden levels"],
                       [[f"{r['rate']:g}", f"{max(r['off'][:-1]):.2g}"] for r in of["rate"]]))
    texts.append(table(["output precision 1/k", "dθ1", "dθ0"],
                       [[r["case"], f"{r['theta1']:.5f}", f"{r['theta0']:.5f}"] for r in of["precision"]]))
    texts.append(table(["parameterisation", "units", "lowest cosine", "its norm ratios, lowest level to readout"],
                       [[r["parameterisation"], str(r["units"]), f"{min(r['cosine']):.4f}",
                         ", ".join(f"{x:.3g}" for x in r["ratio"])] for r in of["width"]]))
    return "\n\n".join(texts)


def main(out: Path, batch: int = 32) -> None:
    """Measures everything; OUT gets approximation.jsonl, approximation.md and two figures."""
    jax.config.update("jax_enable_x64", True)
    data = load("digits", 0)
    x = jnp.asarray(data.train[0][:batch], jnp.float64)
    goal = jnp.asarray(np.eye(10)[data.train[1][:batch]])
    file = out / "approximation.jsonl"
    precision(file)
    limits(file, x, goal)
    width(file, x, goal)
    every_preset(file, x, goal)
    rows = rows_of(file)
    save(out, "approximation", report(rows))
    heatmap([row for row in rows if row["study"] == "presets"], out / "approximation_presets.png")
    curves(rows, out / "approximation_limits.png")


if __name__ == "__main__":
    tyro.cli(main)
