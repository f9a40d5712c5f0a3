"""Writes films of the stream to files, with all that is known of them: a corpus as large as you like.

    python data/stream.py --out FOLDER --train 20000 --test 2000     clips/, manifest.csv and other lists, facts.npz
    python data/stream.py --sheet stream.png                         a picture of some films

`cora pretrain RECIPE --corpus.path stream` needs none of it: there each film is drawn when its turn comes. A folder is
worth its room where films are seen more than once, and for probes of what is in them.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from cora.meaning import Count, Natural, Only, Positive, Range
from cora.schema import check, require
from cora.video import codec, stream, synthetic
from cora.video.clips import ENDLESS

LISTS = {
    "manifest": stream.MOTIONS,
    "identity": tuple("disc" if lobes == 0 else f"{lobes} lobes" for lobes in stream.LOBES),
    "count": tuple(map(str, range(stream.THINGS + 1))),
    "covered": ("in sight", "partly hidden"),
    "cut": ("one shot", "two shots"),
}
"""Lists of the same clips, each with another fact as its label: how the nearest thing moves, what it is, how many
things there are, whether a nearer one hides a fifth of any, and whether there is a cut."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to draw, and where to."""

    out: Path | None = None
    """Folder for the corpus; without it no clip is written."""
    train: Annotated[Count, Only("out")] = 20_000
    test: Annotated[Natural, Only("out")] = 2_000
    """Films that no run on the stream comes to."""
    seed: Natural = 0
    frames: Annotated[int, Range(2)] = stream.FRAMES
    side: Annotated[int, Range(16)] = stream.SIDE
    fps: Positive = stream.FPS
    sheet: Path | None = None
    """PNG file: films, time from left to right."""

    def __post_init__(self) -> None:
        check("options", self)
        require(self.side % 2 == 0, "options.side", self.side, f"H.264 needs an even side; nearest: {self.side + 1}")


def facts_of(facts: stream.Facts) -> dict[str, Any]:
    """Returns the label of a film in every list; None where what is asked for is not there."""
    middle = len(facts.there) // 2
    nearest = bool(facts.there[middle, 0])
    return {
        "manifest": int(facts.motion[middle, 0]) if nearest else None,
        "identity": int(facts.kind[middle, 0]) if nearest else None,
        "count": int(facts.there[middle].sum()),
        "covered": int((facts.covered[middle] > 0.2).any()),
        "cut": int(facts.cut.any()),
    }


def write(options: Options, folder: Path) -> Path:
    """Writes the films into `folder` and returns its manifest.csv, which is written last.

    `facts.npz` holds every field of `stream.Facts`, films in the order of the lists.
    """
    draw = stream.renderer(options.frames, (options.side, options.side))
    numbers = [*range(options.train), *(ENDLESS - i for i in range(options.test))]
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    (folder / "manifest.csv").unlink(missing_ok=True)

    def one(place: int) -> tuple[stream.Facts, dict[str, Any]]:
        video, facts = draw(options.seed, numbers[place])
        path = f"clips/{place // 1000:03d}/{place:06d}.mp4"
        (folder / path).parent.mkdir(exist_ok=True)
        codec.write(folder / path, video, options.fps)
        split = "train" if place < options.train else "test"
        return facts, {"path": path, "label": "", "class_name": "", "group": f"film-{numbers[place]}", "split": split,
                       "n_frames": options.frames, "height": options.side, "width": options.side, "fps": options.fps}

    with ThreadPoolExecutor() as pool:
        facts, rows = zip(*pool.map(one, range(len(numbers))), strict=True)
    known: dict[str, Any] = {name: np.stack([getattr(f, name) for f in facts]) for name in stream.Facts._fields}
    np.savez(folder / "facts.npz", **known)
    labels = [facts_of(f) for f in facts]
    for name, classes in reversed(LISTS.items()):
        told = [("", "") if label[name] is None else (label[name], classes[label[name]]) for label in labels]
        synthetic.write_manifest(folder / f"{name}.csv", [
            row | {"label": label, "class_name": word} for row, (label, word) in zip(rows, told, strict=True)])
    return folder / "manifest.csv"


def sheet(options: Options, rows: int = 8, shown: int = 7) -> Image.Image:
    """Returns the first films of the seed in two columns, one film a row, time from left to right."""
    draw = partial(stream.renderer(options.frames, (options.side, options.side)), options.seed)
    films = [draw(i)[0][np.linspace(0, options.frames - 1, shown).astype(int)] for i in range(2 * rows)]
    strips = [np.concatenate(list(film), axis=1) for film in films]
    gap = np.full((options.side, 8, 3), 255, np.uint8)
    page = np.concatenate([np.concatenate([a, gap, b], axis=1) for a, b in zip(strips[::2], strips[1::2], strict=True)])
    return Image.fromarray(page)


def main(options: Options) -> None:
    """Writes whatever the options ask for and prints one line for each file a reader would open."""
    if options.out is not None:
        print(write(options, options.out))
    if options.sheet is not None:
        picture = sheet(options)
        picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(options.sheet, optimize=True)
        print(options.sheet)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
