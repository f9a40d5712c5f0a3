"""The list of files that a run could not read, and when there are too many of them.

Knows a CSV file with the columns path and reason; never what becomes of a clip whose file is unreadable.
"""

import csv
import threading
from collections.abc import Iterable
from pathlib import Path

from cora.video.promise import VideoError

COLUMNS = ("path", "reason")


class CorpusError(RuntimeError):
    """Too much of a corpus is unreadable for a run to go on."""


class Ledger:
    """Every unreadable file once, appended to a CSV the moment it is met; lines of an earlier run are kept.

    `files` are those of the corpus: of them alone the fraction `max_bad` may be unreadable, whatever other corpora
    left in the list. A file is known by its absolute path. Threads may share a ledger; it pickles as its path and
    files, so worker processes share the list.
    """

    def __init__(self, path: Path, files: Iterable[Path], max_bad: float) -> None:
        self.path, self.files, self.max_bad = path, frozenset(map(_name, files)), max_bad
        self._lock = threading.Lock()
        self._listed = _lines(path)

    def __reduce__(self) -> tuple[type["Ledger"], tuple[Path, frozenset[Path], float]]:
        return Ledger, (self.path, frozenset(map(Path, self.files)), self.max_bad)  # a lock does not pickle

    @property
    def bad(self) -> dict[str, str]:
        """Returns {absolute path: reason} of the corpus' files met so far."""
        with self._lock:
            return {name: reason for name, reason in self._listed.items() if name in self.files}

    def record(self, error: VideoError) -> None:
        """Writes the file down unless it stands there. Raises CorpusError once more than `max_bad` of all are bad."""
        name = _name(error.path)
        with self._lock:
            if name not in self._listed:
                self._listed |= _lines(self.path)  # another process may have met it
            if name not in self._listed:
                self._append(name, error.reason)
        bad, files = len(self.bad), len(self.files)
        if bad > self.max_bad * files:
            raise CorpusError(
                f"{bad} of {files} files ({bad / files:.0%}) are unreadable, and corpus.max_bad is "
                f"{self.max_bad}. They are listed with reasons in {self.path}. Repair them or take them out of the "
                f"manifest, then delete that list; or raise corpus.max_bad"
            )

    def _append(self, path: str, reason: str) -> None:
        self._listed[path] = reason
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", newline="", encoding="utf-8", errors="surrogateescape") as file:
            file.seek(0)
            before = file.read()
            lines = csv.writer(file, lineterminator="\n")
            if not before:
                lines.writerow(COLUMNS)
            elif not before.endswith("\n"):  # a run was killed while it wrote
                file.write("\n")
            lines.writerow((path, reason))


def _name(path: Path) -> str:
    return str(path.absolute())


def _lines(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:  # a file's name need not be UTF-8
        rows = [row for row in csv.reader(file) if len(row) == 2 and tuple(row) != COLUMNS]
    return {_name(Path(name)): reason for name, reason in rows}
