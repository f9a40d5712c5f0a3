"""The scalars of a training run: `metrics.jsonl`, TensorBoard events and the live display, one row at a time.

A row is written one call late, so that the host asks the device only for numbers that are long computed. This
file knows what a row looks like and how runs that are killed and resumed keep one consistent history. It does
not know what the numbers mean, except that a loss has to be finite.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from tensorboardX import SummaryWriter

from cora.files import whole

FILE = "metrics.jsonl"
EVENTS = "tensorboard"
Row = dict[str, Any]
"""`step` and numbers; what there is one of for each level is a list."""


class Diverged(RuntimeError):
    """A loss or a weight is not finite; `.step` and `.level` say where it was first seen, `.kept` which checkpoint is
    the last whose state is finite (None: there is none)."""

    def __init__(self, step: int, level: int | None, kept: int | None = None) -> None:
        what = "a weight" if level is None else f"the loss of level {level}"
        from_there = "" if kept is None else f", and `--run.start` this one's folder, whose step {kept} is sound"
        super().__init__(f"{what} is not finite at step {step}: choose another --workdir and a lower optim.lr, or a "
                         f"longer optim.warmup{from_there}")
        self.step, self.level, self.kept = step, level, kept


class RecordError(ValueError):
    """A metrics file, or a row for it, is not what it should be; the message says where."""


# ------------------------------------------------------------------------------------------------------ the clock


class Rates(NamedTuple):
    """How fast clips are learned from and which part of that time passed in waiting for data; nan: not yet known."""

    clips_per_second: float
    wait_share: float


UNKNOWN = Rates(math.nan, math.nan)


class _Mark(NamedTuple):
    time: float
    clips: int
    waited: float


def _between(a: _Mark, b: _Mark) -> Rates:
    passed = b.time - a.time
    return Rates((b.clips - a.clips) / passed, (b.waited - a.waited) / passed) if passed > 0 else UNKNOWN


class Clock:
    """Tells how fast a loop runs. All rates begin where the first step ends, because that step compiles."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._start = now()
        self._clips, self._waited = 0, 0.0
        self._first: _Mark | None = None
        self._last: _Mark | None = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of its body as waiting for data."""
        begun = self._now()
        try:
            yield
        finally:
            self._waited += self._now() - begun

    def tick(self, clips: int) -> None:
        """Counts one step that has learned from `clips` clips."""
        self._clips += clips
        if self._first is None:
            self._first = self._last = self._mark()

    def seconds(self) -> float:
        """Returns the seconds since the clock was made, compilation included."""
        return self._now() - self._start

    def rates(self) -> Rates:
        """Returns the rates since the last call of `rates`, or since the end of the first step."""
        if self._last is None:
            return UNKNOWN
        since, self._last = self._last, self._mark()
        return _between(since, self._last)

    def total(self) -> Rates:
        """Returns the rates of the whole run after its first step."""
        return UNKNOWN if self._first is None else _between(self._first, self._mark())

    def _mark(self) -> _Mark:
        return _Mark(self._now(), self._clips, self._waited)


# ------------------------------------------------------------------------------------------------------- the file


def read(path: Path) -> list[Row]:
    """Returns the rows of a metrics file, numbers that were not finite as nan.

    A last line without its end is left out, as a run may be writing it or may have been killed there.
    Raises RecordError for any other line that is not a row.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_parse(line, f"{path}, line {i}") for i, line in enumerate(lines, 1)]


def truncate(path: Path, step: int) -> None:
    """Drops the rows after `step`, and a last line that a kill cut short; the file changes at once or not at all."""
    if not path.exists():
        return
    kept = [row for row in read(path) if row["step"] <= step]
    with whole(path) as part:
        part.write_text("".join(map(_line, kept)))


def _parse(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RecordError(f"{where} is not JSON ({error}): remove the line") from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise RecordError(f"{where} has no whole number `step`: remove the line")
    return _each(row, lambda x: math.nan if x is None else x)


def _line(row: Row) -> str:
    # NaN is not JSON: null stands for it.
    return json.dumps(_each(row, lambda x: x if math.isfinite(x) else None), allow_nan=False) + "\n"


def _each(row: Row, change: Callable[[Any], Any]) -> Row:
    return {k: [change(x) for x in v] if isinstance(v, list) else change(v) for k, v in row.items()}


def _plain(name: str, value: Any) -> float | list[float]:
    array = np.asarray(value, np.float64)
    if array.ndim > 1:
        raise RecordError(f"metric {name} of shape {array.shape}: must be a scalar or one number a level")
    return array.tolist()


# ---------------------------------------------------------------------------------------------------- the display


SHOWN = (("loss", ".4f"), ("skill", ".2f"), ("rank", ".1f"))
"""Metrics of the display and their format."""


def _numbers(values: Any, form: str) -> list[str]:
    return [format(x, form) for x in (values if isinstance(values, list) else [values])]


def _status(row: Row, steps: int, start: int) -> list[str]:
    """Returns step, speed, share of waiting and time left in words."""
    left = row["seconds"] / max(1, row["step"] - start) * (steps - row["step"])
    known = math.isfinite(row["clips_per_second"])
    speed = f"{row['clips_per_second']:.0f} clips/s" if known else "- clips/s"
    waits = f"{row['wait_share']:.0%} waiting for data" if known else "-"
    return [f"step {row['step']}/{steps}", speed, waits, f"{timedelta(seconds=round(left))} left"]


def _compact(row: Row, steps: int, start: int) -> str:
    """Returns the row as one line of plain text."""
    parts = [f"{name} {' '.join(_numbers(row[name], form))}" for name, form in SHOWN if name in row]
    step, *rest = _status(row, steps, start)
    return "  ".join([step, *parts, *rest])


def _panel(row: Row, steps: int, start: int) -> Group:
    """Returns the row as a bar above a table with one column a level."""
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total=steps, completed=row["step"], width=30), *_status(row, steps, start))
    table = Table(box=None, padding=(0, 2), header_style="dim")
    cells = {name: _numbers(row[name], form) for name, form in SHOWN if name in row}
    for head in ("", *(f"level {i}" for i in range(max(map(len, cells.values()))))):
        table.add_column(head, justify="right")
    for name, numbers in cells.items():
        table.add_row(name, *numbers)
    return Group(bar, table)


# ----------------------------------------------------------------------------------------------------- the record


class Record:
    """Writes the rows of one run that starts after step `start`; use it in a `with` block, which writes the last.

    `clock` is the run's clock: the loop tells it of waiting and of steps, and every row carries its rates.
    With `live` true the display goes to the terminal (or, every tenth of the run, as a line to a file), with false
    nowhere, and a Console says where.
    """

    def __init__(self, workdir: Path, *, steps: int, start: int, live: bool | Console) -> None:
        self.clock = Clock()
        self._steps, self._start = steps, start
        self._console = live if isinstance(live, Console) else Console(quiet=not live)
        self._pending: tuple[Row, Mapping[str, Any]] | None = None
        self._last, self._tenth = start, -1
        self._live: Live | None = None
        workdir.mkdir(parents=True, exist_ok=True)
        truncate(workdir / FILE, start)
        self._open = contextlib.ExitStack()
        self._file = self._open.enter_context((workdir / FILE).open("a"))
        # The suffix keeps two starts within one second from writing to the same file.
        self._events = SummaryWriter(str(workdir / EVENTS), purge_step=start + 1, filename_suffix=f".after{start}")
        self._open.callback(self._events.close)

    def __enter__(self) -> "Record":
        if self._console.is_terminal and not self._console.quiet:
            self._live = self._open.enter_context(Live("compiling the first step", console=self._console))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        with self._open:
            self.settle()

    def later(self, step: int, metrics: Mapping[str, ArrayLike]) -> None:
        """Writes the metrics of the previous call, and keeps these for the next (or for the end of the block).

        `step` counts finished steps, so the first is `start + 1`; each metric is a scalar or one number a level,
        and `loss` is among them. Raises Diverged if the previous loss is not finite, after its row is written;
        RecordError if steps do not rise or a metric has more than one axis.
        """
        if step <= self._last:
            raise RecordError(f"step {step} after step {self._last}: must rise; nearest: {self._last + 1}")
        self.settle()
        jax.block_until_ready(metrics)  # else a rate is that of dispatching, not of computing
        timing = {"step": step, "seconds": self.clock.seconds(), **self.clock.rates()._asdict()}
        self._last, self._pending = step, (timing, metrics)

    def settle(self) -> None:
        """Writes and shows the pending row, if there is one; called before a checkpoint, no kill can lose the row.

        Raises Diverged, as `later` does.
        """
        if self._pending is None:
            return
        (timing, metrics), self._pending = self._pending, None
        row = timing | {name: _plain(name, value) for name, value in jax.device_get(dict(metrics)).items()}
        self._file.write(_line(row))
        self._file.flush()
        self._add_events(row)
        for level, loss in enumerate(np.atleast_1d(row["loss"])):
            if not math.isfinite(loss):
                raise Diverged(row["step"], level)
        self._show(row)

    def _add_events(self, row: Row) -> None:
        for name, value in row.items():
            if isinstance(value, list):
                for level, x in enumerate(value):
                    self._events.add_scalar(f"{name}/level_{level}", x, row["step"])
            elif name != "step" and math.isfinite(value):
                self._events.add_scalar(name, value, row["step"])

    def _show(self, row: Row) -> None:
        if self._live is not None:
            self._live.update(_panel(row, self._steps, self._start))
        elif (tenth := 10 * row["step"] // self._steps) > self._tenth:
            self._tenth = tenth
            self._console.print(_compact(row, self._steps, self._start), soft_wrap=True, markup=False, highlight=False)
