"""Surfaces that turn and maps that tell their values, where plotly is installed.

A page has the same in a figure that needs no script; this is beside it.
"""

from __future__ import annotations

from importlib.util import find_spec

from hessian_spectrum.landscape.results import Surface, Trajectory
from hessian_spectrum.plotting import surface_export
from hessian_spectrum.reporting.html import Node, Trusted, element, inert_json

MISSING = (
    "With plotly installed (pip install 'hessian_spectrum[interactive]') this page has the surface "
    "to be turned, with its values under the pointer."
)


def is_possible() -> bool:
    return find_spec("plotly") is not None


def box(surface: Surface, mark: str, path: Trajectory | None = None) -> list[Node]:
    """A surface to be turned by mouse, or a map with its values under the pointer."""
    if not is_possible():
        return [element("p", MISSING, class_="soft")]
    is_map = "ratio" in surface.values
    name = "ratio" if is_map else "loss"
    draw = surface_export.map_figure if is_map else surface_export.surface_figure
    text = draw(surface, name, path=path).to_json()
    told = (
        "Point at the map: its values appear."
        if is_map
        else ("Drag the surface to turn it, scroll to come nearer, point at it to read its values.")
    )
    return [
        element("p", told, class_="soft turntold", hidden=True),
        element(
            "div",
            id=mark,
            class_="turn",
            role="img",
            aria_label=f"The {name}, to be explored by mouse; the figure below shows the same.",
            hidden=True,
        ),
        element("script", inert_json(text), type="application/json", id=f"{mark}-data"),
    ]


def library() -> Trusted:
    """plotly's JavaScript (5 MB)."""
    from plotly.offline import get_plotlyjs

    # In JavaScript's strings and patterns both spellings mean the same.
    text = get_plotlyjs().replace("</script", "<\\/script").replace("</style", "<\\/style")
    return Trusted(text.replace("<!--", "<\\!--"))
