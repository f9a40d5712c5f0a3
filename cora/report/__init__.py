"""The report of a run: one HTML file that shows what was learned, on what, and whether to trust it.

`write` makes the page from a run folder and a `Gallery`; a section is a function from `Material` to `Section`,
and a page is any tuple of them, so that a new one is added by passing `(*SECTIONS, mine)`.
"""

from cora.report.material import Gallery, Material, Section
from cora.report.page import write
from cora.report.sections import SECTIONS

__all__ = ["SECTIONS", "Gallery", "Material", "Section", "write"]
