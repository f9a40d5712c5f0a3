"""Checkpoints: the training state, the data iterator's state and the config, saved together in one step folder.

The only file that knows orbax. A step folder appears whole or not at all, so a run may be killed at any moment.
"""

import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO, TypeVar

import grain
import jax
import orbax.checkpoint as ocp

from cora import config
from cora.files import whole
from cora.store.stopping import StoreWarning

State = TypeVar("State")
STEPS = "checkpoints"
"""Folder of a run's step folders."""


def _is_news(record: logging.LogRecord) -> bool:
    """Returns whether a line of orbax' is no tale of a failure that `Checkpoints` tells in one line."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_is_news)


class CheckpointError(ValueError):
    """A folder holds no checkpoint, or that of another config; the message says what differs."""


def step_of(path: Path) -> int | None:
    """Returns the step of a step folder (RUN/checkpoints/STEP), None for any other path: a run may lie in a folder of
    that name too."""
    is_step = path.parent.name == STEPS and path.name.isdecimal() and not (path / "config.json").is_file()
    return int(path.name) if is_step else None


def run_of(path: Path) -> Path:
    """Returns the run folder that a path names: itself, or for a step folder its run."""
    return path if step_of(path) is None else path.parent.parent


def config_of(path: Path) -> config.Pretrain:
    """Returns the config of a run folder or of one of its step folders. Raises CheckpointError if there is none."""
    file = run_of(path) / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path}: not a run folder (no config.json); give the --workdir of a `cora pretrain`")
    return config.from_json(config.Pretrain, file.read_text())


@contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Holds a run folder against other processes; the system lets go of it however this one ends.

    Raises CheckpointError that names the process which holds it already, or says that the path is a file's.
    """
    if workdir.exists() and not workdir.is_dir():
        raise CheckpointError(f"{workdir} is a file, and a run needs a folder; choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("a+") as file:  # which stays: to remove it would let a third process in
        _seize(workdir, file)
        yield


def _seize(workdir: Path, file: TextIO) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no such locks
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise CheckpointError(f"{workdir}: process {file.read() or 'unknown'} is training there; wait for it or choose "
                              "another --workdir") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # nor have some network disks
            raise
    file.truncate(0)
    file.write(f"{os.getpid()} on {platform.node()}")
    file.flush()


def keep_shares(workdir: Path, now: Mapping[str, int], devices: int, *, resumed: bool) -> None:
    """Writes into `workdir` how many clips each shape of a batch has on so many devices; warns where a run that is
    `resumed` had others."""
    file = workdir / "shares.json"
    if resumed and file.is_file():
        then = json.loads(file.read_text())
        if then["clips"] != dict(now):
            lines = (f"{name}: {then['clips'].get(name, 0)} then, {own} now" for name, own in now.items())
            warnings.warn(f"{workdir}: on {devices} devices, not {then['devices']}, a batch is shared out otherwise "
                          f"({'; '.join(lines)}): corpora have other weights from here on", StoreWarning, stacklevel=2)
    _put(file, json.dumps({"devices": devices, "clips": dict(now)}, indent=2) + "\n")


def claim(workdir: Path, wanted: config.Pretrain, extend: bool = False) -> None:
    """Makes `workdir` belong to this config, or raises CheckpointError with the fields in which it already differs, or
    of which it says nothing.

    Only what cannot change the result may differ: cadences of logging and saving, and the number of threads; with
    `extend` there may be more steps too.
    """
    file = workdir / "config.json"
    if file.is_file():
        free = {"run.log_every", "run.save_every", "run.keep", "corpus.threads"}
        text = file.read_text()
        unsaid = config.unsaid(config.Pretrain, text)
        if unsaid:
            raise CheckpointError(f"{file} is of an earlier checkout and does not say {', '.join(unsaid)}: choose "
                                  "another --workdir, or write there what they were")
        differs = config.difference(config.from_json(config.Pretrain, text), wanted)
        bad = {name: values for name, values in differs.items() if name not in free}
        before, now = bad.get("run.steps", (0, 0))
        if extend and now > before:
            del bad["run.steps"]
        if bad:
            lines = [f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in bad.items()]
            head = f"{workdir} belongs to another config; choose another --workdir:"
            if set(bad) == {"run.steps"} and now > before:
                lines.append("to train this run for longer, give --extend: weights, optimiser and teacher go on, and "
                             "schedules follow the new number of steps from where the run stands")
            raise CheckpointError("\n".join([head, *lines]))
        if extend:
            return  # the number of steps is written once the run has been found able to go on
    elif extend:
        warnings.warn(f"{workdir} holds no run yet: --extend does nothing", StoreWarning, stacklevel=2)
    workdir.mkdir(parents=True, exist_ok=True)
    write_config(workdir, wanted)


def write_config(workdir: Path, wanted: config.Pretrain) -> None:
    """Writes the config to which a run folder belongs."""
    _put(workdir / "config.json", config.to_json(wanted))


def _put(file: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    with whole(file) as part:
        part.write_text(text)


class Clips(NamedTuple):
    """What a run remembers of a corpus: enough to tell whether it is still the same, nothing of what is in it."""

    number: int
    sha256: str
    """Of their paths, in their order."""
    versions: str = ""
    """The same of their sizes and times of change; empty where an earlier checkout did not write it down."""


def clips_of(root: Path, paths: Sequence[Path]) -> Clips:
    """Returns what to remember of a corpus with these paths; those in the folder `root` count as they lie to it."""
    seen, versions, above = hashlib.sha256(), hashlib.sha256(), os.fsencode(root / "x")[:-1]
    for path in paths:
        seen.update(os.fsencode(path).removeprefix(above) + b"\0")
        try:
            status = path.stat()
            versions.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:
            versions.update(b"missing\n")
    return Clips(len(paths), seen.hexdigest(), versions.hexdigest())


def keep_clips(workdir: Path, now: Mapping[str, Clips], *, resumed: bool) -> None:
    """Writes into `workdir` which clips the run's corpora have. One that is `resumed` must have those that it was begun
    with: raises CheckpointError with the corpora whose clips are others, and warns of those whose files were written
    anew under the same names.

    Where in the order of clips a checkpoint stands would else mean nothing: some would come twice, others never. A run
    of an earlier checkout, which did not write them down, goes on with what there is.
    """
    file = workdir / "corpora.json"
    if resumed and file.is_file():
        then = {name: Clips(**own) for name, own in json.loads(file.read_text()).items()}
        lines = [f"  {name}: {then[name].number} clips then, {own.number} now, not the same"
                 for name, own in now.items() if own[:2] != then[name][:2]]
        if lines:
            raise CheckpointError("\n".join([f"{workdir} was begun with other clips; restore them, in their order, or "
                                             "choose another --workdir:", *lines]))
        for name, own in now.items():
            if then[name].versions not in ("", own.versions):
                warnings.warn(f"{workdir}: files of {name} have other sizes or times of change than when the run last "
                              "began; if they were replaced, it goes on with other clips under the same names",
                              StoreWarning, stacklevel=2)
    _put(file, json.dumps({name: own._asdict() for name, own in now.items()}, indent=2) + "\n")


class Checkpoints:
    """The step folders of one run."""

    def __init__(self, workdir: Path, *, save_every: int = 1, keep: int = 2) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, save_interval_steps=save_every, create=True)
        self._folder = (workdir / STEPS).absolute()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """Returns the newest step that was saved; None if there is none."""
        return self._manager.latest_step()

    def on_disk(self) -> int | None:
        """Returns the newest step whose folder is whole, from the disk alone: a signal may ask while orbax is at work
        and holds its locks."""
        return max((int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()), default=None)

    def empty(self) -> bool:
        """Returns whether nothing was saved yet."""
        return self.latest() is None

    def due(self, step: int) -> bool:
        """Returns whether a checkpoint of this step should be saved now."""
        return self._manager.latest_step() != step and self._manager.should_save(step)

    def save(self, step: int, state: State, data: grain.DatasetIterator) -> None:
        """Saves unless it stands there. Call it before the next batch is drawn, or resuming skips one."""
        if self._manager.latest_step() != step:
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(data))
            with self._written():
                self._manager.save(step, args=items, force=True)

    def restore(self, like: State, data: grain.DatasetIterator) -> State | None:
        """Returns the latest state, sharded as `like`, and sets `data` to where it stood; None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like), data=grain.checkpoint.CheckpointRestore(data))
        return self._manager.restore(step, args=items)["state"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        with self._written():
            self._manager.close()

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Raises CheckpointError in place of what orbax says of a disk that is full or fails, and leaves no part of a
        step behind: orbax writes on while a run goes on, and says it at the next step or in the end."""
        try:
            yield
        except (OSError, ValueError) as error:
            code = error.errno if isinstance(error, OSError) else _system_error(str(error))
            if code is None:
                raise
            for part in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(part, ignore_errors=True)
            kept = self.latest()
            good = "no step is saved" if kept is None else f"the last that is saved is step {kept}"
            raise CheckpointError(f"{self._folder}: a checkpoint could not be written ({os.strerror(code).lower()}); "
                                  f"{good}; make room, and the same command goes on from there") from error


def _system_error(text: str) -> int | None:
    """Returns the number of the system's error that TensorStore tells of, if any."""
    found = re.search(r"os_error_code='(\d+)'", text)
    return int(found.group(1)) if found else None


def read_state(path: Path, like: State) -> tuple[int, State]:
    """Returns (step, state) of a run folder's latest checkpoint, or of one step folder; `like` may be a part of it.

    Names of fields and keys must be those of what was saved; what `like` lacks, the optimiser's state as a rule, is
    not read.
    """
    root, step = run_of(path) / STEPS, step_of(path)
    if not root.is_dir():
        raise CheckpointError(f"{path}: no checkpoint; give the --workdir of a `cora pretrain` or a step folder")
    with ocp.CheckpointManager(root.absolute()) as manager:
        step = manager.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(f"{path}: no checkpoint; give the --workdir of a `cora pretrain` or a step folder")
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
        part = ocp.args.PyTreeRestore(item=shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes),
                                      partial_restore=True)
        return step, manager.restore(step, args=ocp.args.Composite(state=part))["state"]
