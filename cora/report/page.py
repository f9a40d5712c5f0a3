"""The page around the sections: one HTML file that needs nothing but itself, not even a script.

This file knows where a run keeps its rows and its config, and how the page looks. It knows no section.
"""

import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from cora.files import whole
from cora.report import reading
from cora.report.material import Gallery, Material, Section, require
from cora.report.sections import SECTIONS, methods
from cora.store import record

FILE = "report.html"
STYLE = """
:root { color-scheme: light; --ink: #24292f; --soft: #59636e; --line: #e1e4e8; --paper: #fff; --wash: #f6f7f9;
  --mark: #1f5fae; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main, header > *, nav > * { max-width: 1100px; margin-inline: auto; padding-inline: 20px; }
header { background: var(--wash); border-bottom: 1px solid var(--line); padding: 34px 0 26px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 auto 4px; letter-spacing: -.01em; }
header p { margin: 0 auto 20px; max-width: 1100px; color: var(--soft); }
h2 { font-size: 22px; margin: 0 0 8px; letter-spacing: -.005em; }
h3 { font-size: 15px; margin: 22px 0 8px; }
section { padding: 34px 0 30px; border-bottom: 1px solid var(--line); scroll-margin-top: 44px; }
section:last-child { border: 0; }
nav { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line); }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 22px; list-style: none; padding-block: 10px; font-size: 14px;
  margin-block: 0; }
a { color: var(--mark); text-decoration: none; } a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; }
.tiles div { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.tiles b { display: block; font-size: 27px; line-height: 1.2; font-weight: 650; }
.tiles span, .tiles small { display: block; font-size: 13.5px; color: var(--soft); }
p { margin: 0 0 12px; max-width: 76ch; }
.lead { color: var(--soft); }
.note { color: var(--soft); font-size: 13.5px; margin: 6px 0 0; }
.missing { background: var(--wash); border-left: 4px solid #8b949e; padding: 12px 16px; }
.verdict { padding: 12px 16px; border-left: 4px solid #8b949e; background: var(--wash); max-width: none; }
.verdict.healthy { border-color: #2c8a4b; background: #eef8f1; }
.verdict.warning { border-color: #c8332b; background: #fdf0ef; }
img { display: block; width: 100%; height: auto; }
figure { margin: 16px 0 20px; }
figcaption { font-size: 14px; color: var(--soft); margin-top: 5px; }
.rows { display: grid; grid-template-columns: 112px 1fr; gap: 6px 14px; align-items: center; font-size: 14px; }
.swatch { display: inline-flex; align-items: center; gap: 7px; margin-right: 22px; font-size: 14px; }
.swatch i { width: 14px; height: 14px; border-radius: 3px; }
.rows .swatch { margin: 0; } .rows .note { margin: 2px 0 0 21px; font-size: 12.5px; line-height: 1.3; }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; margin-top: 10px;
  width: 100%; }
th, td { text-align: left; padding: 5px 16px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; } tbody th { font-weight: 500; }
.tables { columns: 3 300px; column-gap: 34px; } .tables > div { break-inside: avoid; padding-bottom: 10px; }
.tables h3 { margin: 0 0 4px; text-transform: capitalize; } .tables table { margin: 0; font-size: 13.5px; }
.tables th { font-weight: 400; color: var(--soft); } .tables td { text-align: right; padding-right: 0;
  overflow-wrap: anywhere; }
code { font: 0.92em ui-monospace, "Liberation Mono", monospace; background: #eceef1; padding: 1px 5px;
  border-radius: 4px; }
@media print { nav { display: none; } section { break-inside: avoid; } }
"""


def write(out: Path, run: Path, gallery: Gallery,
          sections: Sequence[Callable[[Material], Section | None]] = SECTIONS) -> Path:
    """Returns the path of `report.html` in the folder `out`, written from the run's metrics.jsonl and config.json.

    The file appears whole or not at all. Raises FileNotFoundError if the run lacks either file, ValueError if the
    parts of the gallery do not fit each other.
    """
    require(gallery)
    config = json.loads((run / "config.json").read_text())
    material = Material(run.resolve().name, record.read(run / record.FILE), config, gallery)
    out.mkdir(parents=True, exist_ok=True)
    made = [made for section in sections if (made := section(material)) is not None]
    with whole(out / FILE) as part:
        part.write_text(document(material, made), encoding="utf-8")
    return out / FILE


def document(material: Material, sections: Sequence[Section]) -> str:
    """Returns the whole HTML document. Raises ValueError if two sections share a name."""
    names = [section.name for section in sections]
    if len(set(names)) < len(names):
        raise ValueError(f"sections {', '.join(names)}: each needs a name of its own")
    links = "".join(f'<li><a href="#{s.name}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(f'<section id="{s.name}"><h2>{escape(s.title)}</h2>{s.body}</section>\n' for s in sections)
    title = escape(f"Cora: {material.name}")
    return (f'<!doctype html>\n<html lang="en-GB"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>\n'
            f"<header><h1>{title}</h1><p>A video encoder trained without labels by hierarchical predictive coding</p>"
            f'<div class="tiles">{headline(material)}</div></header>\n'
            f"<nav><ul>{links}</ul></nav>\n<main>{body}</main></body></html>\n")


def headline(material: Material) -> str:
    """Returns the four numbers to know first, as HTML."""
    probe, summary, rows = material.gallery.probe, material.gallery.summary, material.rows
    scores = list(methods(probe)) if probe is not None else []
    tiles = [("Accuracy of the probe", "–", "left out, see below" if material.gallery.left_out else "not probed yet")]
    if scores:
        name, score = scores[0]
        tiles = [(f"Accuracy, {name[0].lower()}{name[1:]}", f"{score['accuracy']:.1%}",
                  f"untrained {score['random']['accuracy']:.1%}, pixels {score['pixels']['accuracy']:.1%}")]
    width = material.gallery.latents.shape[-1]
    state = reading.verdict(reading.series(rows, "rank"), reading.series(rows, "std"), width).state
    ranks = summary.get("rank_per_level", [])
    tiles.append(("Collapse", {"healthy": "Healthy", "warning": "Warning", "unknown": "Unknown"}[state],
                  f"effective rank {min(ranks):.0f} to {max(ranks):.0f} of {width}" if ranks else "rank not recorded"))
    tiles.append(("Training", f"{summary['steps']:,} steps", f"in {duration(summary['seconds'])}"))
    speed, waits = summary["clips_per_second"], summary["wait_share"]
    tiles.append(("Speed", "–" if unknown(speed) else f"{speed:,.0f} clips/s",
                  "too short a run to tell" if unknown(waits) else f"{waits:.0%} of the time waiting for data"))
    return "".join(f"<div><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(remark)}</small></div>"
                   for name, value, remark in tiles)


def unknown(value: float | None) -> bool:
    """Returns whether a rate could not be measured: None in a summary, nan in a row."""
    return value is None or not np.isfinite(value)


def duration(seconds: float) -> str:
    """Returns a time in the two largest units that it needs, as in `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
