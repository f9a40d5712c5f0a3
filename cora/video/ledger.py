"""The list of files that a run could not read, and when there are too many of them.

Knows a CSV file with the columns path and reason; never what becomes of a clip whose file is unreadable.
"""

import csv
import io
import os
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
        self._listed: dict[str, str] = {}
        self._own = 0
        """How many of `files` are listed."""
        self._read = 0
        """Bytes of the list that were read: what others add is looked for behind them."""
        self._refresh()

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
                self._refresh()  # another process may have met it
            if name not in self._listed:
                self._append(name, error.reason)
            bad, files = self._own, len(self.files)
        if bad > self.max_bad * files:
            raise CorpusError(
                f"{bad} of {files} files ({bad / files:.0%}) are unreadable, and corpus.max_bad is "
                f"{self.max_bad}. They are listed with reasons in {self.path}. Repair them or take them out of the "
                f"manifest, then delete that list; or raise corpus.max_bad"
            )

    def _note(self, name: str, reason: str) -> None:
        self._own += name in self.files and name not in self._listed
        self._listed[name] = reason

    def _refresh(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]  # a last line without its end may still be written
        self._read += len(whole)
        text = added if self._read == len(whole) else whole  # a run that was killed may have left one for good
        lines = io.StringIO(text.decode("utf-8", "surrogateescape"), newline="")  # a file's name need not be UTF-8
        for row in csv.reader(lines):
            if len(row) == 2 and tuple(row) != COLUMNS:
                self._note(_name(Path(row[0])), row[1])

    def _append(self, path: str, reason: str) -> None:
        self._note(path, reason)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            broken = end > 0 and file.read(1) != b"\n"  # a run was killed while it wrote
            rows = ([COLUMNS] if not end else []) + [(path, reason)]
            text = io.StringIO(newline="")
            # Beware: a carriage return ends a row unless it is quoted, and only this way of quoting sees it.
            lines = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if "\r" in path + reason
                               else csv.QUOTE_MINIMAL)
            lines.writerows(rows)
            file.write(b"\n" * broken + text.getvalue().encode("utf-8", "surrogateescape"))


def _name(path: Path) -> str:
    return str(path.absolute())
