"""The text of list files: its lines, and its tables whatever their columns are separated by.

Knows encodings, quotation marks and separators; never what a column means. Every error names file and line.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

SEPARATORS = (",", ";", "\t", "|")
LONGEST = 4096
"""Characters of a cell that is read: no path is longer (PATH_MAX of Linux)."""
_END = "end of the list"


class ManifestError(ValueError):
    """A list or folder that cannot be understood; the message names file and line and says what would be legal."""


class Cells(NamedTuple):
    """One row of a table."""

    line: int
    """Where the row begins, from 1."""
    cell: dict[str, str]
    """By the column's name."""


def read(path: Path) -> str:
    """Returns the text of a list file: UTF-8, or UTF-16 where it begins with the mark that spreadsheets write.

    Raises ManifestError, naming the line, for what is neither.
    """
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", content[: error.start])) + 1
        raise ManifestError(f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; give a list saved as "
                            "UTF-8 (it may be in Latin-1 or Windows-1252)") from error
    if "\0" in text:
        line = len(re.findall(r"\r\n|\r|\n", text[: text.index("\0")])) + 1
        raise ManifestError(f"{path}:{line}: holds a NUL byte, as no text does; give a list file in UTF-8")
    return text


def lines(path: Path) -> list[tuple[int, str]]:
    """Returns (line number from 1, line) for every line that is not blank."""
    # Not str.splitlines, which also ends a line at characters that a name may hold.
    each = re.split(r"\r\n|\r|\n", read(path))
    return [(n, line.strip()) for n, line in enumerate(each, 1) if line.strip()]


def head(path: Path) -> str:
    """Returns the first line of a list file that is not blank, and nothing for a folder."""
    if not path.is_file():
        return ""
    return re.split(r"[\r\n]", read(path).lstrip(), maxsplit=1)[0].strip()


def columns(line: str, known: Collection[str]) -> tuple[str, list[str]]:
    """Returns (separator, names in small letters) of a table's header: that separator which shows most of the `known`
    names, a comma if none does."""
    found = []
    for mark in SEPARATORS:
        cells = next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])
        names = [cell.strip().lower() for cell in cells]
        found.append((len(set(names) & set(known)), mark, names))
    _, mark, names = max(found, key=lambda one: one[0])  # the first of equals
    return mark, names


def table(path: Path, known: Collection[str]) -> list[Cells]:
    """Returns the rows of a table with a header, by the `known` columns alone; blanks around cells are no part of them,
    and rows without anything in them none.

    Raises ManifestError, naming the line, for a column that is there twice, a row of another length than the header, a
    quotation mark that is left open and a cell of more than LONGEST characters.
    """
    text = read(path)
    mark, _ = columns(head(path), known)
    (first, header), *rows = _rows(path, text, mark)
    names = [name.lower() for name in header]
    for name in known:
        if names.count(name) > 1:
            raise ManifestError(f"{path}:{first}: the header has {names.count(name)} columns {name!r}; keep one")
    found = []
    for line, row in rows:
        if len(row) != len(names):
            raise ManifestError(f"{path}:{line}: has {len(row)} cells, not as many cells as the header ({len(names)})")
        cells = {name: cell for name, cell in zip(names, row, strict=True) if name in known}
        for name, cell in cells.items():
            if len(cell) > LONGEST:
                raise ManifestError(f"{path}:{line}: {name} of {len(cell)} characters ({cell[:20]!r}...); at most "
                                    f"{LONGEST} are legal")
        found.append(Cells(line, cells))
    return found


def _rows(path: Path, text: str, mark: str) -> list[tuple[int, list[str]]]:
    """Returns (first line, stripped cells) of every row in which there is anything."""
    # Blanks are skipped after a separator, else a quote after a blank would be a letter. A last row of our own shows
    # whether a quotation mark is still open there, of which the reader says nothing.
    before = csv.field_size_limit(max(len(text) + len(_END) + 1, csv.field_size_limit()))
    try:
        reader = csv.reader(io.StringIO(f"{text}\n{_END}", newline=""), delimiter=mark, skipinitialspace=True)
        found, first = [], 1
        for row in reader:
            found.append((first, row))
            first = reader.line_num + 1
    finally:
        csv.field_size_limit(before)
    line, last = found.pop()
    if last != [_END]:
        raise ManifestError(f"{path}:{line}: a quotation mark is opened and never closed; close it, or double it where "
                            "it is part of a name")
    stripped = [(line, [cell.strip() for cell in row]) for line, row in found]
    return [(line, row) for line, row in stripped if any(row)]


def parse_json(path: Path) -> Any:
    """Returns what a JSON file says."""
    try:
        return json.loads(read(path))
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{error.lineno}: is not JSON ({error})") from error
