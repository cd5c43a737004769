"""Choose and write the figure, page or VTK file of a curve, a surface or a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Curve, Surface, Trajectory
from hessian_spectrum.plotting import density, landscape, surface_export

KINDS = ("surface", "curve", "trajectory")
DRAWN = (Surface, Curve, Trajectory)
VIEWS: dict[str, Callable[..., Figure]] = {
    "contour": landscape.contour_figure,
    "heat": landscape.heat_figure,
    "relief": landscape.relief_figure,
}


def save_beside(
    results: Mapping[str, Any], out: Path, view: str | None = None, value: str | None = None
) -> None:
    """Draw several surfaces side by side; arguments and errors as for ``save``."""
    for name, result in results.items():
        if not isinstance(result, Surface):
            kind = type(result).__name__.lower()
            raise InputError(f"--beside: {name} holds a {kind}; expected a surface or a map")
    first = next(iter(results.values()))
    value = value or ("ratio" if "ratio" in first.values else "loss")
    view = view or ("heat" if value == "ratio" else "contour")
    if view not in ("heat", "contour"):
        raise InputError(f"--view {view} with --beside: expected contour or heat")
    if out.suffix in (".html", ".vts"):
        raise InputError(f"{out} with --beside: expected a picture; leave --beside out")
    figure = landscape.panels_figure(results, value, cells=view == "heat")
    density.save_figure(figure, out)


def save(
    result: Curve | Surface | Trajectory,
    out: Path,
    view: str | None = None,
    value: str | None = None,
    title: str | None = None,
    path: Trajectory | None = None,
) -> None:
    """Write ``out``: an interactive page (.html), a file for ParaView (.vts) or a picture.

    Args:
        view: of a surface; default: contour, but heat of a map's ratio.
        value: what of it; default: ratio where there is one, else loss.
        path: drawn on contours, of a surface along its principal components.

    Raises:
        InputError: a view or a kind of file that it does not have.
    """
    kind = type(result).__name__.lower()
    if isinstance(result, Surface) and result.shape[1] == 1:
        result = result.row()
    if not isinstance(result, Surface) and (view is not None or out.suffix in (".html", ".vts")):
        raise InputError(
            f"{f'--view {view}' if view else out} is for a surface, and this is a {kind}"
            f"{' along a line' if kind == 'surface' else ''}; leave it out"
        )
    if view is not None and view not in VIEWS:
        raise InputError(f"--view {view} of a surface: expected one of {', '.join(VIEWS)}")
    if isinstance(result, Trajectory):
        density.save_figure(landscape.trajectory_figure(result, title), out)
        return
    value = value or ("ratio" if "ratio" in result.values else "loss")
    result.values[value]  # refused by name
    if isinstance(result, Curve):
        figure = landscape.curve_figure(result, value, title=title)
        density.save_figure(figure, out)
    elif out.suffix == ".html":
        surface_export.save_page(result, out, value, title=title)
    elif out.suffix == ".vts":
        surface_export.save_vtk(result, out, value)
    else:
        view = view or ("heat" if value == "ratio" or 1 in result.shape else "contour")
        options = {"path": path} if view == "contour" else {}
        density.save_figure(VIEWS[view](result, value, title=title, **options), out)
