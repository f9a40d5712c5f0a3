"""Every kind of mask over frames of one clip, and which tokens it favours: uniform counts against Meta's cut.

    uv run python eval/masks.py --out runs/masks
    uv run python eval/masks.py --out runs/masks --video some.mp4
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jaxtyping import Int, UInt8
from matplotlib.patches import Patch

from cora import config
from cora.meaning import Count, Natural, Range
from cora.options import KINDS
from cora.pc import masks
from cora.report.reading import paint_masks
from cora.report.sections import TINT
from cora.schema import check
from cora.video import manifest, synthetic
from cora.video.clips import views

SAID = {
    "short": "many small blocks", "long": "few large blocks", "tube": "random places, for the whole clip",
    "random": "single tokens", "future": "all that comes later",
}
CLIP = 257
"""Of the embedded corpus: a green shape before violet bricks."""
META = "as Meta's collator cuts them"


@dataclass(frozen=True)
class Settings:
    """A run of the program."""

    out: Path
    video: Path | None = None
    """A video file; without one, a clip of the embedded corpus."""
    size: Annotated[int, Range(16)] = 256
    """Side of the frames; patches are of 16 pixels, clips of 16 frames."""
    batches: Count = 60
    clips: Count = 24
    """In a batch: Meta's cut depends on it."""
    seed: Natural = 1

    def __post_init__(self) -> None:
        check("masks", self)


def table(state: Int[np.ndarray, "B t h w"]) -> list[float]:
    """Returns the shares of tokens seen and predicted, and of tokens seen in the first and in the last time step."""
    seen = state == 1
    return [float(share) for share in (seen.mean(), (state == 2).mean(), seen[:, 0].mean(), seen[:, -1].mean())]


def rows(settings: Settings, grid: tuple[int, int, int]) -> dict[tuple[str, str], list[float]]:
    """Returns {(kind, how it is cut): `table`}, means over all batches."""
    uniform = masks.kinds(config.Mask(kinds=KINDS), grid)
    meta = masks.kinds(config.Mask(compat="meta"), grid)
    draw = jax.jit(masks.sample, static_argnums=(1, 2))
    rng = np.random.default_rng(settings.seed)
    keys = [jax.random.key(settings.seed + number) for number in range(settings.batches)]

    def mean(found: list) -> list[float]:
        return np.mean([table(masks.states(made, grid)) for made in found], axis=0).tolist()

    shown = {(name, "uniform"): mean([draw(key, kind, settings.clips) for key in keys])
             for name, kind in uniform.items()}
    for name, kind in meta.items():
        shown[name, "meta, fixed counts"] = mean([draw(key, kind, settings.clips) for key in keys])
        shown[name, "meta, collator"] = mean([masks.collate(rng, kind, settings.clips) for _ in keys])
    return dict(sorted(shown.items(), key=lambda row: KINDS.index(row[0][0])))


def pictures(settings: Settings, grid: tuple[int, int, int]) -> list[tuple[str, Int[np.ndarray, "t h w"]]]:
    """Returns (caption, state of every token) of one clip under each kind; those of blocks also as Meta cuts them."""
    shown = []
    rng = np.random.default_rng(settings.seed)
    for number, (name, kind) in enumerate(masks.kinds(config.Mask(kinds=KINDS), grid).items()):
        state = masks.states(masks.sample(jax.random.key(settings.seed + number), kind, 1), grid)[0]
        shown.append((f"{name}: {SAID[name]}", state))
        if kind.blocks:
            cut = masks.states(masks.collate(rng, kind, settings.clips), grid)
            shown.append((f"{name}: {META}", cut[0]))
    return shown


def clip_of(settings: Settings) -> UInt8[np.ndarray, "T S S 3"]:
    """Returns 16 frames, evenly spaced over the middle of the file."""
    path = settings.video or manifest.load(synthetic.corpus()).clips[CLIP].path
    return views(path, config.Corpus(sampling="span"), frames=16, size=settings.size, count=1)[0]


def draw(frames: UInt8[np.ndarray, "t S S 3"], shown: list[tuple[str, Int[np.ndarray, "t h w"]]], path: Path) -> None:
    """Writes one line of frames for the clip and one for each mask, time from left to right."""
    columns = np.arange(len(frames))
    lines = [("the clip", frames)]
    for caption, state in shown:
        seen, asked = np.mean(state == 1), np.mean(state == 2)
        lines.append((f"{caption}\n{seen:.0%} seen, {asked:.0%} predicted", paint_masks(frames, state, TINT)))
    figure, axes = plt.subplots(len(lines), len(columns), figsize=(13.4, 1.36 * len(lines)),
                                gridspec_kw={"wspace": 0.04, "hspace": 0.07, "left": 0.185, "right": 0.995,
                                             "top": 0.995, "bottom": 0.045})
    for (caption, line), row in zip(lines, axes, strict=True):
        for axis, frame in zip(row, line, strict=True):
            axis.imshow(frame)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_color("#d0d4d9")
        title, _, numbers = caption.partition("\n")
        kind, rest = title.split(": ") if ": " in title else (title, "")
        row[0].annotate(kind, (-0.08, 0.66), xycoords="axes fraction", ha="right", fontsize=12, weight="bold")
        row[0].annotate(rest, (-0.08, 0.42), xycoords="axes fraction", ha="right", fontsize=9)
        row[0].annotate(numbers, (-0.08, 0.22), xycoords="axes fraction", ha="right", fontsize=9, color="#6e7781")
    meanings = {"seen, as it is": "#6d4781", "predicted": "#faaa3c", "neither": "#e6e6e6"}
    patches = [Patch(color=colour, label=text) for text, colour in meanings.items()]
    figure.legend(handles=patches, loc="lower left", ncols=3, bbox_to_anchor=(0.175, 0), frameon=False, fontsize=11,
                  handlelength=1.1)
    figure.text(0.995, 0.013, "time \N{RIGHTWARDS ARROW}", fontsize=11, ha="right")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(settings: Settings) -> None:
    """Writes masks.png and prints the table."""
    settings.out.mkdir(parents=True, exist_ok=True)
    model = config.Model(size=settings.size)
    frames = clip_of(settings)[:: model.tubelet]
    draw(frames, pictures(settings, model.grid), settings.out / "masks.png")
    print("| kind | cut | seen | predicted | seen of the first time step | seen of the last |")
    print("|---|---|---|---|---|---|")
    for (name, how), shares in rows(settings, model.grid).items():
        print(f"| {name} | {how} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
