"""One recipe under several learning rules and seeds, each probed beside its random encoder and beside pixels.

    uv run python eval/compare.py pretrain/utd_mhad_depth.py DATA/utd_mhad_depth/manifest.csv --out runs/compare

Appends one line a run to OUT/results.jsonl, skips what is there already, and prints the table of means over seeds.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from cora import config
from cora.cli import load_recipe
from cora.measure import evaluation
from cora.train import fit


def run(recipe: config.Pretrain, manifest: Path, folder: Path) -> dict[str, Any]:
    """Trains one run to its end, probes it, and returns its row."""
    begun = time.perf_counter()
    fit(recipe, folder)
    trained = time.perf_counter() - begun
    report = evaluation.probe(folder, manifest, methods=("linear", "knn"), ledger=folder / "bad_files_probe.csv")
    return {"rule": recipe.learn.rule, "seed": recipe.run.seed, "steps": recipe.run.steps, "train_seconds": trained,
            **report}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns a Markdown table: mean and range over seeds of the test accuracy, by rule and probe."""
    lines = ["| features | linear | kNN |", "|---|---|---|"]

    def cell(scores: list[float]) -> str:
        return f"{np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"

    rules = list(dict.fromkeys(row["rule"] for row in rows))
    for rule in rules:
        own = [row for row in rows if row["rule"] == rule]
        cells = [cell([row[method]["accuracy"] for row in own]) for method in ("linear", "knn")]
        lines.append(f"| {rule}, {len(own)} seeds | {' | '.join(cells)} |")
    for baseline in ("random", "pixels"):
        own = [row for row in rows if row["rule"] == rules[0]]
        cells = [cell([row[method][baseline]["accuracy"] for row in own]) for method in ("linear", "knn")]
        lines.append(f"| {baseline} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, one run at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rules", nargs="+", default=["local", "backprop_last", "backprop_all"])
    given = parser.parse_args()
    recipe, file = load_recipe(given.recipe), given.out / "results.jsonl"
    given.out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    for seed in given.seeds:
        for rule in given.rules:
            if any((row["rule"], row["seed"]) == (rule, seed) for row in rows):
                continue
            made = dataclasses.replace(
                recipe, learn=config.Learn(rule=rule), run=dataclasses.replace(recipe.run, seed=seed),
                corpus=dataclasses.replace(recipe.corpus, path=recipe.corpus.path or str(given.manifest)))
            rows.append(run(made, given.manifest, given.out / f"{rule}_{seed}"))
            with file.open("a") as out:
                out.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
