"""What an encoder pretrained on one corpus tells of others: every run probed on every corpus, nothing tuned.

    uv run python eval/transfer.py runs/demo runs/utd --out runs/transfer --folds \\
        --on embedded DATA/utd_mhad_depth/manifest.csv DATA/surv_fight/manifest.csv

A corpus is whatever `cora probe` reads, or `embedded`. With --folds its training rows answer in five folds, by probes
of the others, and no test row is looked at. What every run has to beat on a corpus (the untrained network, targets,
pixels, motion) is read beside the first one, so give runs of one architecture. Appends one line a pair to
OUT/results.jsonl, skips what is there already, and prints a table for each probe.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import splits
from tasks import once, rows_of, same_question

from cora.measure import evaluation
from cora.video import synthetic

Row = dict[str, Any]
EMBEDDED = "embedded"


def called(corpus: str) -> str:
    """Returns the name of a corpus in a table: a folder's own; that of the folder that holds a `manifest.csv`, followed
    by the list's own where that is another."""
    path = Path(corpus).absolute()
    if corpus == EMBEDDED or path.is_dir():
        return path.name
    return path.parent.name if path.stem == "manifest" else f"{path.parent.name}-{path.stem}"


def pair(run: Path, corpus: str, out: Path, methods: list[str], folds: bool, beside: bool, views: int) -> Row:
    """Returns what one run's probes tell of one corpus; `beside`: with what it has to beat there."""
    source = synthetic.corpus() if corpus == EMBEDDED else Path(corpus)
    if folds:
        source = splits.training(source, out / f"{called(corpus)}.csv")
    return splits.probed(run, source, out / "bad_files.csv", methods, folds=folds, beside=beside, views=views)


def table(rows: list[Row], method: str) -> str:
    """Returns a Markdown table of a probe's accuracy: a line a run, then what they have to beat, a column a corpus."""
    corpora = list(dict.fromkeys(row["corpus"] for row in rows))
    lines: dict[str, dict[str, float]] = {}
    for row in rows:
        lines.setdefault(row["run"], {})[row["corpus"]] = row[method]["accuracy"]
    for name in evaluation.BESIDE:
        found = {row["corpus"]: row[method][name]["accuracy"] for row in rows if name in row[method]}
        if found:
            lines[name] = found
    head = [f"| {method}: pretrained | on {' | on '.join(corpora)} |", "|---|" + "---|" * len(corpora)]
    return "\n".join(head + [f"| {name} | " + " | ".join(f"{own[c]:.3f}" if c in own else "" for c in corpora) + " |"
                             for name, own in lines.items()])


def main() -> None:
    """Reads what is missing, one pair at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--on", nargs="+", required=True, help="corpora: lists, folders, or the word embedded")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["linear", "knn"], choices=["linear", "knn", "attentive"])
    parser.add_argument("--folds", action="store_true", help="probe the training rows in five folds")
    parser.add_argument("--views", type=int, default=evaluation.VIEWS, help="random views of a clip, as cora probe's")
    given = parser.parse_args()
    for what, names in (("runs", [run.name for run in given.runs]), ("corpora", [called(one) for one in given.on])):
        if len(set(names)) < len(names):
            parser.error(f"{what} are told apart by their names, and two are alike: {', '.join(names)}")
    same_question(given.out, folds=given.folds, views=given.views, methods=given.methods)
    file = given.out / "results.jsonl"
    for corpus in given.on:
        for run in given.runs:
            beside = not any(row["corpus"] == called(corpus) for row in rows_of(file))
            where = {"folder": str(run.absolute()),
                     "list": corpus if corpus == EMBEDDED else str(Path(corpus).absolute())}
            once(file, {"run": run.name, "corpus": called(corpus), **where},
                 partial(pair, run, corpus, given.out, given.methods, given.folds, beside, given.views))
    print("\n\n".join(table(rows_of(file), method) for method in given.methods))


if __name__ == "__main__":
    main()
