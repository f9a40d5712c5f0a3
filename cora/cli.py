"""The command line: parse, build, call, write. `cora VERB --help` explains itself."""

import json
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from cora import config
from cora.schema import require
from cora.store.stopping import StoreWarning, terminable

console = Console()


def demo(out: Path = Path("demo")) -> None:
    """Embedded corpus, pretraining, frozen probes, export and report: 12 minutes of processor time.

    Args:
        out: Folder for everything; open its report.html in the end.
    """
    from cora import demo as program

    program.demo(out, console)


def pretrain(arguments: Sequence[str]) -> None:
    """Trains RECIPE.py into --workdir, or resumes what that folder holds."""
    from cora.train import fit

    if not arguments or arguments[0].startswith("-"):
        words = ("usage: cora pretrain RECIPE --workdir DIR [--section.field VALUE ...]\n"
                 "       cora pretrain RECIPE --help   lists every field; RECIPE: a Python file, or small")
        if arguments[:1] in (["-h"], ["--help"]):
            print(words)
            return
        raise SystemExit(words)
    recipe = load_recipe(recipe_file(arguments[0]))

    def run(workdir: Path, extend: bool = False,
            settings: Annotated[config.Pretrain, tyro.conf.arg(name="")] = recipe) -> None:
        fit(settings, workdir, live=console, extend=extend)
        console.print(f"{workdir}: {settings.run.steps} steps done; "
                      f"next: cora probe {workdir} MANIFEST, cora report {workdir}", soft_wrap=True)

    tyro.cli(run, prog=f"cora pretrain {arguments[0]}", args=arguments[1:], description=pretrain.__doc__)


def recipe_file(word: str) -> Path:
    """Returns the file that a word means: its path, or by its name one of the recipes that come with Cora.

    Raises ConfigError, naming those recipes, where there is neither.
    """
    path = Path(word).expanduser() if word.startswith("~/") else Path(word)
    if path.is_file():
        return path
    package = Path(__file__).parent
    # In a wheel they lie in the package, in a clone beside it.
    folder = next((f for f in (package / "recipes", package.parent / "pretrain") if f.is_dir()), package)
    own = {file.stem: file for file in sorted(folder.glob("*.py"))}
    if word in own:
        return own[word]
    raise config.ConfigError(f"recipe = {word!r}: no such file; give a Python file that binds a `recipe`, or one of "
                             f"Cora's own: {', '.join(own)}")


def load_recipe(path: Path) -> config.Pretrain:
    """Returns the one `recipe` that a recipe file binds. Raises ConfigError if the file is missing or binds none."""
    if not path.is_file():
        raise config.ConfigError(f"recipe = {str(path)!r}: no such file; give a Python file that binds a `recipe`")
    recipe = runpy.run_path(str(path)).get("recipe")
    if not isinstance(recipe, config.Pretrain):
        raise config.ConfigError(f"{path} binds no `recipe = cora.config.Pretrain(...)`")
    return recipe


def features(
    ckpt: Positional[Path], manifest: Positional[Path], /, out: Path, pool: Literal["change", "token"] = "change",
) -> None:
    """Writes the frozen latents of each level for every clip of a corpus to an .npz file.

    Args:
        ckpt: A run folder (its latest step) or one step folder.
        manifest: Any corpus that pretraining reads.
        out: The .npz file: features [level, clip, number], label, class_name, group, split, path.
        pool: How latents change over time, as the probes read them, or every token as it is.
    """
    from cora.measure import features as reading
    from cora.measure.table import save
    from cora.video import manifest as corpora
    from cora.video.ledger import Ledger

    settings, encoder = reading.trained(ckpt)
    rows = corpora.load(manifest)
    out.parent.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out.with_suffix(".bad_files.csv"), rows.paths, settings.corpus.max_bad)
    reader = {"change": reading.pooled, "token": reading.per_token}[pool](encoder)
    table = reading.tables({"it": reader}, rows, settings, ledger)["it"]
    save(out, table)
    console.print(f"{out}: {table.features.shape[1]} clips, {len(ledger.bad)} unreadable")


def probe(
    ckpt: Positional[Path], manifest: Positional[Path], /, method: str = "linear,knn", against: Path | None = None,
    seed: int = 0, grid: Literal["cpu", "meta"] = "cpu", depth: int | None = None, heads: int | None = None,
    epochs: int | None = None, level: int | None = None, views: int | None = None,
    tokens: Literal["whole", "change", "placed"] | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Reads labels from frozen features, beside a random encoder and pixels; the test split is scored once.

    Args:
        ckpt: A run folder (its latest step) or one step folder.
        manifest: A labelled corpus.
        method: linear, knn, attentive, or several with commas between.
        against: A second checkpoint for the same table.
        seed: Of the split where the corpus has none, the folds, the bootstrap and the attentive probe.
        grid: Settings of the attentive probe that are tried; meta: V-JEPA 2's 20, with its depth, heads and batch.
        depth: Self-attention layers of the attentive probe; 0: one query alone. By default the grid's own.
        heads: Of the attentive probe; where they do not fit, the encoder's. By default the grid's own.
        epochs: Of the attentive probe; by default the grid's own.
        level: Whose tokens the attentive probe reads; by default the highest.
        views: Random views of each clip, cut as training does, that probes learn from and answer by beside the clip
            seen without chance; by default 24.
        tokens: Whether it reads them told where in the clip they are, as they are (which Hugging Face wants), or
            without their mean over time; by default the grid's own: cpu placed, meta whole.
        json_file: Where the result goes as JSON; it is printed as a table in any case.
    """
    from cora.measure import attentive, evaluation
    from cora.store.checkpoint import run_of
    from cora.store.probes import SCORES

    plan = attentive.recipe(grid, depth=depth, heads=heads, epochs=epochs, level=level, of=tokens)
    methods: Any = tuple(method.split(","))
    unread = {"depth": depth, "heads": heads, "epochs": epochs, "level": level, "tokens": tokens,
              "grid": None if grid == "cpu" else grid}
    for name, value in unread.items():
        require(value is None or "attentive" in methods, name, value,
                f"is of the attentive probe, and --method is {method}; nearest: leave it off, or --method attentive")
    home = run_of(ckpt)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
    reading = evaluation.read(ckpt, manifest, methods=methods, ledger=home / "bad_files_probe.csv", against=against,
                              plan=plan, views=evaluation.VIEWS if views is None else views, seed=seed)
    report = evaluation.judge(reading, methods, seed=seed, plan=plan, keep=home) | {"corpus": str(manifest)}
    console.print(evaluation.as_table(report))
    for file in (home / SCORES, *([] if json_file is None else [json_file])):
        file.write_text(json.dumps(report, indent=2))


def skill(
    ckpt: Positional[Path], manifest: Positional[Path], /, clips: int = 1024, seed: int = 0,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measures how well each level predicts hidden tokens, beside guesses that need no network; needs no labels.

    Args:
        ckpt: A run folder (its latest step) or one step folder; or a native export, where targets are fixed.
        manifest: Any corpus that pretraining reads.
        clips: Clips of each split that are read at most.
        seed: Of the masks, of which clips are read, and of the split where the corpus has none.
        json_file: Where the result goes as JSON; it is printed as a table in any case.
    """
    from cora.measure import skill as measured
    from cora.store.checkpoint import run_of
    from cora.store.probes import SKILL

    home = run_of(ckpt)
    report = measured.read(ckpt, manifest, home / "bad_files_skill.csv", clips, seed)
    console.print(measured.as_table(report))
    for line in report["alarms"]:
        console.print(f"warning: {line}", style="yellow", soft_wrap=True)
    for file in (home / SKILL, *([] if json_file is None else [json_file])):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=2))


def surprise(
    ckpt: Positional[Path], source: Positional[Path], /, out: Path | None = None,
    score: Literal["energy", "misfit", "error", "motion"] = "energy", level: int | None = None, context: int = 0,
    show: int = 4,
) -> None:
    """Measures how unexpected every moment and place of a video is, given what came before; ranks a list of them.

    Where the list has pairs (groups of a clip labelled 0, possible, and one labelled 1, impossible), it also says how
    often the impossible one surprises more.

    Args:
        ckpt: A run folder (its latest step) or one step folder; or a native export, where targets are fixed.
        source: A video, or any corpus that pretraining reads.
        out: Folder for surprise.json, surprise.npz and what is shown; by default `surprise` in the run's folder.
        score: energy: how improbable the next tokens were; misfit: how far from the expected the error is, either way;
            error: the error as it is; motion: the control, that of a prediction that knows nothing of the past.
        level: Whose surprise is shown and ranked by; by default the highest.
        context: Time steps of the past that are seen; 0: as many as a clip has.
        show: Films of which a video with heat over it and a curve are written, the most surprising ones.
    """
    from cora.measure import surprise as measured
    from cora.measure.skill import restore
    from cora.report import expectation
    from cora.store.checkpoint import run_of

    home = run_of(ckpt)
    predictor, step = restore(ckpt)
    settings = predictor.settings
    highest = settings.model.levels - 1
    require(level is None or 0 <= level <= highest, "level", level, f"must be 0 to {highest}; nearest: {highest}")
    at, folder = highest if level is None else level, home / "surprise" if out is None else out
    report, found = measured.read(predictor, step, source, home / "bad_files_surprise.csv", context)
    files = expectation.write(folder, report, found, settings, score, at, show)
    console.print(expectation.as_table(report, score, at))
    if "pairs" in report:
        console.print(expectation.pairs_table(report))
    for file in files:
        console.print(str(file), soft_wrap=True)


def forecast(
    ckpt: Positional[Path], manifest: Positional[Path], /, seen: int | None = None, level: int | None = None,
    clips: int = 1024, seed: int = 0, show: int = 4, out: Path | None = None,
) -> None:
    """Predicts the later part of every clip from its beginning: skill by horizon and level, and pictures.

    Args:
        ckpt: A run folder (its latest step) or one step folder; or a native export, where targets are fixed.
        manifest: Any corpus that pretraining reads.
        seen: Time steps of a clip that are seen; by default half of them.
        level: Whose expectation is drawn; by default the highest.
        clips: Clips of each split that are read at most.
        seed: Of which clips are read, and of the split where the corpus has none.
        show: Clips that are drawn.
        out: Folder for forecast.json and forecast.png; by default the run's.
    """
    from cora.measure import forecast as measured
    from cora.report import expectation
    from cora.store.checkpoint import run_of

    home = run_of(ckpt)
    report, drawn = measured.read(ckpt, manifest, home / "bad_files_forecast.csv", seen, level, clips, seed, show)
    console.print(measured.as_table(report))
    for file in expectation.write_forecast(home if out is None else out, report, drawn):
        console.print(str(file), soft_wrap=True)


def export(
    ckpt: Positional[Path], out: Positional[Path], /,
    format: Literal["native", "hf", "stablehlo", "onnx"] = "native", probe: bool = False,
) -> None:
    """Writes a checkpoint for others to read, reloads it and compares.

    Args:
        ckpt: A run folder (its latest step), one step folder, or what `cora import` or `cora export` wrote.
        out: Folder for the files: new, empty, or an earlier export of this format.
        format: native: for `cora.load`, and to go on training; hf: for transformers, a VJEPA2Model; stablehlo, onnx: a
            program with its weights inside.
        probe: With hf, the run's attentive probe too: a VJEPA2ForVideoClassification.
    """
    from cora.measure.features import trained
    from cora.store import exchange

    compared = exchange.write(ckpt, out, trained(ckpt)[1], format, probe)
    console.print(f"{out}: {exchange.describe(compared)}", soft_wrap=True)


def bring(
    source: Positional[Path], out: Positional[Path], /, levels: int | None = None, heads: int | None = None,
    predictor_heads: int | None = None, size: int | None = None, frames: int | None = None,
) -> None:
    """Reads a V-JEPA 2 from Hugging Face or Meta into a folder that every verb takes for a checkpoint.

    Args:
        source: A folder with config.json and model.safetensors, or a checkpoint file of Meta's (.pt, .pth).
        out: Folder for config.json and model.safetensors: new, empty, or an earlier native export.
        levels: Into which the encoder is cut; by default 4, or the nearest divisor of its depth.
        heads: Of the encoder, where a file of Meta's is of no released size.
        predictor_heads: The same of its predictor.
        size: Height and width of a clip where the source is a file of Meta's; 256 unless given.
        frames: Of a clip where the source is a file of Meta's; 64 unless given.
    """
    from cora.store import exchange

    made, compared = exchange.bring(source, out, levels=levels, heads=heads, predictor_heads=predictor_heads, size=size,
                                    frames=frames)
    model = made.model
    console.print(f"{out}: {model.levels} levels of {model.blocks} blocks, width {model.width}; "
                  f"{exchange.describe(compared)}", soft_wrap=True)


def report(run: Positional[Path], /) -> None:
    """Writes one self-contained report.html of a run folder into it.

    Args:
        run: The --workdir of a `cora pretrain`, or the folder of a `cora demo`.
    """
    from cora.report import gather, write

    console.print(f"{write(run, run, gather.gallery(run))}", soft_wrap=True)


def bench(
    names: Positional[tuple[str, ...]] = (), /, peers: str | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Times a training step beside its peers: PCX, FabricPC and a loop written by hand.

    Args:
        names: What to time, all there is unless named. pc: predictive coding of perceptrons.
        peers: pcx, fabricpc, loop, or several with commas between; all that are installed unless named.
        json_file: Where the result goes as JSON; it is printed as a table in any case.
    """
    from cora.bench import race

    wanted = race.PEERS if peers is None else tuple(peers.split(","))
    for name in names:
        race.known(name, list(race.NAMES), "bench")
    results = [race.bench(name, wanted) for name in names or race.NAMES]
    for result in results:
        console.print(race.as_table(result))
    if json_file is not None:
        json_file.write_text(json.dumps(results[0] if len(results) == 1 else results, indent=2))
    if peers is not None and results[0]["absent"]:
        raise ValueError(f"not installed: {', '.join(results[0]['absent'])}")


VERBS: dict[str, Callable[..., None]] = {
    "demo": demo, "pretrain": pretrain, "features": features, "probe": probe, "skill": skill, "surprise": surprise,
    "forecast": forecast, "export": export, "import": bring, "report": report, "bench": bench,
}


def usage() -> str:
    """Returns the list of verbs, a line each."""
    lines = [f"  {name:<10}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join(["usage: cora VERB ... (cora VERB --help explains it)", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb; what the user can mend is one line on standard error and exit status 1."""
    try:
        with warnings.catch_warnings(), terminable():
            _notes_in_one_line()
            _main(arguments)
            sys.stdout.flush()
    except BrokenPipeError:  # as in `cora --help | head -1`: whoever reads has had enough
        # What is still in the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None  # 128 + SIGPIPE, as a shell reports it


def _notes_in_one_line() -> None:
    from cora.video.manifest import ManifestWarning

    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, ManifestWarning | StoreWarning):
            print(f"cora: note: {message}", file=sys.stderr)
        else:
            shown(message, category, *rest, **more)

    warnings.showwarning = show
    warnings.simplefilter("always", ManifestWarning)
    warnings.simplefilter("always", StoreWarning)


def _require_platform() -> None:
    """Raises ConfigError where JAX_PLATFORMS names a platform that this machine lacks."""
    wanted = os.environ.get("JAX_PLATFORMS")
    if not wanted:
        return
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter is all that jax 0.10 says of a missing plugin
        raise config.ConfigError(f"JAX_PLATFORMS = {wanted!r}: JAX finds no such device here; unset it, or set it to "
                                 "cpu (GPUs: pip install 'cora[cuda]')") from error


def _main(arguments: Sequence[str] | None) -> None:
    from cora.store.record import Diverged
    from cora.video.codec import VideoError
    from cora.video.ledger import CorpusError

    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in VERBS:
        print(usage(), file=sys.stdout if words[:1] in (["-h"], ["--help"]) else sys.stderr)
        raise SystemExit(0 if words[:1] in (["-h"], ["--help"]) else 2)
    verb = VERBS[words[0]]
    try:
        _require_platform()
        if verb is pretrain:
            pretrain(words[1:])
        else:
            tyro.cli(verb, prog=f"cora {words[0]}", args=words[1:])
    except BrokenPipeError:
        raise
    except (ValueError, OSError, CorpusError, Diverged, VideoError) as error:
        print(f"cora {words[0]}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal_number", signal.SIGINT)
        again = "; the same command goes on from where it was" * (verb is demo)
        print(f"\ncora {words[0]}: {stop if str(stop) else 'stopped' + again}", file=sys.stderr)
        raise SystemExit(128 + number) from None
