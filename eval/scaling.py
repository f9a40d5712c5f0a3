"""How a frozen probe's errors and the loss fall with steps, data, width and depth, for local learning and for backprop.

    uv run python eval/scaling.py pretrain/utd_mhad_depth.py DATA/utd_mhad_depth/manifest.csv --out runs/scaling \\
        --hold s3 s7

One factor is moved at a time from the recipe's own size; nothing is tuned again. Each run is probed on the held-out
people (the test rows where --hold is not given), and its loss is the highest level's target error on *their* clips,
averaged over drawn masks. Each rule and factor gets a fit

    y = a (x / x_0)^-b,    least squares in the logarithms, x_0 the recipe's own size,

with the standard error of b; two rules' lines meet at x_0 (a' / a)^(1 / (b' - b)). Appends to OUT/results.jsonl, skips
what is there, prints both tables, and draws OUT/scaling.png.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import compare
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import splits
from jaxtyping import Array
from matplotlib.ticker import NullLocator
from settle import pictures
from tasks import once, rows_of

from cora import config
from cora.cli import load_recipe
from cora.nets.hierarchy import build
from cora.pc import masks, settled
from cora.store import weights
from cora.types import Encoder, Params, Sight
from cora.video import manifest

Row = dict[str, Any]
FIELDS = {"steps": "run.steps", "width": "model.width", "levels": "model.levels"}
"""Factor -> the recipe's field; data have none."""
SIZES: dict[str, tuple[float, ...]] = {"steps": (100, 800), "width": (64, 192), "levels": (2, 8), "data": (0.25, 0.5)}
"""Factor -> what is tried beside the recipe's own; data: share of the clips that are pretrained on."""
VIEWS = 8
"""Random views of a clip by which a probe learns and answers: fewer than in `cora probe`, for there are many runs."""
MEASURES = {"error": "1 - accuracy", "loss": "loss, people never seen"}


class Fit(NamedTuple):
    """y = scale (x / x_0)^-power."""

    scale: float
    power: float
    error: float
    """Standard error of `power`; nan from two points."""


def share(source: Path, part: float, out: Path) -> Path:
    """Writes the corpus with this share of its training rows, evenly over classes and people; test rows stay."""
    rows = sorted(manifest.load(source).clips, key=lambda clip: (clip.split, str(clip.group), clip.label, clip.path))
    kept, every = [], 0.0
    for clip in rows:
        every += part if clip.split == "train" else 1.0
        if every >= 1 - 1e-9:
            kept.append(clip)
            every -= 1
    return splits.listed(kept, out)


def own(recipe: config.Pretrain, factor: str) -> float:
    """Returns the recipe's own size in one factor."""
    if factor == "data":
        return 1.0
    section, field = FIELDS[factor].split(".")
    return getattr(getattr(recipe, section), field)


def loss(folder: Path, source: Path, draws: int = 4) -> float:
    """Returns the highest level's target error (hidden and seen tokens, as it was trained) on the test rows."""
    settings, _, params, teacher = weights.read_run(folder)
    network = build(settings.model, settings.target, settings.learn)
    rule = settled.rule_of(settings.learn, settings.infer, settings.model, settings.target)
    kinds = masks.kinds(settings.mask, settings.model.grid).values()

    @jax.jit
    def error(params: Params, teacher: Encoder, video: Array, key: Array) -> Array:
        drawn = tuple(masks.sample(key, kind, video.shape[0]) for kind in kinds)
        return rule(network, params, teacher, Sight(network.patches(video), drawn, key))[1][-1]

    shown = pictures(settings, source, folder / "bad_files_loss.csv")
    found = [(len(video), float(error(params, teacher, jnp.asarray(video), jax.random.key(i * draws + j))))
             for i, video in enumerate(shown) for j in range(draws)]
    counts, errors = np.array(found).T
    return float(np.average(errors, weights=counts))


def measure(recipe: config.Pretrain, rule: str, factor: str, size: float, source: Path, out: Path, method: str) -> Row:
    """Trains, probes and judges one run; returns what its row says beside its names."""
    name = f"{rule}_{factor}_{size:g}_{recipe.run.seed}"
    if factor == "data":
        settings, given = compare.varied(recipe, rule), share(source, size, out / f"share_{size:g}.csv")
    else:
        settings, given = compare.varied(recipe, f"{rule},{FIELDS[factor]}={size:g}"), source
    settings = replace(settings, corpus=replace(settings.corpus, path=str(given)))
    row = compare.run(settings, source, out / name, [method], folds=False, beside=False, views=VIEWS)
    return {"method": method, "error": 1 - row[method]["accuracy"], "loss": loss(out / name, source),
            **{key: row[key] for key in ("gflop", "mib", "train_seconds", "steps")}}


def fit(points: list[Row], key: str, centre: float) -> Fit:
    """Returns the power law of a measure, by least squares in the logarithms."""
    u = np.log([row["size"] / centre for row in points])
    v = np.log([row[key] for row in points])
    design = np.stack([np.ones_like(u), u], axis=1)
    (level, slope), *_ = np.linalg.lstsq(design, v, rcond=None)
    free = len(u) - 2
    noise = np.sum((v - design @ (level, slope)) ** 2) / free if free > 0 else np.nan
    return Fit(float(np.exp(level)), float(-slope), float(np.sqrt(noise / np.sum((u - u.mean()) ** 2))))


def meeting(one: Fit, other: Fit, centre: float) -> str:
    """Returns where two lines meet, or why that cannot be said."""
    apart, unsure = other.power - one.power, np.hypot(one.error, other.error)
    if not abs(apart) > 2 * unsure:
        return f"parallel within 2 se (b differs by {apart:+.3f} ± {unsure:.3f})"
    return f"x = {centre * (other.scale / one.scale) ** (1 / apart):.3g}"


def curves(rows: list[Row], recipe: config.Pretrain, factor: str, rule: str) -> list[Row]:
    """Returns a rule's rows along one factor, the recipe's own size among them, by size."""
    base = [{**row, "size": own(recipe, factor)} for row in rows if row["factor"] == "steps"
            and row["size"] == own(recipe, "steps") and row["rule"] == rule and factor != "steps"]
    return sorted([row for row in rows if row["factor"] == factor and row["rule"] == rule] + base,
                  key=lambda row: row["size"])


def tables(rows: list[Row], recipe: config.Pretrain, names: list[str]) -> str:
    """Returns the runs, and the fits, as two Markdown tables."""
    lines = ["| factor | size | " + " | ".join(f"{rule}: accuracy, loss, 10^12 flop, MiB" for rule in names) + " |",
             "|---|---|" + "---|" * len(names)]
    fits = ["| factor | of | " + " | ".join(f"{rule}: b" for rule in names) + " | the lines meet at |",
            "|---|---|" + "---|" * len(names) + "---|"]
    for factor in SIZES:
        each = {rule: curves(rows, recipe, factor, rule) for rule in names}
        for size in sorted({row["size"] for own_rows in each.values() for row in own_rows}):
            cells = []
            for own_rows in each.values():
                here = [row for row in own_rows if row["size"] == size]
                cells.append(", ".join((
                    "{:.3f}".format(1 - np.mean([row["error"] for row in here])),
                    "{:.3f}".format(np.mean([row["loss"] for row in here])),
                    f"{here[0]['gflop'] * here[0]['steps'] / 1e3:.2f}", f"{here[0]['mib']:.0f}")) if here else "")
            lines.append(f"| {factor} | {size:g} | {' | '.join(cells)} |")
        for key, what in MEASURES.items():
            found = [fit(part, key, own(recipe, factor)) for part in each.values()
                     if len({row["size"] for row in part}) > 1]
            cells = [f"{one.power:.3f} ± {one.error:.3f}" for one in found]
            meet = meeting(found[0], found[1], own(recipe, factor)) if len(found) > 1 else ""
            fits.append(f"| {factor} | {what} | {' | '.join(cells)} | {meet} |")
    return "\n".join([*lines, "", *fits])


def draw(rows: list[Row], recipe: config.Pretrain, names: list[str], path: Path) -> None:
    """Draws both measures against every factor, with the fits."""
    figure, panels = plt.subplots(len(MEASURES), len(SIZES), figsize=(11, 5), layout="constrained", sharey="row")
    for line, (key, what) in zip(panels, MEASURES.items(), strict=True):
        for panel, factor in zip(line, SIZES, strict=True):
            for i, rule in enumerate(names):
                points = curves(rows, recipe, factor, rule)
                if len({row["size"] for row in points}) < 2:
                    continue
                x, y = np.array([[row["size"], row[key]] for row in points]).T
                law = fit(points, key, own(recipe, factor))
                panel.loglog(x, y, "o", color=f"C{i}", ms=4)
                panel.loglog(x, law.scale * (x / own(recipe, factor)) ** -law.power, color=f"C{i}", lw=1,
                             label=f"{rule}: b = {law.power:.2f}")
            panel.set(xlabel=factor, xticks=sorted({own(recipe, factor), *SIZES[factor]}))
            panel.xaxis.set_minor_locator(NullLocator())
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
            panel.grid(alpha=0.3)
            if panel.lines:
                panel.legend(fontsize=7)
        line[0].set_ylabel(what)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Runs what is missing, one run at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hold", nargs="+", default=[], help="groups of the training split to be the test rows")
    parser.add_argument("--rules", nargs="+", default=["local", "backprop_last"])
    parser.add_argument("--factors", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--method", default="linear", choices=["linear", "knn"])
    given = parser.parse_args()
    recipe, file = load_recipe(given.recipe), given.out / "results.jsonl"
    given.out.mkdir(parents=True, exist_ok=True)
    source = splits.held_out(given.manifest, given.hold, given.out / "held_out.csv")
    wanted = [("steps", own(recipe, "steps"))] + [(factor, size) for factor in given.factors for size in SIZES[factor]]
    for seed in given.seeds:
        seeded = replace(recipe, run=replace(recipe.run, seed=seed))
        for factor, size in wanted:
            for rule in given.rules:
                once(file, {"rule": rule, "factor": factor, "size": size, "seed": seed},
                     partial(measure, seeded, rule, factor, size, source, given.out, given.method))
    rows = rows_of(file)
    print(tables(rows, recipe, given.rules))
    draw(rows, recipe, given.rules, given.out / "scaling.png")


if __name__ == "__main__":
    main()
