"""Renders the embedded corpus: labelled motions, pairs of possible and impossible events, and pictures of both.

    python data/synthetic.py --out FOLDER                      the corpus: manifest.csv, identity.csv, clips/
    python data/synthetic.py --out FOLDER --pairs 48           and FOLDER/events/ with its own manifest.csv
    python data/synthetic.py --sheet motions.png --event-sheet events.png
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from cora.meaning import Natural, Only
from cora.schema import check
from cora.video import events, synthetic


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to render, and where to."""

    out: Path | None = None
    """Folder for the corpus; without it no clip is written."""
    plan: synthetic.Plan = field(default_factory=synthetic.Plan)
    pairs: Annotated[Natural, Only("out")] = 0
    """Pairs of events to write to OUT/events."""
    sheet: Path | None = None
    """PNG file: one clip of each motion, time from left to right."""
    event_sheet: Path | None = None
    """PNG file: one pair of each kind of event."""

    def __post_init__(self) -> None:
        check("options", self)


def main(options: Options) -> None:
    """Renders whatever the options ask for and prints one line for each file a reader would open."""
    if options.out is not None:
        began = time.perf_counter()
        print(synthetic.render(options.out, plan=options.plan))
        clips = options.plan.train + options.plan.test
        print(f"{clips} clips, {clips / (time.perf_counter() - began):.0f} a second")
        if options.pairs:
            print(events.events(options.out / "events", options.plan.seed, options.pairs))
    if options.sheet is not None:
        picture(options.sheet, showcase(options.plan), columns=2, shown=6)
    if options.event_sheet is not None:
        picture(options.event_sheet, event_showcase(options.plan.seed), columns=1, shown=11)


def picture(path: Path, clips: synthetic.Captioned, *, columns: int, shown: int) -> None:
    """Writes a contact sheet as a PNG of 256 colours."""
    sheet = synthetic.contact_sheet(clips, columns=columns, shown=shown)
    # Maximum coverage keeps the sprites' few bright pixels; median cut would spend all colours on the backdrops.
    reduced = Image.fromarray(sheet).quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=8, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)
    print(path)


def showcase(plan: synthetic.Plan) -> synthetic.Captioned:
    """Returns a rather slow clip of each motion, in sprites and families of backdrops that differ where they can."""
    chosen: list[synthetic.Scene] = []
    scenes = [scene for scene in synthetic.scenes(plan) if scene.speed < 1]
    for motion in synthetic.MOTIONS:
        seen = [name for scene in chosen for name in (scene.identity, scene.backdrop.split("-")[0])]
        own = [scene for scene in scenes if scene.motion == motion]
        repeats = [seen.count(scene.identity) + seen.count(scene.backdrop.split("-")[0]) for scene in own]
        chosen.append(own[repeats.index(min(repeats))])
    return [(scene.motion, synthetic.draw(scene, plan)) for scene in chosen]


def event_showcase(seed: int) -> synthetic.Captioned:
    """Returns the possible and the impossible clip of one pair of each kind."""
    clips: synthetic.Captioned = []
    for k, kind in enumerate(events.EVENTS):
        pair = events.draw_pair(kind, (seed, k))
        clips += [(kind, pair.possible), ("impossible", pair.impossible)]
    return clips


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
