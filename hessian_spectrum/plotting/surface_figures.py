"""Figures of surfaces over two coordinates. Without pyplot.

Points without a finite value are hatched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Array, Surface, Trajectory
from hessian_spectrum.plotting import plane_coordinates
from hessian_spectrum.plotting.style import GREY, ORANGE, number
from hessian_spectrum.plotting.value_scale import (
    INVALID,
    LABELS,
    axis_name,
    color_scale,
    contour_levels,
    described,
)

MAP = "viridis"  # evenly perceived, and in grey
_HATCHED: dict[str, Any] = {
    "facecolor": "#DDDDDD",
    "edgecolor": GREY,
    "hatch": "///",
    "linewidth": 0,
}


def contour_figure(
    surface: Surface,
    name: str = "loss",
    path: Trajectory | Array | None = None,
    log: bool | None = None,
    title: str | None = None,
) -> Figure:
    """Filled contours over the two coordinates, with a trajectory and the minimum of the grid.

    Args:
        path: (t, 2), coordinates of iterates on the surface; a Trajectory lies on the surface along
            its principal directions.
        log: colours by the logarithm; default: where values are positive and span over a decade.
    """
    _require_two(surface)
    figure, axes = _panel()
    z = surface.values[name]
    finite = np.isfinite(z)
    norm = color_scale(z[finite], log)
    if finite.any():
        filled = _draw_contours(axes, surface, name, norm)
        figure.colorbar(filled, ax=axes, label=LABELS.get(name, name), format="%.3g")
        _mark_minimum(axes, surface, name)
    _hatch_invalid(axes, surface, ~finite)
    if path is not None:
        _draw_path(axes, path)
    return _finish(figure, axes, surface, title)


def panels_figure(
    surfaces: Mapping[str, Surface],
    name: str = "loss",
    log: bool | None = None,
    cells: bool = False,
) -> Figure:
    """Several surfaces side by side, two in a row, in the same colours.

    Args:
        surfaces: by the titles of their panels.
        log: as for ``contour_figure``.
        cells: a coloured cell a grid point, as ``heat_figure``, instead of contours.
    """
    surfaces = dict(surfaces)
    if not surfaces:
        raise InputError("no surfaces to draw; expected one or more")
    for surface in surfaces.values():
        _require_two(surface)
    values = np.concatenate([surface.values[name].ravel() for surface in surfaces.values()])
    norm = color_scale(values[np.isfinite(values)], log)
    rows, columns = -(-len(surfaces) // 2), min(2, len(surfaces))
    figure = Figure(figsize=(4.4 * columns + 1, 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in panels.flat[len(surfaces) :]:
        axes.set_visible(False)
    for axes, (label, surface) in zip(panels.flat, surfaces.items()):
        finite = np.isfinite(surface.values[name])
        if cells:
            _draw_cells(axes, surface, name, norm)
        elif finite.any():
            _draw_contours(axes, surface, name, norm)
            _mark_minimum(axes, surface, name)
        _hatch_invalid(axes, surface, ~finite)
        axes.set_title("\n".join(filter(None, (label, described(surface)))), loc="left", fontsize=9)
    a, b = ({axis_name(surface, i) for surface in surfaces.values()} for i in (0, 1))
    for axes in panels[-1]:
        axes.set_xlabel(next(iter(a)) if len(a) == 1 else "a")
    for axes in panels[:, 0]:
        axes.set_ylabel(next(iter(b)) if len(b) == 1 else "b")
    figure.colorbar(
        ScalarMappable(norm, MAP), ax=panels, label=LABELS.get(name, name), format="%.3g"
    )
    return figure


def heat_figure(
    surface: Surface, name: str = "loss", log: bool | None = None, title: str | None = None
) -> Figure:
    """One coloured cell a grid point: nothing is interpolated. For grids of any shape."""
    figure, axes = _panel()
    z = surface.values[name]
    finite = np.isfinite(z)
    if finite.any():
        drawn = _draw_cells(axes, surface, name, color_scale(z[finite], log))
        figure.colorbar(drawn, ax=axes, label=LABELS.get(name, name), format="%.3g")
    _hatch_invalid(axes, surface, ~finite)
    return _finish(figure, axes, surface, title)


def relief_figure(
    surface: Surface,
    name: str = "loss",
    log: bool | None = None,
    view: tuple[float, float] = (35.0, -60.0),
    title: str | None = None,
) -> Figure:
    """The surface in three dimensions; with ``log`` the height is log10 of the value.

    Args:
        view: elevation and azimuth, in degrees.
    """
    _require_two(surface)
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    axes = figure.add_subplot(projection="3d")
    z = surface.values[name].copy()
    finite = np.isfinite(z)
    is_log = bool(finite.any()) and isinstance(color_scale(z[finite], log), LogNorm)
    z[~finite] = np.nan
    height = np.log10(z) if is_log else z
    a, b = np.meshgrid(surface.a, surface.b, indexing="ij")
    if finite.any():
        axes.plot_surface(a, b, height, cmap=MAP, rstride=1, cstride=1, linewidth=0)
    axes.view_init(*view)
    axes.set_xlabel("a")
    axes.set_ylabel("b")
    axes.set_zlabel(f"log10 {name}" if is_log else name)
    axes.set_title(title or described(surface), loc="left", fontsize=11)
    return figure


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    return figure, figure.subplots()


def _draw_contours(axes: Axes, surface: Surface, name: str, norm: Normalize) -> QuadContourSet:
    """Of a surface with finite values, in ``norm``'s colours."""
    z = np.ma.masked_invalid(surface.values[name])
    levels, at = contour_levels(norm), plane_coordinates.of_points(surface)
    drawn = axes.contourf(*at, z, levels, norm=norm, cmap=MAP)
    axes.contour(*at, z, levels[::3], colors="white", linewidths=0.4)
    if plane_coordinates.is_triangle(surface):
        axes.set_aspect("equal")
        plane_coordinates.name_corners(axes, surface)
    return drawn


def _draw_cells(axes: Axes, surface: Surface, name: str, norm: Normalize) -> QuadMesh:
    z = np.ma.masked_invalid(surface.values[name])
    if plane_coordinates.is_triangle(surface):
        axes.set_aspect("equal")
        plane_coordinates.name_corners(axes, surface)
        return axes.pcolormesh(*plane_coordinates.of_borders(surface), z, norm=norm, cmap=MAP)
    return axes.pcolormesh(
        plane_coordinates.borders(surface.a),
        plane_coordinates.borders(surface.b),
        z.T,
        norm=norm,
        cmap=MAP,
    )


def _mark_minimum(axes: Axes, surface: Surface, name: str) -> None:
    found = surface.minimum(name)
    x, y = (float(coordinate[found.index]) for coordinate in plane_coordinates.of_points(surface))
    axes.plot(x, y, "*", color="white", markeredgecolor="black", markersize=11, clip_on=False)
    axes.annotate(
        f"${number(found.value)}$",
        (x, y),
        xytext=(6, 6),
        textcoords="offset points",
        color="white",
        fontsize=9,
    )


def _draw_path(axes: Axes, path: Trajectory | Array) -> None:
    points = path.coordinates[:, :2] if isinstance(path, Trajectory) else np.asarray(path, float)
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"a path of shape {points.shape}; expected (t, 2)")
    limits = axes.axis()
    axes.plot(*points.T, "o-", color=ORANGE, markersize=3, linewidth=1.2)
    if isinstance(path, Trajectory):
        shares = path.explained_variance
        axes.set_xlabel(f"first component, {shares[0]:.0%} of the variance")
        axes.set_ylabel(f"second component, {shares[1] if len(shares) > 1 else 0:.0%}")
    low, high = points.min(0), points.max(0)
    axes.set_xlim(min(limits[0], low[0]), max(limits[1], high[0]))
    axes.set_ylim(min(limits[2], low[1]), max(limits[3], high[1]))


def _hatch_invalid(axes: Axes, surface: Surface, invalid: Array) -> None:
    if not invalid.any():
        return
    if plane_coordinates.is_triangle(surface):
        axes.plot(
            *(x[invalid] for x in plane_coordinates.of_points(surface)),
            "x",
            color=GREY,
            label=INVALID,
        )
        axes.legend(fontsize=9, loc="upper right")
        return
    a, b = plane_coordinates.borders(surface.a), plane_coordinates.borders(surface.b)
    for i, j in zip(*np.nonzero(invalid)):
        width, height = a[i + 1] - a[i], b[j + 1] - b[j]
        axes.add_patch(Rectangle((a[i], b[j]), width, height, **_HATCHED))
    axes.set_xlim(a[0], a[-1])
    axes.set_ylim(b[0], b[-1])
    axes.legend(handles=[Patch(label=INVALID, **_HATCHED)], fontsize=9, loc="upper right")


def _finish(figure: Figure, axes: Axes, surface: Surface, title: str | None) -> Figure:
    axes.set_xlabel(axes.get_xlabel() or axis_name(surface, 0))
    axes.set_ylabel(axes.get_ylabel() or axis_name(surface, 1))
    axes.set_title(title or described(surface), loc="left", fontsize=11)
    return figure


def _require_two(surface: Surface) -> None:
    if min(surface.shape) < 2:
        raise InputError(
            f"a surface of {surface.shape[0]} x {surface.shape[1]} points has no area; draw "
            "heat_figure(surface), or curve_figure(surface.row())"
        )
