"""matplotlib's figures as SVG inside a page: text stays text, and a picture is some ten kilobytes.

matplotlib writes more than a page needs: a style for every element of the page, names that repeat
from figure to figure, coordinates to a millionth of a point.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

from hessian_spectrum.reporting.html import SVG_TAGS, Element, checked, element

TOLERANCE = 0.12  # points of 1/72 inch that a simplified line may be off
MANY_CELLS = 400  # cells of a map; more are a picture inside the picture
XLINK = "{http://www.w3.org/1999/xlink}href"
FONT = "'DejaVu Sans',Verdana,sans-serif"
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hessian_spectrum",
    "font.family": "DejaVu Sans",
    "path.simplify": True,
}
_NUMBER = r"-?\d+\.?\d*(?:e-?\d+)?"


def inline_svg(figure: Figure, name: str, title: str, description: str) -> Element:
    """An ``svg`` element with a title and a description for those who do not see it.

    Args:
        name: unique in the page; begins the ids that the picture needs.
        description: one sentence that says what is to be seen.
    """
    root = ElementTree.fromstring(_drawn(figure))
    used = set(re.findall(r"#([\w-]+)", " ".join(_references(root))))
    children = [_converted(child, name, used) for child in root]
    return checked(
        "svg",
        {
            "viewBox": root.get("viewBox"),
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-desc",
            "style": f"font-family:{FONT};stroke-linejoin:round;stroke-linecap:butt",
        },
        (
            element("title", title, id=f"{name}-title"),
            element("desc", description, id=f"{name}-desc"),
            *(child for child in children if child is not None),
        ),
    )


def _drawn(figure: Figure) -> bytes:
    for mesh in figure.findobj(QuadMesh):
        mesh.set_rasterized(np.size(np.asarray(mesh.get_array())) > MANY_CELLS)
    try:
        return _saved(figure)
    except ValueError:  # a name with dollar signs, which is no formula
        for text in figure.findobj(Text):
            text.set_parse_math(_is_formula(text.get_text()))
        return _saved(figure)


def _saved(figure: Figure) -> bytes:
    content = io.BytesIO()
    with rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's fonts may have it
        figure.savefig(content, format="svg", dpi=110, metadata={"Date": None})
    return content.getvalue()


def _is_formula(text: str) -> bool:
    """Can matplotlib read what stands between dollar signs?"""
    try:
        for line in text.split("\n"):
            MathTextParser("path").parse(line)
    except ValueError:
        return False
    return True


def _references(root: ElementTree.Element) -> Iterator[str]:
    for node in root.iter():
        yield node.get(XLINK, "")
        yield node.get("clip-path", "")


def _converted(node: ElementTree.Element, name: str, used: set[str]) -> Element | None:
    tag = str(node.tag).rpartition("}")[2]
    if tag not in SVG_TAGS:  # metadata, and a style that would be that of the whole page
        return None
    attributes = {
        key.rpartition("}")[2]: _attribute(key.rpartition("}")[2], value, name, used)
        for key, value in node.items()
    }
    if tag == "image":
        attributes["href"] = re.sub(r"\s", "", attributes["href"] or "")
    children = tuple(
        found for child in node if (found := _converted(child, name, used)) is not None
    )
    if tag == "g" and not children:
        return None
    text = (node.text,) if node.text is not None and tag in ("text", "tspan") else ()
    return checked(tag, attributes, (*text, *children))


def _attribute(key: str, value: str, name: str, used: set[str]) -> str | None:
    if key == "id":
        return f"{name}-{value}" if value in used else None
    if key in ("href", "clip-path"):
        return value.replace("#", f"#{name}-")
    if key == "style":
        value = re.sub(r"'DejaVu Sans'(, *(?:'[^']*'|[\w-]+))*", FONT.replace("\\", ""), value)
        value = re.sub(r"font-family: [^;]*;? ?", "", value)
        return re.sub(r"\s*([:;])\s*", r"\1", value).strip(";")
    if key == "d":
        return shortened(value)
    if key in ("x", "y", "width", "height"):
        return _rounded(value)
    return value


def _rounded(text: str) -> str:
    return re.sub(_NUMBER, lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), text)


def shortened(path: str) -> str:
    """An SVG path to a tenth of a point, its polygons with the points that can be seen."""
    if re.search(r"[^MLz\d\s.e+-]", path):  # has curves: markers
        return " ".join(re.sub(_NUMBER, lambda x: f"{float(x[0]):.2f}", path).split())
    parts = []
    for part in path.split("M")[1:]:
        points = np.array(re.findall(_NUMBER, part), dtype=float).reshape(-1, 2)
        kept = points[_visible(points)]
        words = " ".join(f"{x:.1f} {y:.1f}" for x, y in kept)
        parts.append(f"M{words.replace('.0 ', ' ').removesuffix('.0')}{'z' * ('z' in part)}")
    return "".join(parts)


def _visible(points: np.ndarray) -> np.ndarray:
    """(k, 2) -> (k,), which points a polygon needs to be off by ``TOLERANCE`` at most.

    Douglas & Peucker 1973, without recursion.
    """
    kept = np.zeros(len(points), dtype=bool)
    kept[[0, -1]] = True
    todo = [(0, len(points) - 1)]
    while todo:
        first, last = todo.pop()
        if last - first < 2:
            continue
        inner = points[first + 1 : last] - points[first]
        along = points[last] - points[first]
        length = float(np.hypot(*along))
        if length > 0:
            away = np.abs(inner[:, 0] * along[1] - inner[:, 1] * along[0]) / length
        else:
            away = np.hypot(inner[:, 0], inner[:, 1])
        # Points on the line but beyond its ends are seen, too.
        share = inner @ along / length**2 if length > 0 else np.zeros(len(inner))
        beyond = np.maximum(np.maximum(-share, share - 1), 0) * length
        away = np.maximum(away, beyond)
        worst = int(away.argmax())
        if away[worst] > TOLERANCE:
            middle = first + 1 + worst
            kept[middle] = True
            todo += [(first, middle), (middle, last)]
    return kept
