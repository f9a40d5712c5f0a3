"""How a run ends and goes on: signals, which end it between two steps where it is training and at once where it is
not, and the warning that it goes on otherwise than it was begun. Light, for the command line needs it first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StoreWarning(UserWarning):
    """A run that goes on otherwise than it was begun."""


class Stopped(KeyboardInterrupt):
    """A signal ended the run; `.step` is the last that is saved (None: there is none)."""

    def __init__(self, step: int | None, signal_number: int, how: str = "") -> None:
        saved = "nothing is saved yet" if step is None else f"step {step} is saved"
        super().__init__(f"{how or f'stopped after step {step}, which is saved'}"
                         f"{f'; {saved}' if how else ''}; the same command goes on from there")
        self.step, self.signal_number, self.how = step, signal_number, how


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing waits for a step to end."""

    signal_number = signal.SIGTERM


@contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM end the program as Ctrl-C does, so that what is half made is put away and a line says so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Signals:
    """What SIGINT and SIGTERM do: noted in `asked` while `patient`, so that a step is ended and saved first."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.patient = False
        self.saved: Callable[[], int | None] = lambda: None
        """Returns the last step that is saved."""

    def note(self, number: int, frame: object) -> None:
        """Notes the first signal of a patient run; raises Stopped at any other."""
        if not self.patient:
            raise Stopped(self.saved(), number, "stopped before training")
        if self.asked:
            raise Stopped(self.saved(), number, "stopped at once")
        self.asked.append(number)


@contextmanager
def signals() -> Iterator[Signals]:
    """Yields what notes signals in place of ending the program. Elsewhere than in the main thread they are left
    alone."""
    here = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield here
        return
    before = {number: signal.signal(number, here.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield here
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
