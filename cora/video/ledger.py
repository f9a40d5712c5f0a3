"""The list of files that a run could not read, and when there are too many of them.

Knows a CSV file with the columns path and reason; never what becomes of a clip whose file is unreadable.
"""

import csv
import threading
from pathlib import Path

from cora.video.codec import VideoError

COLUMNS = ("path", "reason")


class CorpusError(RuntimeError):
    """Too much of a corpus is unreadable for a run to go on."""


class Ledger:
    """Every unreadable file once, appended to a CSV the moment it is met; lines of an earlier run are kept.

    `files` is how many files the corpus has, and `max_bad` the fraction of them that may be unreadable. Threads may
    share a ledger; it pickles as its path, so worker processes share the file.
    """

    def __init__(self, path: Path, files: int, max_bad: float) -> None:
        self.path, self.files, self.max_bad = path, files, max_bad
        self._lock = threading.Lock()
        self._bad = _lines(path)

    def __reduce__(self) -> tuple[type["Ledger"], tuple[Path, int, float]]:
        return Ledger, (self.path, self.files, self.max_bad)  # a lock does not pickle

    @property
    def bad(self) -> dict[str, str]:
        """Returns {path: reason} of the files met so far."""
        with self._lock:
            return dict(self._bad)

    def record(self, error: VideoError) -> None:
        """Writes the file down unless it stands there. Raises CorpusError once more than `max_bad` of all are bad."""
        with self._lock:
            if str(error.path) not in self._bad:
                self._bad |= _lines(self.path)  # another process may have met it
            if str(error.path) not in self._bad:
                self._append(str(error.path), error.reason)
            bad = len(self._bad)
        if bad > self.max_bad * self.files:
            raise CorpusError(
                f"{bad} of {self.files} files ({bad / self.files:.0%}) are unreadable, and corpus.max_bad is "
                f"{self.max_bad}. They are listed with reasons in {self.path}. Repair them or take them out of the "
                f"manifest, then delete that list; or raise corpus.max_bad"
            )

    def _append(self, path: str, reason: str) -> None:
        self._bad[path] = reason
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            before = file.read()
            lines = csv.writer(file, lineterminator="\n")
            if not before:
                lines.writerow(COLUMNS)
            elif not before.endswith("\n"):  # a run was killed while it wrote
                file.write("\n")
            lines.writerow((path, reason))


def _lines(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row[0]: row[1] for row in csv.reader(file) if len(row) == 2 and tuple(row) != COLUMNS}
