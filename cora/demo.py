"""The whole of Cora in one command: embedded corpus, pretraining, skill, probes, export, report."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cora import config
from cora.measure import evaluation, forecast, surprise
from cora.measure import skill as prediction
from cora.measure.features import trained
from cora.report import expectation, gather, write
from cora.store import exchange
from cora.store.probes import SCORES, SKILL, SURPRISE
from cora.train import fit
from cora.video import events, synthetic

RECIPE = config.Pretrain(
    model=config.Model(predictor_heads=8, predictor_near=3.0, predictor_gaze="around", predictor_tokens=1.0),
    mask=config.Mask(kinds=("random", "future"), random=(0.75, 0.25)),
    target=config.Target(kind="hog3d", of="change", error="squared"),
    learn=config.Learn(seen=1.0, precision=True),
    optim=config.Optim(method="muon", lr=1.5e-2),
    corpus=config.Corpus(sampling="span", longest=5.0, pack=80),
    run=config.Run(steps=800, batch=8, save_every=200),
)


PAIRS = 16
"""Of possible and impossible events."""


def foresee(out: Path, source: Path, console: Console) -> dict[str, Any]:
    """Writes the forecast of the test clips and what surprises the run in pairs of events, as the verbs do, and returns
    for the summary what the forecast leaves and how the pairs are told apart."""
    report, drawn = forecast.read(out, source, out / "bad_files_forecast.csv", shown=3)
    expectation.write_forecast(out, report, drawn)
    console.print(forecast.as_table(report))
    pairs = events.events(out / "events", pairs=PAIRS)
    predictor, step = prediction.restore(out)
    settings = predictor.settings
    felt, found = surprise.read(predictor, step, pairs, out / "bad_files_surprise.csv")
    expectation.write(out / Path(SURPRISE).stem, felt, found, settings, "energy", settings.model.levels - 1, show=3)
    console.print(expectation.pairs_table(felt))
    return {"forecast": {name: report[name] for name in ("seen", "left", "trivial", "skill", "by_horizon")},
            "surprise": felt["pairs"]}


def demo(out: Path, console: Console, recipe: config.Pretrain = RECIPE) -> dict[str, Any]:
    """Runs everything into `out` and returns what it writes to `out/summary.json`; `out/report.html` shows it.

    Interrupted and run again it goes on; finished and run again it measures again.
    """
    begun = time.perf_counter()
    console.rule("1  corpus")
    source = synthetic.corpus()
    console.print(f"embedded corpus: {source.parent}", soft_wrap=True)
    console.rule("2  pretraining, without labels")
    fit(recipe, out, live=console)
    console.rule("3  skill: is what is hidden predicted?")
    skill = prediction.read(out, source, out / "bad_files_skill.csv")
    (out / SKILL).write_text(json.dumps(skill, indent=2))
    console.print(prediction.as_table(skill))
    console.rule("4  forecast and surprise: what does it expect, and what not?")
    foreseen = foresee(out, source, console)
    console.rule("5  frozen probes: can the motion be read from the features?")
    methods: tuple[evaluation.Named, ...] = ("linear", "knn")
    reading = evaluation.read(out, source, methods=methods, ledger=out / "bad_files_probe.csv", views=4)
    report = evaluation.judge(reading, methods)
    (out / SCORES).write_text(json.dumps(report, indent=2))
    console.print(evaluation.as_table(report))
    console.rule("6  export")
    compared = exchange.write(out, out / "encoder", trained(out)[1])
    console.print(f"{out / 'encoder'}: {exchange.describe(compared)}", soft_wrap=True)
    console.rule("7  report")
    figures = ("accuracy", "ci95", "level", "per_level")
    found = {
        "probe": {
            method: {"trained": report[method]["accuracy"],
                     **{name: report[method][name]["accuracy"] for name in evaluation.BESIDE if name in report[method]},
                     "detail": {name: report[method][name] for name in figures}}
            for method in ("linear", "knn")
        },
        "skill": {name: skill[name] for name in prediction.NAMES.values() if name in skill},
        **foreseen,
        **gather.summary(out),
    }
    page = write(out, out, gather.gallery(out))
    found["seconds"] = time.perf_counter() - begun
    (out / "summary.json").write_text(json.dumps(found, indent=2))
    console.print(f"open {page}\n{found['seconds']:.0f} seconds in all", soft_wrap=True)
    return found
