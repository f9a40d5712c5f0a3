"""Drawings as data URIs: the only file that uses matplotlib. It knows curves and points, not what they mean.

Figures are made without pyplot, so nothing is shared between them, and the same numbers give the same bytes.
"""

import base64
import io
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

INK, FAINT, TRAINED, RANDOM, PIXELS = "#24292f", "#8b949e", "#1f5fae", "#8b949e", "#b7791f"
TARGETS = "#4d7c4f"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "cora", "font.size": 9.5, "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 9, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6e8eb", "grid.linewidth": 0.8, "axes.axisbelow": True, "legend.frameon": False,
    "lines.solid_capstyle": "round",
}
WIDTH = 10.6
"""Of a figure in inches; the page shows it about 1060 pixels wide."""
RAMP = LinearSegmentedColormap.from_list("levels", ["#253a8e", "#1583a5", "#3a9a5b", "#cf8a12", "#b5342c"])


def level_colours(levels: int) -> list[str]:
    """Returns one colour a level, from cold (lowest) to warm (highest), as #rrggbb."""
    return [to_hex(RAMP(i / max(1, levels - 1))) for i in range(levels)]


def picture(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """Returns a photograph as the data URI of a JPEG."""
    buffer = io.BytesIO()
    imsave(buffer, image, format="jpeg", pil_kwargs={"quality": 92, "subsampling": 0})
    return _uri("image/jpeg", buffer.getvalue())


def _svg(figure: Figure) -> str:
    return _uri("image/svg+xml", _drawn(figure))


def _drawn(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = buffer.getvalue()
    return drawn[drawn.index(b"<svg"):]  # without the prolog, which names a remote DTD


def png(data: bytes) -> str:
    """Returns the data URI of a PNG file."""
    return _uri("image/png", data)


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# --------------------------------------------------------------------------------------------------------- curves


class Panel(NamedTuple):
    """One plot of curves, one curve a level."""

    title: str
    raw: Float[np.ndarray, "n L"]
    """Drawn faintly behind `line`."""
    line: Float[np.ndarray, "n L"]
    floor: float | None = None
    """Values below are shaded as bad."""
    floor_name: str = ""


def curves(steps: Float[np.ndarray, "n"], panels: Sequence[Panel]) -> str:
    """Returns the panels side by side over one axis of steps, with one legend of levels above them."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
        rows = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(rows, panels, strict=True):
            _draw(axes, steps, panel)
        handles, names = rows[0].get_legend_handles_labels()
        if len(names) > 1:
            figure.legend(handles, names, loc="outside upper left", ncols=8, handlelength=1.4, columnspacing=1.6)
        return _svg(figure)


def _draw(axes: Axes, steps: Float[np.ndarray, "n"], panel: Panel) -> None:
    alone = len(steps) == 1
    for level, colour in enumerate(level_colours(panel.line.shape[1])):
        axes.plot(steps, panel.raw[:, level], color=colour, alpha=0.22, linewidth=0.8)
        axes.plot(steps, panel.line[:, level], color=colour, linewidth=1.9, label=f"level {level}",
                  marker="o" if alone else "")
    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(x=0.01)
    if panel.floor is not None:
        axes.set_ylim(0, max(float(np.nanmax(panel.raw, initial=0.0)) * 1.06, panel.floor * 1.6))
        axes.axhspan(0, panel.floor, color="#d1242f", alpha=0.09, linewidth=0)
        axes.text(0.99, panel.floor, panel.floor_name, transform=axes.get_yaxis_transform(), ha="right", va="bottom",
                  color="#a40e26", fontsize=8.5)


def timeline(seconds: Float[np.ndarray, "S"], line: Float[np.ndarray, "L S"], title: str) -> bytes:
    """Returns an SVG file: one curve a level over the seconds of a video."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        for level, colour in enumerate(level_colours(len(line))):
            axes.plot(seconds, line[level], color=colour, linewidth=1.9, label=f"level {level}",
                      marker="o" if len(seconds) == 1 else "")
        axes.set_title(title)
        axes.set_xlabel("second")
        axes.margins(x=0.01)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=8, handlelength=1.4)
        return _drawn(figure)


def strips(rows: Sequence[tuple[str, UInt8[np.ndarray, "H W 3"]]], title: str) -> bytes:
    """Returns a PNG file: pictures of one size below each other, each with its name to the left."""
    high, wide = rows[0][1].shape[:2]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.4 + len(rows) * 0.8 * WIDTH * high / wide), layout="constrained", dpi=130)
        figure.suptitle(title, fontsize=9.5)
        for axes, (name, image) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_ylabel("\n".join(textwrap.wrap(name, 14)), rotation=0, ha="right", va="center")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            for side in axes.spines.values():
                side.set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def heat(values: Float[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n 3"]:
    """Returns colours of values from 0 (black) over red to 1 (white-hot)."""
    return (mpl.colormaps["inferno"](np.clip(values, 0, 1))[..., :3] * 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------------------- scores


class Dot(NamedTuple):
    """One accuracy with its interval, in [0, 1]."""

    name: str
    colour: str
    accuracy: float
    low: float
    high: float


def dots(groups: Sequence[tuple[str, Sequence[Dot]]], chance: float | None) -> str:
    """Returns the accuracies one below the other in titled groups, each with its interval, on a scale from 0."""
    lines = sum(len(group) for _, group in groups)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.95 + 0.36 * lines + 0.42 * len(groups)), layout="constrained")
        axes = figure.subplots()
        y, ticks = 0.0, []
        for title, group in groups:
            axes.text(0, y, title, weight="bold", va="center", transform=axes.get_yaxis_transform(),
                      bbox={"facecolor": "white", "linewidth": 0, "pad": 2})
            for dot in group:
                y += 1
                _draw_dot(axes, y, dot)
                ticks.append((y, dot.name))
            y += 1.2
        axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
        axes.set_ylim(y - 0.5, -0.6)
        axes.tick_params(axis="y", length=0, labelsize=10)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        top = max(dot.high for _, group in groups for dot in group)
        axes.set_xlim(0, min(1.06, max(top, chance or 0) * 1.12 + 0.04))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("accuracy on held-out test clips")
        if chance is not None:
            axes.axvline(chance, color=INK, linewidth=1, linestyle=(0, (2, 2)))
            axes.text(chance, 1.0, f"guessing {100 * chance:.3g}%", transform=axes.get_xaxis_transform(), va="bottom",
                      ha="center", fontsize=8.5)
        return _svg(figure)


def _draw_dot(axes: Axes, y: float, dot: Dot) -> None:
    axes.plot([dot.low, dot.high], [y, y], color=dot.colour, linewidth=5, alpha=0.28)
    axes.plot([dot.accuracy], [y], "o", color=dot.colour, markersize=8)
    axes.annotate(f"{dot.accuracy:.1%}", (dot.high, y), (9, 0), textcoords="offset points", va="center",
                  color=dot.colour, weight="bold")


class ByLevel(NamedTuple):
    """Accuracy of one method at every level."""

    title: str
    trained: Float[np.ndarray, "L"]
    random: Float[np.ndarray, "L"]
    pixels: float
    chosen: int


def by_level(panels: Sequence[ByLevel], chance: float | None) -> str:
    """Returns one panel a method: trained and random accuracy over the levels, pixels and guessing as lines."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
        rows = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, panel in zip(rows, panels, strict=True):
            _draw_levels(axes, panel, chance)
        rows[0].set_ylabel("accuracy on test clips")
        figure.legend(*rows[0].get_legend_handles_labels(), loc="outside upper left", ncols=5, handlelength=1.8)
        return _svg(figure)


def _draw_levels(axes: Axes, panel: ByLevel, chance: float | None) -> None:
    levels = np.arange(len(panel.trained))
    axes.plot(levels, panel.trained, color=TRAINED, linewidth=1.6, zorder=2, label="trained")
    axes.scatter(levels, panel.trained, s=70, c=level_colours(len(levels)), zorder=3)
    axes.plot(levels, panel.random, "o-", color=RANDOM, linewidth=1.2, markersize=5, label="untrained")
    axes.axhline(panel.pixels, color=PIXELS, linewidth=1.4, label="pixels")
    if chance is not None:
        axes.axhline(chance, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="guessing")
    axes.annotate("chosen", (panel.chosen, panel.trained[panel.chosen]), (0, 9), textcoords="offset points",
                  ha="center", fontsize=8.5)
    axes.set_title(panel.title)
    axes.set_xticks(levels, [f"level {i}" for i in levels] if len(levels) <= 6 else levels)
    axes.margins(x=0.08)
    axes.set_ylim(0, 1.08)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
