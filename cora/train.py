"""Pretraining: what a run carries, its one jitted step, and the loop.

    state = fit(config.Pretrain(...), Path("run"))

Ask `fit` for the same run again and it goes on where the last checkpoint stands, to the same bits.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8
from rich.console import Console

from cora import config
from cora.nets.hierarchy import build, latents
from cora.pc import masks, rules
from cora.pc.diagnose import health
from cora.pc.learn import learn
from cora.store import checkpoint, record
from cora.types import Encoder, Network, Params, Sight
from cora.video import manifest, synthetic
from cora.video.clips import clips
from cora.video.ledger import Ledger


class TrainState(NamedTuple):
    """All that the next step depends on besides the config and the batch."""

    step: Int[Array, ""]
    params: Params
    teacher: Encoder
    optimiser: optax.OptState


Metrics = dict[str, Array]
Step = Callable[[TrainState, UInt8[Array, "B T S S 3"]], tuple[TrainState, Metrics]]


def schedule(optim: config.Optim, steps: int) -> optax.Schedule:
    """Returns the learning rate by step: linear warm-up from 0 to `lr`, then a cosine to `lr_end`."""
    warmup = round(optim.warmup * steps)
    return optax.warmup_cosine_decay_schedule(0.0, optim.lr, warmup, max(steps, warmup + 1), optim.lr_end)


def optimiser(optim: config.Optim, steps: int) -> optax.GradientTransformation:
    """Returns AdamW that decays matrices only."""

    def is_matrix(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1] == jax.tree_util.DictKey("kernel"), tree)

    return optax.adamw(schedule(optim, steps), optim.b1, optim.b2, weight_decay=optim.weight_decay, mask=is_matrix)


def momentum(target: config.Target, steps: int, step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the teacher's momentum at this step; 1 keeps it as it is."""
    first, last = target.momentum if target.kind == "ema" else (1.0, 1.0)
    return first + (last - first) * jnp.minimum(step.astype(jnp.float32) / steps, 1.0)


def readout(state: TrainState, target: config.Target) -> Encoder:
    """Returns the encoder that a run is for: the moving average where there is one, else the learner."""
    return state.teacher if target.kind == "ema" else state.params.encoder


def initialise(network: Network, settings: config.Pretrain) -> TrainState:
    """Returns the state at step 0; the teacher starts as a copy of the learner."""
    params = network.init(jax.random.key(settings.run.seed))
    tx = optimiser(settings.optim, settings.run.steps)
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params.encoder), tx.init(params))


def engine(settings: config.Pretrain) -> Callable:
    """Returns what computes the gradient of rules that settle states; PCX is imported only where it is asked for.

    Raises ConfigError where PCX is missing, or where nothing settles that it could compute.
    """
    if settings.infer.engine == "native":
        return learn
    if settings.learn.rule in rules.DIRECT:
        raise config.ConfigError(f"infer.engine = 'pcx' with learn.rule = {settings.learn.rule!r}: settles no states "
                                 "that PCX could compute; nearest: learn.rule = 'pc'")
    try:
        from cora import pcx
    except ModuleNotFoundError as missing:
        raise config.ConfigError(f"infer.engine = 'pcx': {missing.name} is not installed; run `pip install --no-deps "
                                 "pcx==0.6.3 && pip install equinox`, or choose 'native'") from missing
    return pcx.learn


def look(network: Network, settings: config.Pretrain, step: Int[Array, ""], video: UInt8[Array, "B T S S 3"]) -> Sight:
    """Returns the clips' patches and this step's masks."""
    kinds = masks.kinds(settings.mask, settings.model.grid).values()
    keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.run.seed + 1), step), len(kinds))
    drawn = tuple(masks.sample(key, kind, video.shape[0]) for key, kind in zip(keys, kinds, strict=True))
    return Sight(network.patches(video), drawn)


def make_step(network: Network, settings: config.Pretrain) -> Step:
    """Returns the pure training step: (state, uint8 clips) -> (next state, metrics).

    Chance comes from the seed and the step alone, so a resumed run draws what the undisturbed one would have drawn.
    """
    tx = optimiser(settings.optim, settings.run.steps)
    rule = rules.rule_of(settings.learn, settings.infer, settings.model.levels, engine(settings))
    rate = schedule(settings.optim, settings.run.steps)

    def step(state: TrainState, video: UInt8[Array, "B T S S 3"]) -> tuple[TrainState, Metrics]:
        sight = look(network, settings, state.step, video)
        gradient, energy = rule(network, state.params, state.teacher, sight)
        update, moments = tx.update(gradient, state.optimiser, state.params)
        params = optax.apply_updates(state.params, update)
        keep = momentum(settings.target, settings.run.steps, state.step)
        teacher = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, state.teacher, params.encoder)
        metrics = {"loss": energy, "grad_norm": optax.tree.norm(gradient), "lr": rate(state.step), "momentum": keep}
        return TrainState(state.step + 1, params, teacher, moments), metrics

    return step


def make_check(network: Network, settings: config.Pretrain) -> Callable[[TrainState, Array], Metrics]:
    """Returns what is logged beside a step's own numbers: the readout's health, and how inference settles, if any."""
    rule = rules.algorithm(settings.learn, settings.infer, settings.model.levels)

    def check(state: TrainState, video: UInt8[Array, "B T S S 3"]) -> Metrics:
        numbers = health(latents(network, readout(state, settings.target), video))
        if rule is None:
            return numbers
        sight = look(network, settings, state.step, video)
        return numbers | rules.inspected(rule, network, state.params, state.teacher, sight)

    return check


def corpus_of(settings: config.Corpus) -> manifest.Manifest:
    """Returns the corpus that a config names; an empty path is the embedded one, rendered on first use."""
    path = Path(settings.path) if settings.path else synthetic.corpus()
    return manifest.select(manifest.load(path), settings.split)


def loader(settings: config.Pretrain, workdir: Path) -> grain.DatasetIterator:
    """Returns this process' endless, resumable iterator of batches; unreadable files go to `bad_files.csv`."""
    source, corpus, run = corpus_of(settings.corpus), settings.corpus, settings.run
    shard = jax.process_index(), jax.process_count()
    ledger = Ledger(workdir / "bad_files.csv", len(source.clips), corpus.max_bad)
    return iter(clips(source, corpus, frames=settings.model.frames, size=settings.model.size,
                      batch=run.batch // shard[1], seed=run.seed, ledger=ledger, shard=shard))


def fit(settings: config.Pretrain, workdir: Path, *, live: bool | Console = True) -> TrainState:
    """Trains until `run.steps` and returns the final state, resuming from `workdir` if it holds a checkpoint.

    Writes config.json, metrics.jsonl, TensorBoard events, bad_files.csv and checkpoints. Data-parallel over all
    devices. Raises checkpoint.CheckpointError if `workdir` belongs to another config, record.Diverged at a loss
    that is not finite.
    """
    if settings.run.batch % jax.device_count():
        near = jax.device_count() * max(1, settings.run.batch // jax.device_count())
        raise config.ConfigError(f"run.batch = {settings.run.batch}: must be a multiple of the {jax.device_count()} "
                                 f"devices; nearest: {near}")
    checkpoint.claim(workdir, settings)
    mesh = Mesh(jax.devices(), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    network, data = build(settings.model, settings.target), loader(settings, workdir)
    state = jax.jit(lambda: initialise(network, settings), out_shardings=whole)()
    step = jax.jit(make_step(network, settings), donate_argnums=0, in_shardings=(whole, split))
    check = jax.jit(make_check(network, settings), in_shardings=(whole, split))
    book = checkpoint.Checkpoints(workdir, save_every=settings.run.save_every, keep=settings.run.keep)
    state = book.restore(state, data) or state
    done = int(jax.device_get(state.step))
    with record.Record(workdir, steps=settings.run.steps, start=done, live=live) as kept, \
            jax.transfer_guard("disallow"):
        for i in range(done, settings.run.steps):
            if book.due(i):
                kept.settle()  # so that no row is lost to a kill, and no diverged state is kept
                book.save(i, state, data)  # before the next batch is drawn, or a resumed run would skip it
            with kept.clock.waiting():
                video = jax.make_array_from_process_local_data(split, next(data)["video"])
            logged = (i + 1) % settings.run.log_every == 0 or i + 1 == settings.run.steps
            state, metrics = step(state, video)
            kept.clock.tick(settings.run.batch)
            if logged:
                kept.later(i + 1, metrics | check(state, video))
    book.save(settings.run.steps, state, data)
    book.close()
    return state
