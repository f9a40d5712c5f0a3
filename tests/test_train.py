"""Laws of a run: resuming is exact, a run folder has one config, devices do not matter, clips teach something."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import compiled, drawn

from cora import config, train
from cora.nets import hog3d
from cora.nets.hierarchy import build
from cora.store import checkpoint, record, weights
from cora.video import codec
from cora.video.manifest import ManifestWarning
from cora.video.motion import standing

MODEL = config.Model(frames=4, size=16, patch=8, tubelet=2, width=16, heads=2, levels=2, predictor_width=8,
                     predictor_heads=1)
MASK = config.Mask(kinds=("short",))
"""One kind: two take twice as long to compile."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve short films of a bright square that moves, and one file that is none."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(12):
        film = np.full((10, 24, 24, 3), 30 + 5 * i, np.uint8)
        for t in range(10):
            film[t, 4 : 12, (i + t) % 16 : (i + t) % 16 + 8] = 220 - 6 * i
        codec.write(folder / f"{i:02}.mp4", film, 10.0)
    (folder / "07b.mp4").write_text("not a film")
    return folder


def settings(corpus, **run):
    return config.Pretrain(model=MODEL, mask=MASK, corpus=config.Corpus(path=str(corpus), max_bad=0.5),
                           run=config.Run(**{"steps": 6, "batch": 4, "log_every": 2, "save_every": 2, **run}))


def begun(made):
    network = build(MODEL)
    return train.initialise(network, made, drawn(network))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def straight(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, train.fit(settings(corpus), folder, live=False)


def test_a_process_killed_at_any_moment_resumes_to_the_same_bits(corpus, straight, tmp_path):
    """SIGKILL falls on a real process, once before and once after its first checkpoint."""
    folder, undisturbed = straight
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import conftest, test_train as t; "
            f"from pathlib import Path; from cora import train; "
            f"train.fit(t.settings({str(corpus)!r}), Path({str(tmp_path)!r}), live=False)")
    for enough in (tmp_path / "config.json", tmp_path / "checkpoints" / "2"):
        process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ), stderr=subprocess.DEVNULL)
        deadline = time.time() + 120
        while not enough.exists() and process.poll() is None and time.time() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    state = train.fit(settings(corpus), tmp_path, live=False)
    same(state, undisturbed)
    steps = [row["step"] for row in record.read(tmp_path / record.FILE)]
    assert steps == [row["step"] for row in record.read(folder / record.FILE)] == [2, 4, 6]
    losses = [[row["loss"] for row in record.read(f / record.FILE)] for f in (folder, tmp_path)]
    assert losses[0] == losses[1]


def test_a_finished_run_stays_as_it_is(corpus, straight):
    folder, state = straight
    same(train.fit(settings(corpus), folder, live=False), state)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_its_step_and_resumes_to_the_same_bits(corpus, straight, tmp_path, monkeypatch, number):
    """The signal comes between two steps, one before any checkpoint was due, one in the last step: the caller of a run
    that is done is told of it too."""
    at, tick = (1 if number == signal.SIGINT else 6), record.Clock.tick
    seen = []

    def ticked(self, clips):
        tick(self, clips)
        seen.append(clips)
        if len(seen) == at:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(record.Clock, "tick", ticked)
    before = signal.getsignal(number)
    with pytest.raises(train.Stopped, match=f"after step {at}, which is saved") as stop:
        train.fit(settings(corpus, save_every=100), tmp_path, live=False)
    assert stop.value.step == at and stop.value.signal_number == number and signal.getsignal(number) is before
    assert (tmp_path / "checkpoints" / str(at)).is_dir()
    same(train.fit(settings(corpus), tmp_path, live=False), straight[1])
    assert len(seen) == 6, "no step was taken twice"


def test_no_state_that_is_not_finite_replaces_a_good_one(corpus, tmp_path):
    """Weights break at the third step, of which no line is logged; the folder keeps what stood before."""
    wanted = settings(corpus, save_every=1, log_every=100, keep=2)
    wanted = replace(wanted, optim=config.Optim(lr=1e30, warmup=0.6))
    with pytest.raises(record.Diverged, match="is sound") as hit:
        train.fit(wanted, tmp_path, live=False)
    kept = sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir())
    assert kept and hit.value.kept == kept[-1] < hit.value.step
    for step in kept:
        state = weights.read_run(tmp_path / "checkpoints" / str(step))[2]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state))), step


def test_a_finished_run_can_be_trained_for_longer(corpus, straight, tmp_path):
    """Weights, optimiser and teacher go on: three steps and three more are what six would have been, where schedules
    are flat. Without --extend it is another config, and the message names the way."""
    flat = replace(settings(corpus), optim=config.Optim(schedule="constant", warmup=0.0),
                   target=config.Target(momentum=(0.9, 0.9)))
    short = replace(flat, run=replace(flat.run, steps=3))
    train.fit(short, tmp_path / "two", live=False)
    with pytest.raises(checkpoint.CheckpointError, match=r"run\.steps: 3 there, 6 now(.|\n)*--extend"):
        train.fit(flat, tmp_path / "two", live=False)
    same(train.fit(flat, tmp_path / "two", live=False, extend=True), train.fit(flat, tmp_path / "one", live=False))
    assert [row["step"] for row in record.read(tmp_path / "two" / record.FILE)] == [2, 3, 4, 6]
    with pytest.raises(checkpoint.CheckpointError, match=r"run\.steps: 6 there, 3 now"):
        train.fit(short, tmp_path / "two", live=False, extend=True)


def test_a_workdir_that_is_a_file_is_named(corpus, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(checkpoint.CheckpointError, match="notes is a file, and a run needs a folder"):
        train.fit(settings(corpus), tmp_path / "notes", live=False)
    assert (tmp_path / "notes").read_text() == "mine"


def test_the_unreadable_file_is_in_the_ledger(corpus, straight):
    lines = (straight[0] / "bad_files.csv").read_text().splitlines()
    assert lines[0] == "path,reason" and all("07b.mp4" in line for line in lines[1:])


def test_a_folder_belongs_to_one_config(corpus, straight):
    with pytest.raises(checkpoint.CheckpointError, match=r"run\.seed: 0 there, 1 now"):
        train.fit(settings(corpus, seed=1), straight[0], live=False)


def test_a_folder_that_does_not_say_all_is_not_guessed_at(corpus, tmp_path):
    """A field that an earlier checkout had not may since have been given another meaning by default."""
    wanted = settings(corpus)
    checkpoint.claim(tmp_path, wanted)
    checkpoint.claim(tmp_path, wanted)
    known = json.loads((tmp_path / "config.json").read_text())
    del known["target"]["blur"]
    (tmp_path / "config.json").write_text(json.dumps(known))
    with pytest.raises(checkpoint.CheckpointError, match=r"does not say target\.blur: choose another"):
        checkpoint.claim(tmp_path, wanted)


def test_one_process_at_a_time_trains_in_a_folder(corpus, straight, monkeypatch):
    folder = straight[0]
    code = (f"import sys; from pathlib import Path; from cora.store import checkpoint\n"
            f"with checkpoint.alone(Path({str(folder)!r})):\n    print('held', flush=True); sys.stdin.read()")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(checkpoint.CheckpointError, match=rf"process {other.pid} on .* is training there"):
            train.fit(settings(corpus, seed=1), folder, live=False)  # the folder's config is not even looked at
        with monkeypatch.context() as windows:
            windows.setitem(sys.modules, "fcntl", None)
            with checkpoint.alone(folder):
                pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    for _ in range(2):
        with checkpoint.alone(folder), pytest.raises(checkpoint.CheckpointError, match=f"process {os.getpid()} on"):
            train.fit(settings(corpus), folder, live=False)


def test_a_run_goes_on_with_the_clips_that_it_was_begun_with(corpus, straight, tmp_path):
    """A file more, or one that is called otherwise, would change the order behind a checkpoint's back."""
    folder, state = shutil.copytree(straight[0], tmp_path / "run"), straight[1]
    more = shutil.copy(corpus / "00.mp4", corpus / "00b.mp4")
    with pytest.raises(checkpoint.CheckpointError, match=rf"corpus\.path = '{corpus}': 13 clips then, 14 now"):
        train.fit(settings(corpus), folder, live=False)
    more.unlink()
    other = (corpus / "03.mp4").rename(corpus / "03b.mp4")
    with pytest.raises(checkpoint.CheckpointError, match="13 clips then, 13 now, not the same"):
        train.fit(settings(corpus), folder, live=False)
    other.rename(corpus / "03.mp4")
    written = (folder / "corpora.json").read_text()
    (folder / "corpora.json").unlink()  # as earlier checkouts left it
    same(train.fit(settings(corpus), folder, live=False), state)
    assert (folder / "corpora.json").read_text() == written


def test_clips_are_remembered_in_order_wherever_their_corpus_lies(tmp_path):
    names = [Path("a/1.mp4"), Path("b.mp4"), Path(os.fsdecode(b"\xff.mp4"))]
    here = checkpoint.clips_of(Path(), names)
    for root in (Path("films"), Path("/films"), tmp_path):
        assert checkpoint.clips_of(root, [root / name for name in names]) == here
    for others in (names[::-1], names[:2], [*names[:2], Path("c.mp4")], [Path("/a/1.mp4"), *names[1:]]):
        assert checkpoint.clips_of(Path(), others) != here
    for clips in (here, checkpoint.clips_of(Path(), names[:2])):  # nothing was drawn before the first checkpoint
        checkpoint.keep_clips(tmp_path, {"corpus": clips}, resumed=False)
    with pytest.raises(checkpoint.CheckpointError, match="2 clips then, 3 now"):
        checkpoint.keep_clips(tmp_path, {"corpus": here}, resumed=True)


def test_another_seed_is_another_run(corpus, straight, tmp_path):
    other = train.fit(settings(corpus, seed=1), tmp_path, live=False)
    assert not np.array_equal(jax.tree.leaves(other.params)[0], jax.tree.leaves(straight[1].params)[0])


@pytest.mark.parametrize("rule", ["local", "backprop_last", "backprop_all", "pc"])
def test_a_step_lowers_the_loss_of_a_batch_it_sees_again(rule):
    made = config.Pretrain(model=MODEL, mask=MASK, learn=config.Learn(rule=rule), target=config.Target(kind="frozen"),
                           optim=config.Optim(warmup=0.0, lr=3e-3), run=config.Run(steps=60))
    step, state = compiled(train.make_step(made)), begun(made)
    video = jax.random.randint(jax.random.key(0), (8, 4, 16, 16, 3), 0, 256).astype(jnp.uint8)
    losses = []
    for _ in range(40):
        state, metrics = step(state, (video,))
        losses.append(np.asarray(metrics["loss"]))
    assert (np.mean(losses[-5:], 0) < 0.97 * np.mean(losses[:5], 0)).all()
    same(state.teacher, begun(made).params.encoder)


def test_muon_moves_every_level_s_matrices_evenly_in_all_directions_and_apart():
    """An update's singular values are equal but for what five Newton-Schulz steps leave, its root mean square is .2 of
    the rate, and no level's update depends on another level's gradient; what is no matrix moves as under Adam with
    Nesterov's momentum."""
    made = config.Pretrain(model=MODEL)
    optim = config.Optim(method="muon", warmup=0.0, schedule="constant", weight_decay=0.0, lr=1.0)
    params = drawn(build(MODEL))
    gradient = jax.tree.map(lambda leaf, k: jax.random.normal(jax.random.key(k), leaf.shape), params,
                            jax.tree.unflatten(jax.tree.structure(params), range(len(jax.tree.leaves(params)))))
    lone = jax.tree.map(lambda leaf: leaf.at[1:].multiply(7.0) if leaf.shape[0] == MODEL.levels else leaf, gradient)

    def moved(optim, gradient):
        tx = train.optimiser(optim, made.run.steps)
        return compiled(lambda g: tx.update(g, tx.init(params), params)[0])(gradient)

    (muon, other), adam = (moved(optim, g) for g in (gradient, lone)), optax.adam(1.0, b2=0.95, nesterov=True)
    adam = compiled(lambda g: adam.update(g, adam.init(params), params)[0])(gradient)
    for name in ("qkv", "fc1", "fc2"):
        own, apart = (tree.encoder.levels["blocks"]["block0"][name]["linear"] for tree in (muon, other))
        for kernel in own["kernel"]:
            values = np.linalg.svd(kernel, compute_uv=False)
            assert 0.6 < values.min() / values.mean() and values.max() / values.mean() < 1.5
            assert abs(np.sqrt(np.square(kernel).mean()) / 0.2 - 1) < 0.3
        np.testing.assert_allclose(apart["kernel"][0], own["kernel"][0], atol=1e-6)
        np.testing.assert_allclose(apart["kernel"][1], own["kernel"][1], atol=1e-3)  # it does not ask how steep
        np.testing.assert_allclose(own["bias"], adam.encoder.levels["blocks"]["block0"][name]["linear"]["bias"],
                                   atol=1e-5)


def test_two_devices_are_one():
    assert jax.device_count() == 2
    made = config.Pretrain(model=MODEL)
    video = jax.random.randint(jax.random.key(0), (4, 4, 16, 16, 3), 0, 256).astype(jnp.uint8)
    step = train.make_step(made)
    alone = compiled(step)(begun(made), (video,))[1]
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    split, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    both = compiled(step, in_shardings=(whole, split))(begun(made), (video,))[1]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(alone[name], both[name], rtol=1e-5)


def test_export_comes_back_bit_for_bit_and_a_misfit_is_named(straight, tmp_path):
    encoder = straight[1].teacher
    assert weights.save(tmp_path, MODEL, encoder) == 0.0
    again = weights.load(tmp_path)
    same(again.encoder, encoder)
    clips = np.zeros((1, 4, 16, 16, 3), np.uint8)
    assert again(clips).shape == (2, 1, 8, 16)
    with pytest.raises(ValueError, match="this encoder reads"):
        again(clips[:, :3])
    meta = json.loads((tmp_path / "config.json").read_text())
    meta["model"]["levels"] = 3
    (tmp_path / "config.json").write_text(json.dumps(meta))
    with pytest.raises(weights.WeightsError, match=r"levels\.blocks\.block0\.fc1"):
        weights.load(tmp_path)


@pytest.mark.parametrize(("of", "moves", "warns"), [("change", False, True), ("whole", False, False),
                                                     ("change", True, False)])
def test_a_run_whose_targets_are_zero_everywhere_says_so_first(corpus, tmp_path, of, moves, warns):
    films = corpus if moves else tmp_path / "still"
    for i in range(0 if moves else 5):
        picture = np.random.default_rng(i).integers(0, 256, (1, 24, 24, 3), np.uint8)
        (films).mkdir(exist_ok=True)
        codec.write(films / f"{i}.mp4", picture.repeat(10, 0), 10.0)
    made = replace(settings(films, steps=1), target=config.Target(kind="hog3d", of=of))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ManifestWarning)
        train.fit(made, tmp_path / "run", live=False)
    assert any("--target.of whole" in str(warning.message) for warning in told) == warns
    if warns:  # the fault that is warned of: a still clip's targets, by the model's own measure
        clip = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16, 3), np.uint8).repeat(4, 1))
        assert not hog3d.goal(MODEL, made.target)(build(MODEL).patches(clip)).any()


def test_a_clip_stands_still_where_no_frame_differs_from_the_first():
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 200, (4, 1, 6, 6, 3), np.uint8).repeat(5, 1)
    clips[1, 3, 2, 4, 1] += 9
    clips[2] += rng.integers(0, 9, clips[2].shape, np.uint8)
    meant = [all(abs(int(a) - int(b)) <= 8 for frame in clip for a, b in zip(frame.flat, clip[0].flat, strict=True))
             for clip in clips]
    assert standing(clips, 2).tolist() == meant == [True, False, True, True]
    assert standing(clips, 1).all()
