"""Prediction beside representation: every encoder on every corpus, in one table.

    uv run python eval/prediction.py runs/a runs/b --on embedded DATA/utd_mhad_depth/manifest.csv --out runs/prediction

For each pair of a run and a corpus: which share of the hidden variance the highest level leaves of a quarter at random
places, of blocks and of the later half (`cora skill`), each beside the best guess without a network; probes of the
corpus' labels (linear and neighbours, by --views views; left out where the corpus has none); and once for each run, how
often an impossible event surprises more than its possible twin (`cora surprise`, --pairs pairs). Appends one line to
OUT/results.jsonl for each pair, skips what is there already, and prints the table.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from tasks import once, rows_of, same_question
from transfer import EMBEDDED, called

from cora.measure import evaluation, skill, surprise
from cora.video import events, manifest, synthetic

Row = dict[str, Any]
METHODS: tuple[evaluation.Named, ...] = ("linear", "knn")


def predicted(run: Path, source: Path, out: Path) -> Row:
    """Returns, for each kind of mask, what the highest level leaves, its skill, and the best guess."""
    found = skill.read(run, source, out / "bad_files.csv")
    rows = {}
    for name in (name for name in skill.NAMES.values() if name in found):
        one = found[name]
        rows[name] = {"left": one["left"][-1], "guess": min(each[-1] for each in one["trivial"].values()),
                      "told": one["told"][-1], "skill": one["skill"][-1]}
    return rows


def probed(run: Path, source: Path, out: Path, views: int) -> Row:
    """Returns accuracies of the run and of what it has to beat; nothing where the corpus has no labels."""
    if not manifest.load(source).classes:
        return {}
    reading = evaluation.read(run, source, methods=METHODS, ledger=out / "bad_files.csv", views=views)
    report = evaluation.judge(reading, METHODS)
    return {method: {"trained": report[method]["accuracy"]} | {
        name: report[method][name]["accuracy"] for name in evaluation.BESIDE if name in report[method]}
        for method in METHODS}


def felt(run: Path, out: Path, pairs: int, seed: int) -> Row:
    """Returns the accuracy over all kinds of events at every level, by score."""
    source = events.events(out / f"events-{seed}-{pairs}", seed, pairs)
    report, _ = surprise.read(*skill.restore(run), source, out / "bad_files.csv")
    return {of: {kind: one["accuracy"] for kind, one in kinds.items()} for of, kinds in report["pairs"].items()}


def pair(run: Path, corpus: str, out: Path, views: int, pairs: int, seed: int) -> Row:
    """Returns all of it for one run on one corpus; events only on the first corpus that is asked for."""
    source = synthetic.corpus() if corpus == EMBEDDED else Path(corpus)
    row = {"predicted": predicted(run, source, out), "probes": probed(run, source, out, views)}
    return row | ({"surprise": felt(run, out, pairs, seed)} if pairs else {})


def table(rows: list[Row]) -> str:
    """Returns a Markdown table, a line for each pair."""
    kinds, found = list(skill.NAMES.values()), []
    for row in rows:
        shares = [f"{row['predicted'][k]['left']:.2f} ({row['predicted'][k]['guess']:.2f})" if k in row["predicted"]
                  else "" for k in kinds]
        probes = [", ".join(f"{row['probes'][m][w]:.3f}" for w in ("trained", "targets", "random", "pixels")
                            if w in row["probes"][m]) if row["probes"] else "" for m in METHODS]
        strange = [f"{row['surprise'][of]['all'][-1]:.2f}" if "surprise" in row else "" for of in ("energy", "motion")]
        found.append(f"| {row['run']} | {row['corpus']} | " + " | ".join((*shares, *probes, *strange)) + " |")
    head = ["run", "corpus", *(f"{k}: left (best guess)" for k in kinds),
            *(f"{m}: trained, targets, untrained, pixels" for m in METHODS), "surprise: energy", "motion"]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *found])


def main() -> None:
    """Reads what is missing, one pair at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--on", nargs="+", required=True, help="corpora: lists, folders, or the word embedded")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--views", type=int, default=4, help="random views of a clip, as cora probe's")
    parser.add_argument("--pairs", type=int, default=48, help="pairs of events; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the events")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    same_question(given.out, views=given.views, pairs=given.pairs, seed=given.seed)
    file = given.out / "results.jsonl"
    for run in given.runs:
        for corpus in given.on:
            pairs = given.pairs if corpus == given.on[0] else 0
            once(file, {"run": run.name, "corpus": called(corpus), "folder": str(run.absolute())},
                 partial(pair, run, corpus, given.out, given.views, pairs, given.seed))
    print(table(rows_of(file)))


if __name__ == "__main__":
    main()
