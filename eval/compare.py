"""One recipe in several variants and seeds, each probed beside its untrained encoder and beside pixels.

    uv run python eval/compare.py pretrain/utd_mhad_depth.py DATA/utd_mhad_depth/manifest.csv --out runs/compare
    uv run python eval/compare.py pretrain/utd_mhad_depth.py DATA/utd_mhad_depth/manifest.csv --out runs/choose \\
        --hold s3 s7 --seeds 0 --methods linear attentive \\
        --variants local local,learn.top_down=true local,target.kind=own,learn.prior=0.05 dense pc,infer.steps=2

A variant is a rule and any fields of the recipe. With --hold, choices can be made without the test people: the named
groups of the training split are kept out of pretraining and are the test rows, and the true test rows are left out.
Appends one line a run to OUT/results.jsonl, skips what is there already, and prints the table of means over seeds.
"""

import argparse
import csv
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cora import config, train
from cora.cli import load_recipe
from cora.measure import evaluation
from cora.nets.hierarchy import build
from cora.schema import require
from cora.video import manifest

Row = dict[str, Any]


def varied(recipe: config.Pretrain, variant: str) -> config.Pretrain:
    """Returns the recipe with a variant's rule and fields, `rule,section.field=value,...`. Raises ConfigError for a
    field that is not there."""
    whole = json.loads(config.to_json(recipe))
    for word in re.split(",(?=[a-z])", variant):  # a list's commas are followed by numbers, quotes or brackets
        name, _, value = word.partition("=") if "=" in word else ("learn.rule", "", word)
        section, _, field = name.partition(".")
        require(section in whole, name, value, f"no such section; legal: {', '.join(whole)}")
        try:
            whole[section][field] = json.loads(value)
        except json.JSONDecodeError:
            whole[section][field] = value  # a word
    return config.from_json(config.Pretrain, json.dumps(whole))


def held_out(source: Path, groups: list[str], out: Path) -> Path:
    """Writes the training rows of a corpus as a corpus of their own, whose test rows are those of the named groups."""
    rows = manifest.select(manifest.load(source), "train").clips
    known = sorted({clip.group for clip in rows})
    for group in groups:
        require(group in known, "hold", group, f"no group of the training split; legal: {', '.join(known)}")
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "class_name", "group", "split"])
        for clip in rows:
            split = "test" if clip.group in groups else "train"
            writer.writerow([clip.path.absolute(), clip.label, clip.class_name, clip.group, split])
    return out


def memory(recipe: config.Pretrain) -> float:
    """Returns the MiB of temporary memory that XLA lays out for one whole training step."""
    network = build(recipe.model, recipe.target, recipe.learn)
    state = jax.eval_shape(lambda: train.initialise(network, recipe))
    clips = tuple(jax.ShapeDtypeStruct((part.run.batch, part.model.frames, *part.model.sides, 3), np.uint8)
                  for part in recipe.parts())
    laid_out = jax.jit(train.make_step(recipe), donate_argnums=0).lower(state, clips).compile().memory_analysis()
    assert laid_out is not None, "this backend does not say"
    return laid_out.temp_size_in_bytes / 2**20


def run(recipe: config.Pretrain, source: Path, folder: Path, methods: list[str]) -> Row:
    """Trains one run to its end, probes it, and returns its row."""
    begun = time.perf_counter()
    train.fit(recipe, folder)
    trained = time.perf_counter() - begun
    named: Any = tuple(methods)
    report = evaluation.probe(folder, source, methods=named, ledger=folder / "bad_files_probe.csv")
    return {"seed": recipe.run.seed, "steps": recipe.run.steps, "train_seconds": trained, "mib": memory(recipe),
            **report}


def table(rows: list[Row], methods: list[str]) -> str:
    """Returns a Markdown table: mean and range over seeds of the test accuracy, by variant and probe."""
    lines = [f"| features | {' | '.join(methods)} | MiB a step | seconds |", "|---|" + "---|" * (len(methods) + 2)]

    def cell(scores: list[float]) -> str:
        return f"{np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"

    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = [cell([row[method]["accuracy"] for row in own]) for method in methods]
        spent = f"{own[0]['mib']:.0f} | {np.mean([row['train_seconds'] for row in own]):.0f}"
        lines.append(f"| {variant}, {len(own)} seeds | {' | '.join(cells)} | {spent} |")
    for baseline in ("random", "pixels"):
        own = [row for row in rows if row["variant"] == rows[0]["variant"]]
        cells = [cell([row[method][baseline]["accuracy"] for row in own]) for method in methods]
        lines.append(f"| {baseline} | {' | '.join(cells)} | | |")
    return "\n".join(lines)


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
    given = parser.parse_args()
    recipe, file = load_recipe(given.recipe), given.out / "results.jsonl"
    given.out.mkdir(parents=True, exist_ok=True)
    source = held_out(given.manifest, given.hold, given.out / "held_out.csv") if given.hold else given.manifest
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    made = {variant: varied(recipe, variant) for variant in given.variants}  # a misspelt one is refused before any runs
    for seed in given.seeds:
        for variant, settings in made.items():
            if any((row["variant"], row["seed"]) == (variant, seed) for row in rows):
                continue
            corpus = replace(settings.corpus, path=settings.corpus.path or str(source))
            settings = replace(settings, corpus=corpus, run=replace(settings.run, seed=seed))
            name = "".join(c if c.isalnum() else "_" for c in variant)
            rows.append({"variant": variant, **run(settings, source, given.out / f"{name}_{seed}", given.methods)})
            with file.open("a") as out:
                out.write(json.dumps(rows[-1]) + "\n")
    print(table(rows, given.methods))


if __name__ == "__main__":
    main()
