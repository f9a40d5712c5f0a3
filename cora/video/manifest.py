"""Annotations: which clips a corpus has, and their label, group and split.

Knows the list formats that corpora come in; never opens a video. A clip that a list names and the disk lacks is no
error here: whoever reads it finds out, and the run's ledger says so.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".gif")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Clips of one frame; in a folder they count only where it holds no video, whose thumbnails they might be."""
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
          "dev": "val", "test": "test", "testing": "test"}
"""Names under which splits go about, and ours."""
NO_GROUP = ("", "na", "n/a", "nan", "none")


class ManifestError(ValueError):
    """A list or folder that cannot be understood; the message names file and line and says what would be legal."""


class Clip(NamedTuple):
    """One clip of a corpus; `label` is None where there is none, `split` empty where the corpus has no splits.

    Clips of one `group` (a person, a source film) are not independent; a clip without a group is its own.
    """

    path: Path
    label: int | None
    class_name: str
    group: str
    split: str


@dataclass(frozen=True)
class Manifest:
    """The clips of a corpus in the order of their list, and the class names by label (empty without labels)."""

    clips: tuple[Clip, ...]
    classes: tuple[str, ...]

    @property
    def paths(self) -> list[Path]:
        """Returns every clip's file, in their order."""
        return [clip.path for clip in self.clips]


def load(path: Path) -> Manifest:
    """Returns what the list file or folder says, in the first format of `FORMATS` that it looks like.

    Raises ManifestError where nothing fits, a row is malformed, or there is no clip at all.
    """
    if not path.exists():
        raise ManifestError(f"{path}: does not exist; give a list file, a folder of class folders or one of videos")
    for looks_right, reader in FORMATS:
        if looks_right(path):
            return _manifest(path, reader(path))
    raise ManifestError(f"{path}: no format fits; give a CSV with a header (path,label,...), lines of `path label`, "
                        f"a UCF101, HMDB51, Something-Something or Kinetics list, or a folder of videos")


def select(manifest: Manifest, split: str) -> Manifest:
    """Returns the clips of one split, or all of them where the corpus has no splits. Raises ManifestError if none."""
    available = sorted({clip.split for clip in manifest.clips} - {""})
    if not available:
        return manifest
    chosen = tuple(clip for clip in manifest.clips if clip.split == split)
    if not chosen:
        raise ManifestError(f"split = {split!r}: the corpus has no such split; legal: {', '.join(available)}")
    return Manifest(chosen, manifest.classes)


def _manifest(path: Path, rows: Iterable[Clip]) -> Manifest:
    clips = tuple(c._replace(group=str(c.path)) if c.group.lower() in NO_GROUP else c for c in rows)
    if not clips:
        raise ManifestError(f"{path}: lists no clip; videos are known by {', '.join(SUFFIXES)}")
    labels = [clip.label for clip in clips if clip.label is not None]
    names = {clip.label: clip.class_name for clip in reversed(clips) if clip.label is not None and clip.class_name}
    for clip in clips:
        if clip.label is not None and clip.class_name not in ("", names.get(clip.label)):
            raise ManifestError(f"{path}: label {clip.label} is both {names[clip.label]!r} and {clip.class_name!r}; "
                                f"give every class one label")
    classes = tuple(names.get(label, str(label)) for label in range(max(labels, default=-1) + 1))
    named = (c if c.class_name or c.label is None else c._replace(class_name=classes[c.label]) for c in clips)
    return Manifest(tuple(named), classes)


# ------------------------------------------------------------------------------------------------- reading lists


def _lines(path: Path) -> list[tuple[int, str]]:
    """Returns (line number from 1, line) for every line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: is not text in UTF-8 (byte {error.start}); give a list file") from error
    return [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]


def _first(path: Path) -> str:
    """Returns the first line of a list file, and nothing for a folder or a file that is not text."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        head = file.readline(65536).decode("utf-8-sig", errors="replace").strip()
    return "" if "\0" in head or "\ufffd" in head else next(iter(head.splitlines()), "")


def _label(path: Path, line: int, text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text):
        raise ManifestError(f"{path}:{line}: label {text!r} is not a whole number from 0 to 999999")
    return int(text)


def _split_of(name: str) -> str:
    """Returns the split that a file's name tells (`train_list.csv`, `testlist01.txt`), or nothing."""
    found = re.search(r"(?<![a-z])(train|val|test)(?:ing|idation)?(?![a-z])", name.lower().replace("list", "_"))
    return SPLITS[found.group(1)] if found else ""


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ManifestError(f"{path}: is not JSON ({error})") from error


def _table(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Returns (line number, row) of a CSV with a header; blanks around cells are no part of them."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)  # else a quote after a blank would be a letter
        rows = [(reader.line_num, row) for row in reader]
    for line, row in rows:
        if None in row or None in row.values():
            raise ManifestError(f"{path}:{line}: has not as many cells as the header ({len(reader.fieldnames or [])})")
    return [(line, {name.strip(): cell.strip() for name, cell in row.items()}) for line, row in rows]


# ------------------------------------------------------------------------------------------------- one reader a format


def _ours(path: Path) -> Iterable[Clip]:
    """CSV with a header of at least `path`; labels are numbers, or the classes' place in alphabetical order."""
    rows = _table(path)
    names = sorted({row["class_name"] for _, row in rows if row.get("class_name")})
    for line, row in rows:
        if not row["path"]:
            raise ManifestError(f"{path}:{line}: the path is empty; give the clip's path, relative to this file")
        name, text = row.get("class_name", ""), row.get("label", "")
        unknown = names.index(name) if name and "label" not in row else None
        label = unknown if text in ("", "-1") else _label(path, line, text)
        split = row.get("split", "")
        yield Clip(path.parent / row["path"], label, name, row.get("group", ""), SPLITS.get(split.lower(), split))


def _kinetics(path: Path) -> Iterable[Clip]:
    """`label,youtube_id,time_start,time_end,split`; files ID_000019_000029.mp4 beside the list or in class folders."""
    rows = _table(path)
    names = sorted({row["label"] for _, row in rows})
    for line, row in rows:
        start, end = row["time_start"], row["time_end"]
        if not (re.fullmatch(r"\d+(\.0*)?", start) and re.fullmatch(r"\d+(\.0*)?", end)):
            raise ManifestError(f"{path}:{line}: times {start!r} to {end!r}; legal: whole seconds")
        name = f"{row['youtube_id']}_{int(float(start)):06d}_{int(float(end)):06d}.mp4"
        split = SPLITS.get(row["split"].lower(), row["split"])
        places = [path.parent / name, path.parent / row["split"] / name, path.parent / row["label"] / name,
                  path.parent / row["split"] / row["label"] / name]
        found = next((place for place in places if place.exists()), places[0])
        yield Clip(found, names.index(row["label"]), row["label"], row["youtube_id"], split)


def _spaced(path: Path) -> Iterable[Clip]:
    """V-JEPA: `path label`, or `path::label` where paths hold spaces; the split is in the file's name, if anywhere."""
    lines = _lines(path)
    mark = "::" if all("::" in line for _, line in lines) else None
    for number, line in lines:
        cells = line.rsplit(mark, 1) if mark else line.split()
        if len(cells) != 2:
            raise ManifestError(f"{path}:{number}: {line!r} is not `path label`; where paths hold spaces write "
                                f"`path::label` on every line")
        yield Clip(path.parent / cells[0].strip(), _label(path, number, cells[1].strip()), "", "", _split_of(path.stem))


def _ucf(path: Path) -> Iterable[Clip]:
    """UCF101: `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`; a folder of lists is read by its split 01."""
    lists = [path] if path.is_file() else [path / "trainlist01.txt", path / "testlist01.txt"]
    index = lists[0].parent / "classInd.txt"
    if not index.exists():
        raise ManifestError(f"{index}: does not exist, and says which class has which number; put it beside the lists")
    names = {line.split()[-1]: _label(index, n, line.split()[0]) - 1 for n, line in _lines(index)}
    for file in (file for file in lists if file.exists()):
        for number, line in _lines(file):
            name = line.split()[0].split("/")[0]
            if name not in names:
                raise ManifestError(f"{file}:{number}: class {name!r} is not in {index}")
            clip = file.parent / line.split()[0]
            beside = file.parent.parent / "UCF-101" / line.split()[0]  # where the archives unpack to
            group = re.search(r"_(g\d+)_c\d+\.", line)
            yield Clip(beside if beside.exists() and not clip.exists() else clip, names[name], name,
                       group.group(1) if group else "", _split_of(file.stem))


def _hmdb(path: Path) -> Iterable[Clip]:
    """HMDB51: one file a class and split, `NAME.avi 1` with 0 unused, 1 train, 2 test; a folder is read by split 1."""
    ending = re.search(r"_test_split\d\.txt$", path.name)
    ending_text = ending.group() if ending else "_test_split1.txt"
    files = sorted((path if path.is_dir() else path.parent).glob(f"*{ending_text}"))
    for label, file in enumerate(files):
        name = file.name.removesuffix(ending_text)
        for number, line in _lines(file):
            cells = line.split()
            if len(cells) != 2 or cells[1] not in "012":
                raise ManifestError(f"{file}:{number}: {line!r} is not `NAME.avi 0`, 1 or 2")
            places = [file.parent / name / cells[0], file.parent.parent / name / cells[0], file.parent / cells[0]]
            found = next((place for place in places if place.exists()), places[0])
            if cells[1] != "0":
                yield Clip(found, label, name, "", ("train", "test")[cells[1] == "2"])


def _something(path: Path) -> Iterable[Clip]:
    """Something-Something v2: JSON rows with `id` and `template`, numbered by labels.json; files ID.webm."""
    index = path.parent / "labels.json"
    if not index.exists():
        raise ManifestError(f"{index}: does not exist, and says which template has which number; put it beside")
    numbers = _json(index)
    folder = next((f for f in (path.parent / "20bn-something-something-v2", path.parent / "videos") if f.is_dir()),
                  path.parent)
    for place, row in enumerate(_json(path)):
        template = row.get("template", "").replace("[", "").replace("]", "")
        if "id" not in row or (template and template not in numbers):
            raise ManifestError(f"{path}: row {place + 1}: id {row.get('id')!r}: template {template!r} is not in "
                                f"{index}; give every row an id and a template of that list")
        label = int(numbers[template]) if template else None
        yield Clip(folder / f"{row['id']}.webm", label, template, "", _split_of(path.stem))


def _folders(path: Path) -> Iterable[Clip]:
    """root/split/class/clip, root/class/clip, root/split/clip or root/clip; one class alone is no label."""
    found = sorted(f for f in _visible(path, frozenset()) if f.suffix.lower() in SUFFIXES + IMAGES)
    files = [f for f in found if f.suffix.lower() in SUFFIXES] or found
    above = [f.relative_to(path).parts[:-1] for f in files]
    splits = [SPLITS.get(folders[0].lower(), "") if folders else "" for folders in above]
    if not all(splits):
        splits = [""] * len(files)
    classes = [folders[1:] if split else folders for folders, split in zip(above, splits, strict=True)]
    depths = [len(c) for c in classes]
    if depths and (max(depths) > 1 or min(depths) != max(depths)):
        odd = files[depths.index(min(depths) if max(depths) == 1 else max(depths))]
        raise ManifestError(f"{path}: {odd.relative_to(path)} does not lie as the others do in one of root/class/clip, "
                            f"root/split/class/clip, root/split/clip and root/clip; move it, or write a CSV with the "
                            f"header path,label,split")
    names = sorted({c[0] for c in classes if c})
    for file, folders, split in zip(files, classes, splits, strict=True):
        name = folders[0] if len(names) > 1 else ""
        yield Clip(file, names.index(name) if name else None, name, "", split)


def _visible(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Yields the files below a folder, through links too unless they lead back to a folder `above`; none is hidden."""
    own = folder.resolve()
    if own in above:
        return
    try:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be listed ({error.strerror}); make it readable or move it") from error
    for path in inside:
        yield from _visible(path, above | {own}) if path.is_dir() else (path,)


def _has_header(*cells: str) -> Callable[[Path], bool]:
    def looks_right(path: Path) -> bool:
        return set(cells) <= {cell.strip() for row in csv.reader([_first(path)], skipinitialspace=True) for cell in row}

    return looks_right


def _is_named(pattern: str, inside: str) -> Callable[[Path], bool]:
    """Recognises a file by its name, or a folder by a file in it."""
    return lambda path: any(path.glob(inside)) if path.is_dir() else bool(re.search(pattern, path.name))


FORMATS: Sequence[tuple[Callable[[Path], bool], Callable[[Path], Iterable[Clip]]]] = (
    (lambda path: (path / "manifest.csv").is_file(), lambda path: _ours(path / "manifest.csv")),
    (_has_header("path"), _ours),
    (_has_header("label", "youtube_id", "time_start", "time_end", "split"), _kinetics),
    (lambda path: path.suffix == ".json" and _first(path)[:1] == "[", _something),
    (_is_named(r"^(train|test)list\d*\.txt$", "classInd.txt"), _ucf),
    (_is_named(r"_test_split\d\.txt$", "*_test_split1.txt"), _hmdb),
    (lambda path: bool(re.search(r"\S(\s|::)\s*\S+$", _first(path))), _spaced),
    (Path.is_dir, _folders),
)
"""(does it look like this format?, its reader), tried in this order: what is certain before what is likely."""
