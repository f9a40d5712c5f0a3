"""Pretraining: what a run carries, its one jitted step, and the loop.

    state = fit(config.Pretrain(...), Path("run"))

Ask `fit` for the same run again and it goes on where the last checkpoint stands, to the same bits.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8
from optax.contrib import MuonDimensionNumbers, muon
from rich.console import Console

from cora import config
from cora.nets.hierarchy import build, latents
from cora.pc import masks, schedules, settled
from cora.pc.diagnose import health
from cora.pc.learn import learn
from cora.pc.prediction import batch_skill
from cora.schema import guard
from cora.store import checkpoint, record, weights
from cora.store.stopping import Signals, Stopped, signals
from cora.types import Encoder, Network, Params, Sight
from cora.video import manifest, stream, synthetic
from cora.video.clips import mixed, together
from cora.video.ledger import Ledger
from cora.video.motion import standing, unmoved


class TrainState(NamedTuple):
    """All that the next step depends on besides the config and the batch."""

    step: Int[Array, ""]
    params: Params
    teacher: Encoder
    optimiser: optax.OptState


Metrics = dict[str, Array]
Videos = tuple[UInt8[Array, "_ _ _ _ 3"], ...]
"""Clips of a batch, [B, T, H, W, 3] for each shape."""
Corpora = Mapping[config.Corpus, manifest.Manifest]
"""The clips of each corpus of a run."""
Step = Callable[[TrainState, Videos], tuple[TrainState, Metrics]]


def schedule(optim: config.Optim, steps: int) -> optax.Schedule:
    """Returns the learning rate by step."""
    warmup, total = round(optim.warmup * steps), int(optim.stretch * steps)
    if optim.schedule == "cooldown":
        return schedules.cooldown(optim.lr, optim.lr_end, total)
    if optim.schedule == "constant":
        return schedules.warmup_constant(optim.lr_start, optim.lr, warmup)
    return schedules.warmup_cosine(optim.lr_start, optim.lr, optim.lr_end, warmup, total)


def optimiser(optim: config.Optim, steps: int) -> optax.GradientTransformation:
    """Returns AdamW or Muon, decaying matrices only, after the gradient's norm is bounded where `clip` says so.

    Muon: Jordan et al. 2024; its updates scaled to AdamW's as in Liu et al. 2025 (arXiv 2502.16982).
    """

    decay: Any = optim.weight_decay
    if optim.weight_decay_end is not None:
        decay = schedules.cosine(optim.weight_decay, optim.weight_decay_end, int(optim.stretch * steps))
    rate = schedule(optim, steps)
    if optim.method == "muon":
        moving = muon(rate, weight_decay=decay, weight_decay_mask=_is_matrix, consistent_rms=0.2, adam_b1=optim.b1,
                      adam_b2=optim.b2, eps=optim.eps, muon_weight_dimension_numbers=_sides)
    else:
        moving = optax.adamw(rate, optim.b1, optim.b2, optim.eps, weight_decay=decay, mask=_is_matrix)
    return optax.chain(optax.clip_by_global_norm(optim.clip), moving) if optim.clip else moving


def _is_matrix(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1] == jax.tree_util.DictKey("kernel"), tree)


def _sides(tree: Any) -> Any:
    """Returns the axes (inputs, outputs) of every matrix, its levels apart; None for what is no matrix."""
    return jax.tree.map(lambda leaf, is_one: MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if is_one else None,
                        tree, _is_matrix(tree))


def momentum(settings: config.Pretrain, step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the teacher's momentum at this step; 1 keeps it as it is."""
    first, last = {"ema": settings.target.momentum, "own": (0.0, 0.0), "frozen": (1.0, 1.0),
                   "hog3d": (1.0, 1.0),
                   "below": settings.target.momentum}[settings.target.kind]
    return schedules.linear(first, last, settings.optim.stretch * settings.run.steps)(step)


def readout(state: TrainState, target: config.Target) -> Encoder:
    """Returns the encoder that a run is for: the moving average where there is one, else the learner."""
    return state.teacher if target.kind == "ema" else state.params.encoder


def initialise(
    network: Network, settings: config.Pretrain, params: Params | None = None, teacher: Encoder | None = None
) -> TrainState:
    """Returns the state at step 0; unless they are given, the learner is drawn and the teacher a copy of it."""
    params = network.init(jax.random.key(settings.run.seed)) if params is None else params
    teacher = jax.tree.map(jnp.copy, params.encoder) if teacher is None else teacher
    tx = optimiser(settings.optim, settings.run.steps)
    return TrainState(jnp.zeros((), jnp.int32), params, teacher, tx.init(params))


def given(settings: config.Pretrain) -> tuple[Params | None, Encoder | None]:
    """Returns (learner, teacher) that a run starts from, None for each that `initialise` is to make.

    Raises WeightsError where what `run.start` or `target.start` names does not fit.
    """
    params = teacher = None
    if settings.run.start:
        _, params, teacher = weights.start(settings.run.start, settings)
    if settings.target.start:
        teacher = weights.frozen_teacher(settings.target.start, settings.model)
    return params, teacher


def engine(settings: config.Pretrain) -> Callable:
    """Returns what computes the gradient of rules that settle states; PCX is imported only where it is asked for.

    Raises ConfigError where PCX is missing.
    """
    if settings.infer.engine == "native":
        return learn
    try:
        from cora import pcx
    except ModuleNotFoundError as missing:
        raise config.ConfigError(f"infer.engine = 'pcx': {missing.name} is not installed; run `pip install --no-deps "
                                 "pcx==0.6.3 && pip install equinox`, or choose 'native'") from missing
    return pcx.learn


def look(network: Network, settings: config.Pretrain, step: Int[Array, ""], video: UInt8[Array, "B T H W 3"]) -> Sight:
    """Returns the clips' patches, this step's masks and chance, and how much of the run is done."""
    kinds, named = masks.kinds(settings.mask, settings.model.grid), settings.mask.kinds
    key, *keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.run.seed + 1), step), 1 + len(named))
    drawn = tuple(masks.sample(k, kinds[name], video.shape[0]) for k, name in zip(keys, named, strict=True))
    return Sight(network.patches(video), drawn, key, step.astype(jnp.float32) / settings.run.steps)


def make_step(settings: config.Pretrain) -> Step:
    """Returns the pure training step: (state, uint8 clips of each shape) -> (next state, metrics).

    A batch of several shapes has the gradient of the mean over all its clips. Chance comes from the seed and the step
    alone, so a resumed run draws what the undisturbed one would have drawn.
    """
    tx = optimiser(settings.optim, settings.run.steps)
    rate = schedule(settings.optim, settings.run.steps)
    parts = settings.parts(jax.device_count())
    networks = [build(part.model, part.target, part.learn) for part in parts]
    found = [settled.rule_of(part.learn, part.infer, part.model, part.target, engine(part)) for part in parts]

    def step(state: TrainState, videos: Videos) -> tuple[TrainState, Metrics]:
        heard = []
        for part, network, rule, video in zip(parts, networks, found, videos, strict=True):
            sight, share = look(network, part, state.step, video), part.run.batch / settings.run.batch
            learned = rule(network, state.params, state.teacher, sight)
            heard.append(jax.tree.map(lambda x, share=share: share * x, learned))
        gradient, energy = jax.tree.map(lambda *x: sum(x), *heard)
        update, moments = tx.update(gradient, state.optimiser, state.params)
        params = optax.apply_updates(state.params, update)
        keep = momentum(settings, state.step)
        teacher = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, state.teacher, params.encoder)
        metrics = {"loss": energy, "grad_norm": optax.tree.norm(gradient), "lr": rate(state.step), "momentum": keep}
        return TrainState(state.step + 1, params, teacher, moments), metrics

    return step


def make_check(settings: config.Pretrain) -> Callable[[TrainState, Videos], Metrics]:
    """Returns what is logged beside a step's own numbers, of clips of the first shape: the readout's health, how much
    better levels predict than guesses, and how inference settles, if any."""
    part = settings.parts(jax.device_count())[0]
    network = build(part.model, part.target, part.learn)
    rule = settled.algorithm(settings.learn, settings.infer, settings.model.levels)

    def check(state: TrainState, videos: Videos) -> Metrics:
        video = videos[0]
        numbers = health(latents(network, readout(state, settings.target), video))
        sight = look(network, part, state.step, video)
        if settings.learn.rule != "dense":  # one predictor speaks for all its levels
            numbers["skill"] = batch_skill(network, state.params, state.teacher, sight, part.model.grid)
        if rule is None:
            return numbers
        return numbers | settled.inspected(rule, network, state.params, state.teacher, sight)

    return check


def corpus_of(settings: config.Corpus) -> manifest.Manifest:
    """Returns the corpus that a config names; an empty path is the embedded one, rendered on first use, and the
    stream has no files."""
    if settings.path == config.STREAM:
        return manifest.Manifest((), stream.MOTIONS)
    return manifest.select(manifest.load(_path(settings)), settings.split)


def _path(settings: config.Corpus) -> Path:
    return Path(settings.path).expanduser() if settings.path else synthetic.corpus()


def remembered(settings: config.Pretrain, corpora: Corpora) -> dict[str, checkpoint.Clips]:
    """Returns what a run remembers of its corpora, each by its field and path."""
    found = {}
    for name, one in {"corpus": settings.corpus, **{f"mix.{i}": one for i, one in enumerate(settings.mix)}}.items():
        paths = corpora[one].paths or [Path(f"version-{stream.VERSION}")]  # the stream's: it has no files
        path = paths[0] if one.path == config.STREAM else _path(one)
        root = path if path.is_dir() else path.parent
        found[f"{name}.path = {one.path!r}"] = checkpoint.clips_of(root, paths)
    return found


def loader(settings: config.Pretrain, workdir: Path, corpora: Corpora) -> grain.DatasetIterator:
    """Returns this process' endless, resumable iterator of batches, a tuple with one batch for each shape of clips;
    unreadable files of all corpora go to `bad_files.csv`."""
    parts = settings.parts(jax.device_count())
    sources = [[(corpora[one], one) for one in (part.corpus, *part.mix)] for part in parts]
    paths = [path for several in sources for source, _ in several for path in source.paths]
    ledger = Ledger(workdir / "bad_files.csv", paths, settings.corpus.max_bad)
    shard = jax.process_index(), jax.process_count()
    return iter(together([
        mixed(several, frames=part.model.frames, size=part.model.size, batch=part.run.batch // shard[1],
              seed=part.run.seed, ledger=ledger, shard=shard)
        for part, several in zip(parts, sources, strict=True)
    ]))


@jax.jit
def is_finite(state: TrainState) -> Bool[Array, ""]:
    """Returns whether every number of a state is finite."""
    numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in numbers]))


@jax.jit
def first_lost(
    lost: Int[Array, "*L"] | None, loss: Float[Array, "*L"], step: Int[Array, ""]
) -> Int[Array, "*L"]:
    """Returns for each level the first step whose loss is not finite, -1 where there is none; `lost` is what was
    returned for the steps before."""
    now = jnp.where(jnp.isfinite(loss), -1, step)
    return now if lost is None else jnp.where(lost < 0, now, lost)


@guard
def fit(
    settings: config.Pretrain, workdir: Path, *, live: bool | Console = True, extend: bool = False
) -> TrainState:
    """Trains until `run.steps` and returns the final state, resuming from `workdir` if it holds a checkpoint.

    Writes config.json, metrics.jsonl, TensorBoard events, bad_files.csv and checkpoints, none of a state that is not
    finite. Data-parallel over all devices. With `extend` a run of fewer steps goes on to `run.steps`, its schedules
    laid out anew.

    Raises checkpoint.CheckpointError if `workdir` belongs to another config, to other clips or to a process that is
    training there, record.Diverged at a loss or weight that is not finite, Stopped after a signal.
    """
    settings.parts(jax.device_count())  # refuses a batch that cannot be shared out before anything is written
    with checkpoint.alone(workdir), signals() as told:
        checkpoint.claim(workdir, settings, extend)
        try:
            return _fit(settings, workdir, live, told)
        except Stopped as stop:
            if not stop.how:
                raise
            # What was being written when the signal came is whole by now.
            raise Stopped(told.saved(), stop.signal_number, stop.how) from None


def _shares(settings: config.Pretrain) -> dict[str, int]:
    """Returns how many clips of a batch each shape has, by what a shape is."""
    parts = settings.parts(jax.device_count())
    return {f"{part.model.frames} frames of {part.model.size}": part.run.batch for part in parts}


def _tell_of_stills(settings: config.Pretrain, drawn: Sequence[UInt8[np.ndarray, "_ _ _ _ 3"]]) -> None:
    """Warns, before anything is learned, where the first clips of a run have nothing that its targets measure."""
    parts = settings.parts(jax.device_count())
    still = [standing(video, part.model.grid[0]) for part, video in zip(parts, drawn, strict=True)]
    if line := unmoved(still, settings.target.of):
        warnings.warn(line, manifest.ManifestWarning, stacklevel=2)


def _fit(settings: config.Pretrain, workdir: Path, live: bool | Console, told: Signals) -> TrainState:
    mesh = Mesh(jax.devices(), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    corpora = {one: corpus_of(one) for one in (settings.corpus, *settings.mix)}
    book = checkpoint.Checkpoints(workdir, save_every=settings.run.save_every, keep=settings.run.keep)
    told.saved = book.on_disk
    checkpoint.keep_clips(workdir, remembered(settings, corpora), resumed=not book.empty())
    checkpoint.keep_shares(workdir, _shares(settings), jax.device_count(), resumed=not book.empty())
    checkpoint.write_config(workdir, settings)  # not before it is known that the run can go on
    network, data = build(settings.model, settings.target, settings.learn), loader(settings, workdir, corpora)
    begin = given(settings) if book.empty() else (None, None)  # a resumed run needs what it started from no more
    state = jax.jit(partial(initialise, network, settings), out_shardings=whole)(*begin)
    step = jax.jit(make_step(settings), donate_argnums=0, in_shardings=(whole, split))
    check = jax.jit(make_check(settings), in_shardings=(whole, split))
    state = book.restore(state, data) or state
    done = int(jax.device_get(state.step))
    lost = None

    def save(i: int) -> None:
        if lost is not None and (steps := np.atleast_1d(jax.device_get(lost))).max() >= 0:
            level = int(np.where(steps < 0, settings.run.steps + 1, steps).argmin())
            raise record.Diverged(int(steps[level]), level)
        if not jax.device_get(is_finite(state)):
            raise record.Diverged(i, None)
        book.save(i, state, data)  # before the next batch is drawn, or a resumed run would skip it

    with closing(book):
        told.patient = True
        try:
            with record.Record(workdir, steps=settings.run.steps, start=done, live=live) as kept, \
                    jax.transfer_guard("disallow"):
                for i in range(done, settings.run.steps):
                    if book.due(i):
                        kept.settle()  # so that no row is lost to a kill
                        save(i)
                    with kept.clock.waiting():
                        drawn = [one["video"] for one in next(data)]
                        videos = tuple(jax.make_array_from_process_local_data(split, one) for one in drawn)
                    if i == done:
                        _tell_of_stills(settings, drawn)
                    logged = (i + 1) % settings.run.log_every == 0 or i + 1 == settings.run.steps
                    state, metrics = step(state, videos)
                    lost = first_lost(lost, metrics["loss"], state.step)
                    kept.clock.tick(settings.run.batch)
                    if logged:
                        kept.later(i + 1, metrics | check(state, videos))
                    if told.asked and i + 1 < settings.run.steps:
                        kept.settle()
                        save(i + 1)
                        raise Stopped(i + 1, told.asked[0])
            save(settings.run.steps)
            if told.asked:  # also in the last step: whoever called is not to go on
                raise Stopped(settings.run.steps, told.asked[0])
        except record.Diverged as error:
            raise record.Diverged(error.step, error.level, book.latest()) from None
    return state
