"""Annotations: which clips a corpus has, and their label, group and split.

Knows the list formats that corpora come in; never opens a video. A clip that a list names and the disk lacks is no
error here: whoever reads it finds out, and the run's ledger says so.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cora.files import home
from cora.video import lists
from cora.video.lists import ManifestError

__all__ = ["Clip", "Manifest", "ManifestError", "ManifestWarning", "load", "select", "shared", "told"]

SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".gif")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Clips of one frame; in a folder they count only where it holds no video, whose thumbnails they might be."""
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
          "dev": "val", "test": "test", "testing": "test"}
"""Names under which splits go about, and ours."""
NUMBER = r"[-+]?\d+(\.\d*)?"
OURS = ("path", "label", "class_name", "group", "split")
KINETICS = ("label", "youtube_id", "time_start", "time_end", "split")


class ManifestWarning(UserWarning):
    """A list that can be read, and whose numbers may not mean what they seem to."""


class Clip(NamedTuple):
    """One clip of a corpus; `label` is None where there is none, `split` empty where the corpus has no splits.

    Clips of one `group` (a person, a source film) are not independent; a clip without a group is its own: only an empty
    cell means none.
    """

    path: Path
    label: int | None
    class_name: str
    group: str
    split: str


Row = tuple[str, Clip]
"""Where a clip is named (`list.csv:7`), and the clip."""


@dataclass(frozen=True)
class Manifest:
    """The clips of a corpus in the order of their list, and the class names by label (empty without labels)."""

    clips: tuple[Clip, ...]
    classes: tuple[str, ...]
    places: tuple[str, ...] = field(default=(), compare=False)
    """Where each clip is named (`list.csv:7`)."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What whoever reads a number from these clips has to know, a sentence each."""

    @property
    def paths(self) -> list[Path]:
        """Returns every clip's file, in their order."""
        return [clip.path for clip in self.clips]


def load(path: Path) -> Manifest:
    """Returns what the list file or folder says, in the first format of `FORMATS` that it looks like.

    Raises ManifestError where nothing fits, a row is malformed, two rows say different things of one file, or there is
    no clip at all. Warns of groups that stand in two splits.
    """
    path = home(path)
    if not path.exists():
        raise ManifestError(f"{path}: does not exist; give a list file, a folder of class folders or one of videos")
    if path.is_file() and path.suffix.lower() in SUFFIXES + IMAGES:
        raise ManifestError(f"{path}: is a clip, not a list; give its folder, or a list file")
    for looks_right, reader in FORMATS:
        if looks_right(path):
            return _manifest(path, list(reader(path)))
    raise ManifestError(f"{path}: no format fits; give a CSV with a header (path,label,...), lines of `path label`, "
                        f"a UCF101, HMDB51, Something-Something or Kinetics list, or a folder of videos")


def column(path: Path, name: str) -> dict[int, str]:
    """Returns the cells of a further column of our CSV, or of a folder's manifest.csv, by the clip's place in the list;
    nothing where there is no such column."""
    path = home(path)
    file = path / "manifest.csv" if path.is_dir() else path
    if not file.is_file() or name not in lists.columns(lists.head(file), (*OURS, name))[1]:
        return {}
    return {place: row[name] for place, (_, row) in enumerate(lists.table(file, (*OURS, name)))}


def select(manifest: Manifest, split: str) -> Manifest:
    """Returns the clips of one split, or all of them where the corpus has no splits. Raises ManifestError if none."""
    available = sorted({clip.split for clip in manifest.clips} - {""})
    if not available:
        return manifest
    chosen = tuple(clip for clip in manifest.clips if clip.split == split)
    if not chosen:
        raise ManifestError(f"split = {split!r}: the corpus has no such split; legal: {', '.join(available)}")
    return Manifest(chosen, manifest.classes)


def told(manifest: Manifest, *notes: str) -> Manifest:
    """Returns the manifest with further notes, and warns of each."""
    for note in notes:
        warnings.warn(note, ManifestWarning, stacklevel=3)
    return replace(manifest, notes=(*manifest.notes, *notes))


def shared(clips: Iterable[Clip]) -> list[str]:
    """Returns a sentence that names the groups with clips in more than one split, or none."""
    splits: dict[str, set[str]] = {}
    for clip in clips:
        if clip.split:
            splits.setdefault(clip.group, set()).add(clip.split)
    both = {group: sorted(found) for group, found in splits.items() if len(found) > 1}
    if not both:
        return []
    group, found = next(iter(both.items()))
    more = ", ..." * (len(both) > 1)
    return [f"{len(both)} of {len(splits)} groups have clips in more than one split ({group!r} in {' and '.join(found)}"
            f"{more}): what is scored on one split has been seen in another"]


def _manifest(path: Path, rows: Sequence[Row]) -> Manifest:
    if not rows:
        raise ManifestError(f"{path}: lists no clip; videos are known by {', '.join(SUFFIXES)}")
    clips = _alike(rows)
    labels = [clip.label for clip in clips if clip.label is not None]
    names = {clip.label: clip.class_name for clip in reversed(clips) if clip.label is not None and clip.class_name}
    for (place, _), clip in zip(rows, clips, strict=True):
        if clip.label is not None and clip.class_name not in ("", names.get(clip.label)):
            raise ManifestError(f"{place}: label {clip.label} is both {names[clip.label]!r} and {clip.class_name!r}; "
                                f"give every class one label")
    classes = tuple(names.get(label, str(label)) for label in range(max(labels, default=-1) + 1))
    named = (c if c.class_name or c.label is None else c._replace(class_name=classes[c.label]) for c in clips)
    return told(Manifest(tuple(named), classes, tuple(place for place, _ in rows)),
                *(f"{path}: {note}" for note in shared(clips)))


def _alike(rows: Sequence[Row]) -> list[Clip]:
    """Returns the clips, those without a group each as its own; rows of one file have one group.

    Raises ManifestError where two rows give one file, by whatever path, two labels, groups or splits: it would be
    learned from and asked about.
    """
    folder = cache(os.path.realpath)
    first: dict[str, Row] = {}
    clips = []
    for place, clip in rows:
        name = os.path.join(folder(clip.path.parent), clip.path.name)
        if os.path.islink(name):
            name = os.path.realpath(name)
        where, other = first.setdefault(name, (place, clip))
        for field_name in ("label", "group", "split"):
            old, new = getattr(other, field_name), getattr(clip, field_name)
            if old != new:
                raise ManifestError(f"{place}: {clip.path} has {field_name} {new!r}, and {old!r} at {where}; "
                                    f"give every file one {field_name}")
        clips.append(clip._replace(group=str(other.path)) if clip.group == "" else clip)
    return clips


# ------------------------------------------------------------------------------------------------- reading lists


def _label(path: Path, line: int, text: str) -> int:
    if not re.fullmatch(r"\d{1,6}(\.0*)?", text):  # pandas writes 3.0 where a label of the column is missing
        raise ManifestError(f"{path}:{line}: label {text!r} is not a whole number from 0 to 999999, as other labels of "
                            "this list are; give numbers or names throughout, and an empty cell for none")
    return int(text.split(".")[0])


def _split_of(name: str) -> str:
    """Returns the split that a file's name tells (`train_list.csv`, `testlist01.txt`), or nothing."""
    found = re.search(r"(?<![a-z])(train|val|test)(?:ing|idation)?(?![a-z])", name.lower().replace("list", "_"))
    return SPLITS[found.group(1)] if found else ""


def _at(folder: Path, cell: str) -> Path:
    """Returns the clip that a cell of a list in this folder names."""
    return folder / home(Path(cell))


# ------------------------------------------------------------------------------------------------- one reader a format


def _ours(path: Path) -> Iterable[Row]:
    """CSV with a header of at least `path`; labels are numbers, or names numbered in alphabetical order."""
    rows = lists.table(path, OURS)
    label = _labels(path, rows)
    for line, row in rows:
        if not row["path"]:
            raise ManifestError(f"{path}:{line}: the path is empty; give the clip's path, relative to this file")
        number, name = label(line, row)
        split = row.get("split", "")
        clip = Clip(_at(path.parent, row["path"]), number, name, row.get("group", ""), SPLITS.get(split.lower(), split))
        yield f"{path}:{line}", clip


def _labels(path: Path, rows: Sequence[lists.Cells]) -> Callable[[int, dict[str, str]], tuple[int | None, str]]:
    """Returns what reads (label, class name) from a row: numbers, or where no label is one, names; where there are no
    labels, class names."""
    column = "label" if any("label" in row for _, row in rows) else "class_name"
    words = {row.get(column, "") for _, row in rows} - {"", "-1"}
    if column == "label" and any(re.fullmatch(NUMBER, word) for word in words):
        return lambda line, row: (None if row["label"] in ("", "-1") else _label(path, line, row["label"]),
                                  row.get("class_name", ""))
    numbers = {word: i for i, word in enumerate(sorted(words))}

    def named(line: int, row: dict[str, str]) -> tuple[int | None, str]:
        word = row.get(column, "")
        return numbers.get(word), row.get("class_name", "") or (word if word in numbers else "")

    return named


def _kinetics(path: Path) -> Iterable[Row]:
    """`label,youtube_id,time_start,time_end,split`; files ID_000019_000029.mp4 beside the list or in class folders."""
    rows = lists.table(path, KINETICS)
    names = sorted({row["label"] for _, row in rows})
    for line, row in rows:
        start, end = row["time_start"], row["time_end"]
        if not (re.fullmatch(r"\d+(\.0*)?", start) and re.fullmatch(r"\d+(\.0*)?", end)):
            raise ManifestError(f"{path}:{line}: times {start!r} to {end!r}; legal: whole seconds")
        name = f"{row['youtube_id']}_{int(float(start)):06d}_{int(float(end)):06d}.mp4"
        split = SPLITS.get(row["split"].lower(), row["split"])
        places = [path.parent / name, path.parent / row["split"] / name, path.parent / row["label"] / name,
                  path.parent / row["split"] / row["label"] / name]
        found = next((place for place in places if os.path.exists(place)), places[0])
        yield f"{path}:{line}", Clip(found, names.index(row["label"]), row["label"], row["youtube_id"], split)


def _spaced(path: Path) -> Iterable[Row]:
    """V-JEPA: `path label`, or `path::label` where paths hold spaces (a tab or another separator is as good); the split
    is in the file's name, if anywhere."""
    rows = lists.lines(path)
    number, first = rows[0]

    def divides(mark: str) -> bool:
        is_label = re.fullmatch(NUMBER, first.rsplit(mark, 1)[-1].strip())
        return all(mark in line for _, line in rows) and (mark == "::" or bool(is_label))

    mark = next((mark for mark in ("::", *lists.SEPARATORS) if divides(mark)), None)
    separator = next((mark for mark in lists.SEPARATORS if mark in first), None)
    if mark is None and separator and not re.fullmatch(NUMBER, first.split()[-1]):
        _, names = lists.columns(first, (*OURS, *KINETICS))
        raise ManifestError(f"{path}:{number}: the header {', '.join(names)!r} has no column 'path'; give that name to "
                            "the column of clips (path,label,class_name,group,split), or write lines of `path label`")
    for number, line in rows:
        cells = line.rsplit(mark, 1) if mark else line.split()
        if len(cells) != 2:
            raise ManifestError(f"{path}:{number}: {line[:200]!r} is not `path label`; where paths hold spaces write "
                                f"`path::label` on every line")
        clip, label = cells[0].strip(), _label(path, number, cells[1].strip())
        if len(clip) > lists.LONGEST:
            raise ManifestError(f"{path}:{number}: a path of {len(clip)} characters; at most {lists.LONGEST} are legal")
        yield f"{path}:{number}", Clip(_at(path.parent, clip), label, "", "", _split_of(path.stem))


def _ucf(path: Path) -> Iterable[Row]:
    """UCF101: `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`; a folder of lists is read by its split 01."""
    files = [path] if path.is_file() else [path / "trainlist01.txt", path / "testlist01.txt"]
    index = files[0].parent / "classInd.txt"
    if not index.exists():
        raise ManifestError(f"{index}: does not exist, and says which class has which number; put it beside the lists")
    names = {line.split()[-1]: _label(index, n, line.split()[0]) - 1 for n, line in lists.lines(index)}
    for file in (file for file in files if file.exists()):
        for number, line in lists.lines(file):
            name = line.split()[0].split("/")[0]
            if name not in names:
                raise ManifestError(f"{file}:{number}: class {name!r} is not in {index}")
            clip = file.parent / line.split()[0]
            beside = file.parent.parent / "UCF-101" / line.split()[0]  # where the archives unpack to
            group = re.search(r"_(g\d+)_c\d+\.", line)
            yield f"{file}:{number}", Clip(beside if beside.exists() and not clip.exists() else clip, names[name], name,
                                           group.group(1) if group else "", _split_of(file.stem))


def _hmdb(path: Path) -> Iterable[Row]:
    """HMDB51: one file a class and split, `NAME.avi 1` with 0 unused, 1 train, 2 test; a folder is read by split 1."""
    ending = re.search(r"_test_split\d\.txt$", path.name)
    ending_text = ending.group() if ending else "_test_split1.txt"
    files = sorted((path if path.is_dir() else path.parent).glob(f"*{ending_text}"))
    for label, file in enumerate(files):
        name = file.name.removesuffix(ending_text)
        for number, line in lists.lines(file):
            cells = line.split()
            if len(cells) != 2 or cells[1] not in ("0", "1", "2"):
                raise ManifestError(f"{file}:{number}: {line!r} is not `NAME.avi 0`, 1 or 2")
            places = [file.parent / name / cells[0], file.parent.parent / name / cells[0], file.parent / cells[0]]
            found = next((place for place in places if os.path.exists(place)), places[0])
            if cells[1] != "0":
                yield f"{file}:{number}", Clip(found, label, name, "", ("train", "test")[cells[1] == "2"])


def _something(path: Path) -> Iterable[Row]:
    """Something-Something v2: JSON rows with `id` and `template`, numbered by labels.json; files ID.webm."""
    index = path.parent / "labels.json"
    if not index.exists():
        raise ManifestError(f"{index}: does not exist, and says which template has which number; put it beside")
    numbers = lists.parse_json(index)
    if not isinstance(numbers, dict):
        raise ManifestError(f"{index}: must map every template to a number")
    folder = next((f for f in (path.parent / "20bn-something-something-v2", path.parent / "videos") if f.is_dir()),
                  path.parent)
    for place, row in enumerate(lists.parse_json(path), 1):
        if not isinstance(row, dict):
            raise ManifestError(f"{path}: row {place}: {row!r} is no object; give every row an id and a template")
        template = str(row.get("template", "")).replace("[", "").replace("]", "")
        if "\0" in str(row.get("id", "\0")) or (template and template not in numbers):
            raise ManifestError(f"{path}: row {place}: id {row.get('id')!r}: template {template!r} is not in "
                                f"{index}; give every row an id and a template of that list")
        if template and not str(numbers[template]).isdecimal():
            raise ManifestError(f"{index}: {template!r} has number {numbers[template]!r}; must be whole and from 0")
        label = int(numbers[template]) if template else None
        yield f"{path}: row {place}", Clip(folder / f"{row['id']}.webm", label, template, "", _split_of(path.stem))


def _folders(path: Path) -> Iterable[Row]:
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
        yield str(path), Clip(file, names.index(name) if name else None, name, "", split)


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
        return set(cells) <= set(lists.columns(lists.head(path), cells)[1])

    return looks_right


def _is_named(pattern: str, inside: str) -> Callable[[Path], bool]:
    """Recognises a file by its name, or a folder by a file in it."""
    return lambda path: any(path.glob(inside)) if path.is_dir() else bool(re.search(pattern, path.name))


FORMATS: Sequence[tuple[Callable[[Path], bool], Callable[[Path], Iterable[Row]]]] = (
    (lambda path: (path / "manifest.csv").is_file(), lambda path: _ours(path / "manifest.csv")),
    (_has_header("path"), _ours),
    (_has_header(*KINETICS), _kinetics),
    (lambda path: path.suffix == ".json" and lists.head(path)[:1] == "[", _something),
    (_is_named(r"^(train|test)list\d*\.txt$", "classInd.txt"), _ucf),
    (_is_named(r"_test_split\d\.txt$", "*_test_split1.txt"), _hmdb),
    (lambda path: bool(re.search(r"\S([\s,;|]|::)\s*\S+$", lists.head(path))), _spaced),
    (Path.is_dir, _folders),
)
"""(does it look like this format?, its reader), tried in this order: what is certain before what is likely."""
