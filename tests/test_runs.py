"""What happens to a run from without: disks that fill, signals at any time, other devices, files that were replaced."""

import json
import logging
import os
import resource
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import MASK, MODEL, corpus, settings  # noqa: F401

from cora import cli, config, train
from cora.files import whole
from cora.measure import table
from cora.report import page
from cora.store import checkpoint, record, weights
from cora.video import synthetic


@contextmanager
def full(size: int):
    """No file may grow beyond `size` bytes: to a writer the same as a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def numbered():
    return iter(grain.MapDataset.range(100).repeat().to_iter_dataset())


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("room", [10, 100_000])
def test_a_disk_that_fills_leaves_the_last_checkpoint_and_says_which(tmp_path, room, caplog):
    """Once it is the data's place that is not written, once the weights."""
    state = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32))}
    book, data = checkpoint.Checkpoints(tmp_path), numbered()
    book.save(1, state, data)
    book._manager.wait_until_finished()
    before = everything(tmp_path)
    with full(room), pytest.raises(checkpoint.CheckpointError, match=r"file too large.*step 1; make room") as hit:
        book.save(2, state, data)
        book.close()
    assert "\n" not in str(hit.value) and not [line for line in caplog.records if line.levelno >= logging.ERROR]
    assert everything(tmp_path) == before
    again = checkpoint.Checkpoints(tmp_path)
    np.testing.assert_array_equal(again.restore(state, data)["a"], state["a"])
    again.close()


TABLE = table.Table(features=np.ones((1, 99, 9), np.float32), label=np.zeros(99, np.int64),
                    group=np.array(["g"] * 99), split=np.array(["train"] * 99), path=np.array(["p"] * 99),
                    class_name=None)
ROW = {"path": "a" * 99, "label": 0, "class_name": "", "group": "", "split": "", "n_frames": 1, "height": 1,
       "width": 1, "fps": 1.0}
WRITERS = {
    "a.npz": lambda file: table.save(file, TABLE),
    "a.csv": lambda file: synthetic.write_manifest(file, [ROW]),
    "a.safetensors": lambda file: weights.write_arrays(file, {"a": np.ones(999)}, {}),
    "a.json": lambda file: checkpoint._put(file, "x" * 99),
    "metrics.jsonl": lambda file: record.truncate(file, 5),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_whole_leaves_what_was_there_and_nothing_beside_it(tmp_path, name):
    old = json.dumps({"step": 1, "seconds": 1.0}) + "\n"
    (tmp_path / name).write_text(old)
    with full(10), pytest.raises(OSError):
        WRITERS[name](tmp_path / name)
    assert everything(tmp_path) == [name] and (tmp_path / name).read_text() == old
    WRITERS[name](tmp_path / name)
    assert everything(tmp_path) == [name]


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OSError), full(10), whole(tmp_path / page.FILE) as part:
        part.write_text("x" * 99)
    assert everything(tmp_path) == []


def test_files_that_were_replaced_under_the_same_names_are_noticed(tmp_path):
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for path in paths:
        path.write_bytes(b"one")
    for change in (None, lambda: paths[1].write_bytes(b"other"), lambda: os.utime(paths[0], (0, 0)), paths[1].unlink):
        checkpoint.keep_clips(tmp_path, {"corpus": checkpoint.clips_of(tmp_path, paths)}, resumed=False)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for resumed in range(2):  # the second time it is no news
                if change and not resumed:
                    change()
                checkpoint.keep_clips(tmp_path, {"corpus": checkpoint.clips_of(tmp_path, paths)}, resumed=True)
        assert [w.category for w in told] == [checkpoint.StoreWarning] * (change is not None)
    then = json.loads((tmp_path / "corpora.json").read_text())
    del then["corpus"]["versions"]  # as earlier checkouts left it
    (tmp_path / "corpora.json").write_text(json.dumps(then))
    checkpoint.keep_clips(tmp_path, {"corpus": checkpoint.clips_of(tmp_path, paths)}, resumed=True)


def test_a_mixed_batch_that_is_shared_out_otherwise_on_other_devices_is_named(tmp_path, monkeypatch):
    """8 clips at weights 5 and 3: 5 and 3 on one device; on four, whose shapes have a multiple of 4 each, 4 and 4."""
    mixed = config.Pretrain(model=MODEL, mask=MASK, corpus=config.Corpus(weight=5.0),
                            mix=(config.Corpus(weight=3.0, frames=2, stride=1),), run=config.Run(batch=8))
    shares = {}
    for devices in (1, 4):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        shares[devices] = train._shares(mixed)
    assert [list(one.values()) for one in shares.values()] == [[5, 3], [4, 4]]
    checkpoint.keep_shares(tmp_path, shares[1], 1, resumed=False)
    checkpoint.keep_shares(tmp_path, shares[1], 1, resumed=True)
    said = r"on 4 devices, not 1.*4 frames.*: 5 then, 4 now.*: 3 then, 4 now"
    with pytest.warns(checkpoint.StoreWarning, match=said):
        checkpoint.keep_shares(tmp_path, shares[4], 4, resumed=True)


def test_extend_of_a_folder_without_a_run_is_said_to_do_nothing(tmp_path):
    with pytest.warns(checkpoint.StoreWarning, match="holds no run yet: --extend does nothing"):
        checkpoint.claim(tmp_path / "new", config.Pretrain(), extend=True)
    assert (tmp_path / "new" / "config.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_training_ends_a_run_at_once_and_says_so(corpus, tmp_path, monkeypatch, number):  # noqa: F811
    monkeypatch.setattr(train, "loader", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(train.Stopped, match="stopped before training; nothing is saved yet; the same command") as stop:
        train.fit(settings(corpus), tmp_path, live=False)
    assert stop.value.signal_number == number and signal.getsignal(number) is before


def test_a_second_signal_names_the_last_saved_step_and_a_loss_between_two_lines_is_seen(
    corpus, tmp_path, monkeypatch,  # noqa: F811
):
    wanted, tick, seen = settings(corpus, log_every=6), record.Clock.tick, []

    def ticked(self, clips):
        tick(self, clips)
        seen.append(clips)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(record.Clock, "tick", ticked)
        with pytest.raises(train.Stopped, match="stopped at once; step 2 is saved") as stop:
            train.fit(wanted, tmp_path / "stopped", live=False)
    assert (stop.value.step, stop.value.signal_number) == (2, signal.SIGTERM)

    made = train.make_step

    def broken(given):
        def step(state, videos):
            after, metrics = made(given)(state, videos)
            lost = (state.step == 2) & (jnp.arange(2) == 1)  # the third step, of the upper level alone
            return after, metrics | {"loss": jnp.where(lost, jnp.inf, metrics["loss"])}
        return step

    monkeypatch.setattr(train, "make_step", broken)
    with pytest.raises(record.Diverged, match="the loss of level 1 is not finite at step 3") as hit:
        train.fit(wanted, tmp_path / "lost", live=False)
    assert hit.value.kept == 2 and everything(tmp_path / "lost" / "checkpoints")[-1][0] == "2"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_demo_that_is_stopped_outside_training_says_how_to_go_on(tmp_path, monkeypatch, capsys, number, status):
    from cora import demo

    monkeypatch.setattr(demo.synthetic, "corpus", lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--out", str(tmp_path)])
    assert stop.value.code == status
    assert capsys.readouterr().err.strip() == "cora demo: stopped; the same command goes on from where it was"
