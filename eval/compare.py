"""One recipe in several variants and seeds, each probed beside its untrained encoder and beside pixels.

    uv run python eval/compare.py pretrain/utd_mhad_depth.py DATA/utd_mhad_depth/manifest.csv --out runs/compare
    uv run python eval/compare.py pretrain/utd_mhad_depth.py DATA/utd_mhad_depth/manifest.csv --out runs/choose \\
        --hold s3 s7 --seeds 0 --methods linear attentive \\
        --variants local local,learn.top_down=true local,target.kind=own,learn.prior=0.05 dense pc,infer.steps=2

A variant is a rule and any fields of the recipe; `labels` is the same encoder trained from scratch with labels, at
equal steps (supervised.py), and may have fields too (`labels,optim.lr=0.003`). With --hold, choices can be made without
the test people: the named groups of the training split are kept out of pretraining and are the test rows, and the true
test rows are left out. With --folds all training rows are pretrained on, and answer in turn, by probes of the others.
Appends one line a run to OUT/results.jsonl, skips what is there already, prints the table of means over seeds and how
far each variant is ahead of the first, paired by seed and person, and draws accuracy against the operations of a whole
run and against the memory of a step (OUT/<method>.png): with variants that differ in `run.steps` or sizes, a curve a
rule.
"""

import argparse
import json
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import jax
import matplotlib.pyplot as plt
import numpy as np
import splits
import supervised
from matplotlib.ticker import LogLocator, NullFormatter
from tasks import once, rows_of, same_question

from cora import config, train
from cora.cli import load_recipe
from cora.measure import attentive, evaluation, features
from cora.measure.groups import lead
from cora.nets.hierarchy import build
from cora.schema import require

Row = dict[str, Any]
LABELS = "labels"


def labelled(variant: str) -> bool:
    """Returns whether this is the control with labels rather than a rule."""
    return variant.split(",")[0] == LABELS


def varied(recipe: config.Pretrain, variant: str) -> config.Pretrain:
    """Returns the recipe with a variant's rule and fields, `rule,section.field=value,...`. Raises ConfigError for a
    field that is not there."""
    whole: Any = json.loads(config.to_json(recipe))
    for word in re.split(",(?=[a-z])", variant):  # a list's commas are followed by numbers, quotes or brackets
        if word == LABELS:
            continue
        name, _, value = word.partition("=") if "=" in word else ("learn.rule", "", word)
        *path, field = name.split(".")
        section: Any = whole
        for part in path:  # of a mix by number
            known = [str(i) for i in range(len(section))] if isinstance(section, list) else list(section)
            require(part in known, name, value, f"no such section as {part}; legal: {', '.join(known) or 'none'}")
            section = section[int(part) if isinstance(section, list) else part]
        require(bool(path) and isinstance(section, dict), name, value, "must be section.field=value, as optim.lr=0.003")
        try:
            section[field] = json.loads(value)
        except json.JSONDecodeError:
            section[field] = value  # a word
    return config.from_json(config.Pretrain, json.dumps(whole))


def cost(recipe: config.Pretrain) -> tuple[float, float]:
    """Returns (MiB of temporary memory, 10^9 floating-point operations) of one whole training step, as XLA lays it out.

    XLA counts the body of a loop once, so loops are unrolled for the operations, not for the memory.
    """
    network = build(recipe.model, recipe.target, recipe.learn)
    state = jax.eval_shape(lambda: train.initialise(network, recipe))
    clips = tuple(jax.ShapeDtypeStruct((part.run.batch, part.model.frames, *part.model.sides, 3), np.uint8)
                  for part in recipe.parts())
    step = train.make_step(recipe)
    laid_out = jax.jit(step, donate_argnums=0).lower(state, clips).compile().memory_analysis()
    with mock.patch.object(jax.lax, "scan", partial(jax.lax.scan, unroll=True)):
        counted: Any = jax.jit(lambda *it: step(*it)).lower(state, clips).compile().cost_analysis()
    assert laid_out is not None and counted is not None, "this backend does not say"
    return laid_out.temp_size_in_bytes / 2**20, counted["flops"] / 1e9


def run(
    recipe: config.Pretrain, source: Path, folder: Path, methods: list[str], folds: bool, beside: bool, views: int,
    plan: attentive.Recipe | None = None,
) -> Row:
    """Trains one run to its end, probes it on `source` by so many random views of each clip, all of whose rows answer
    in turn with `folds`, the attentive probe as `plan` says, and returns its row; `beside`: also what it has to
    beat."""
    mib, operations = cost(recipe)
    begun = time.perf_counter()
    train.fit(recipe, folder)
    trained = time.perf_counter() - begun
    ledger = folder / "bad_files_probe.csv"
    report = splits.probed(folder, source, ledger, methods, folds=folds, beside=beside, views=views, plan=plan)
    return {"steps": recipe.run.steps, "train_seconds": trained, "mib": mib, "gflop": operations, **report}


def with_labels(recipe: config.Pretrain, source: Path, folder: Path, methods: list[str], views: int) -> Row:
    """Returns the row of the control with labels, the same under every method."""
    begun = time.perf_counter()
    score = supervised.run(recipe, source, folder, views)
    return {"steps": recipe.run.steps, "train_seconds": time.perf_counter() - begun,
            "mib": float("nan"), "gflop": float("nan")} | dict.fromkeys(methods, score)


def grouped(rows: list[Row]) -> dict[str, list[Row]]:
    """Returns the rows of each variant, in the order in which variants first come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    return found


def table(rows: list[Row], methods: list[str]) -> str:
    """Returns a Markdown table: mean and range over seeds of the test accuracy, by variant and probe; memory and
    operations of a step, operations of the run."""
    lines = [f"| features | {' | '.join(methods)} | MiB a step | 10^9 flop a step | 10^12 in all | seconds |",
             "|---|" + "---|" * (len(methods) + 4)]

    def cell(scores: list[float]) -> str:
        return f"{np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"

    for variant, own in grouped(rows).items():
        cells = [cell([row[method]["accuracy"] for row in own]) for method in methods]
        step = own[0].get("gflop", float("nan"))
        spent = (f"{own[0]['mib']:.0f} | {step:.1f} | {step * own[0]['steps'] / 1e3:.2f} | "
                 f"{np.mean([row['train_seconds'] for row in own]):.0f}")
        lines.append(f"| {variant}, {len(own)} seeds | {' | '.join(cells)} | {spent} |")
    probed = [row for row in rows if "random" in row[methods[0]]]
    for baseline in ("random", "targets", "pixels", "motion"):
        own = list({row["seed"]: row for row in reversed(probed)}.values())  # the first of each seed
        known = [[row[method][baseline]["accuracy"] for row in own if baseline in row[method]] for method in methods]
        lines.append(f"| {baseline} | {' | '.join(cell(scores) if scores else '' for scores in known)} | | | | |")
    return "\n".join(lines)


def against(rows: list[Row], methods: list[str]) -> str:
    """Returns a Markdown table: how far each variant is ahead of the first, person by person and seed by seed, with the
    95 % interval over both; of runs that have both and groups to compare."""
    (name, first), *others = ((variant, {row["seed"]: row for row in own}) for variant, own in grouped(rows).items())
    lines = [f"| ahead of {name} | {' | '.join(methods)} |", "|---|" + "---|" * len(methods)]

    sizes: dict[str, int] = next((row["rows_by_group"] for row in rows if "rows_by_group" in row), {})

    def people(row: Row, method: str) -> dict[str, float]:
        return row[method].get("by_group", {})

    for variant, own in others:
        cells = []
        for method in methods:
            pairs = [(people(own[seed], method), people(first[seed], method)) for seed in own if seed in first]
            known = [(mine, its) for mine, its in pairs if its and mine.keys() == its.keys()]
            if not known:  # rows of a corpus without groups
                cells.append("")
                continue
            rows_of_each = np.array([sizes[who] for who in known[0][1]])
            gaps = np.array([[mine[who] - its[who] for who in known[0][1]] for mine, its in known])
            mean, (low, high) = lead(gaps, rows_of_each, 0)
            cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f}; {len(known)} seeds)")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[Row], method: str, path: Path) -> None:
    """Draws each variant's mean and range of test accuracy over seeds against what it costs, joined by rule."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True, layout="constrained")
    rules: dict[str, list[tuple[float, ...]]] = {}
    for variant, own in grouped(rows).items():
        if not labelled(variant):
            scores = [row[method]["accuracy"] for row in own]
            point = own[0]["gflop"] * own[0]["steps"] / 1e3, own[0]["mib"], np.mean(scores), min(scores), max(scores)
            rules.setdefault(family(variant), []).append(point)
    for name, points in rules.items():
        spent, mib, mean, low, high = np.array(sorted(points)).T
        for panel, x in zip(panels, (spent, mib), strict=True):
            panel.errorbar(x, mean, (mean - low, high - mean), fmt="o-" if panel is panels[0] else "o", label=name)
    for panel, title in zip(panels, ("10^12 operations of a run", "MiB of a step"), strict=True):
        panel.set(xlabel=title, xscale="log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"test accuracy, {method}")
    beaten: Row = next((row[method] for row in rows if "random" in row[method]), {})
    for panel in panels:
        for name, dash in (("random", "--"), ("targets", "-."), ("pixels", ":")):
            if name in beaten:
                panel.axhline(beaten[name]["accuracy"], color="0.5", ls=dash, lw=1, label=name)
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def family(variant: str) -> str:
    """Returns a variant without its number of steps: what a curve joins."""
    return re.sub(r",run\.steps=\d+", "", variant)


def main() -> None:
    """Runs what is missing, one run at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=["local", "backprop_last", "backprop_all"])
    parser.add_argument("--methods", nargs="+", default=["linear", "knn"], choices=["linear", "knn", "attentive"])
    parser.add_argument("--hold", nargs="+", default=[], help="groups of the training split to be the test rows")
    parser.add_argument("--folds", action="store_true", help="probe the training rows in five folds")
    parser.add_argument("--views", type=int, default=evaluation.VIEWS, help="random views of a clip, as cora probe's")
    parser.add_argument("--tokens", default=attentive.Recipe().of, choices=get_args(features.Of), help="as there")
    given = parser.parse_args()
    if given.folds and (given.hold or any(map(labelled, given.variants))):
        parser.error("--folds goes with neither --hold nor the control with labels")
    recipe, file = load_recipe(given.recipe), given.out / "results.jsonl"
    if (given.hold or given.folds) and (recipe.corpus.path or recipe.mix):
        parser.error("--hold and --folds keep rows from pretraining, so the recipe may name no corpus of its own")
    same_question(given.out, recipe=json.loads(config.to_json(recipe)), manifest=str(given.manifest.absolute()),
                  **{name: getattr(given, name) for name in ("hold", "folds", "views", "tokens", "methods")})
    source = splits.held_out(given.manifest, given.hold, given.out / "held_out.csv")
    if given.folds:
        source = splits.training(source, given.out / "training.csv")
    made = {variant: varied(recipe, variant) for variant in given.variants}  # a misspelt one is refused before any runs
    for seed in given.seeds:
        for variant, settings in made.items():
            corpus = replace(settings.corpus, path=settings.corpus.path or str(source))
            settings = replace(settings, corpus=corpus, run=replace(settings.run, seed=seed))
            name = "".join(c if c.isalnum() else "_" for c in variant)
            folder = given.out / f"{name}_{seed}"
            if labelled(variant):
                make = partial(with_labels, settings, source, folder, given.methods, given.views)
            else:  # what has to be beaten is the same for every variant of one encoder
                known = any(row["seed"] == seed and "random" in row[given.methods[0]] for row in rows_of(file))
                alike = settings.model == recipe.model and settings.corpus == replace(recipe.corpus, path=corpus.path)
                make = partial(run, settings, source, folder, given.methods, given.folds, not (known and alike),
                               given.views, attentive.Recipe(of=given.tokens))
            once(file, {"variant": variant, "seed": seed}, make)
    rows = rows_of(file)
    print(table(rows, given.methods), against(rows, given.methods), sep="\n\n")
    for method in given.methods:
        draw(rows, method, given.out / f"{method}.png")


if __name__ == "__main__":
    main()
