"""Words and pictures as HTML; all foreign text is escaped."""

from html import escape

import numpy as np


def paragraph(text: str, kind: str = "") -> str:
    """Returns the text, escaped, as a paragraph of a CSS class."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def image(source: str, alt: str) -> str:
    """Returns an image with the text that stands for it."""
    return f'<img src="{source}" alt="{escape(alt)}">'


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a table; the first cell of a row is its heading, all text is escaped."""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(c)}</td>" for c in row[1:])
                   + "</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{heads}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def labelled(rows: list[tuple[str, str]]) -> str:
    """Returns images below each other with a label (HTML) to the left of each."""
    return '<div class="rows">' + "".join(f"<div>{label}</div>{shown}" for label, shown in rows) + "</div>"


def swatch(colour: str, text: str) -> str:
    """Returns a coloured square and its meaning."""
    return f'<span class="swatch"><i style="background:{colour}"></i>{escape(text)}</span>'


def percent(share: float) -> str:
    """Returns a share in [0, 1] as a percentage with one decimal, and a dash for nan."""
    return f"{share:.1%}" if np.isfinite(share) else "–"
