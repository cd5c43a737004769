"""One result as a piece of HTML for a notebook: what was found, and its first picture."""

from __future__ import annotations

from typing import Any

from hessian_spectrum.reporting import findings, parts, pictures
from hessian_spectrum.reporting.html import element

_marks = parts.Marks()  # of all cells of a notebook, which is one page


def of_result(found: Any) -> str:
    """A section without scripts and styles: names in it are escaped, its figure is inline SVG.

    A result that has no picture shows what is said of it, and its ``repr``.
    """
    told = findings.of_result(found)
    drawn = pictures.of_result(found, None, None)[:1]
    section = element(
        "section",
        parts.said(told, beware=False),
        parts.said(told, beware=True),
        [parts.figure(picture, _marks) for picture in drawn],
        element("pre", repr(found)) if not drawn else None,
    )
    return str(section)
