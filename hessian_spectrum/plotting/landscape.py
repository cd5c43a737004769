"""Pictures of curves, surfaces and trajectories, with matplotlib. Figures without pyplot.

What is not finite is drawn as what it is: hatched, not filled in.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Array, Curve, Surface, Trajectory
from hessian_spectrum.plotting import plane_coordinates
from hessian_spectrum.plotting.style import BLUE, GREY, ORANGE, number, tidy

COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito
DASHES = ("-", "--", ":", "-.")
MAP = "viridis"  # evenly perceived, and in grey
DECADES = 1.0  # a range of values above this many decades is drawn on a logarithmic scale
LEVELS = 24
INVALID = "without a finite value"
LABELS = {"ratio": "|smallest / largest eigenvalue|"}  # of values whose names do not say enough
_HATCHED = {"facecolor": "#DDDDDD", "edgecolor": GREY, "hatch": "///", "linewidth": 0}


def curve_figure(
    curves: Curve | Mapping[str, Curve],
    name: str = "loss",
    log: bool | None = None,
    by_distance: bool = False,
    title: str | None = None,
) -> Figure:
    """Values along paths: "loss" and, where there is one, "test_loss"; accuracies below.

    Args:
        curves: one, or several by name.
        name: what is drawn in the upper panel; the same of the test data is drawn with it.
        log: a logarithmic axis; default: where values are positive and span more than a decade.
        by_distance: along the distance in parameter space instead of the path's own coordinate.
    """
    curves = {"": curves} if isinstance(curves, Curve) else dict(curves)
    if not curves:
        raise InputError("no curves to draw; expected one or more")
    with_accuracy = any("accuracy" in curve.values for curve in curves.values())
    figure = Figure(figsize=(8, 5.6 if with_accuracy else 4.2), layout="constrained")
    panels = figure.subplots(
        1 + with_accuracy, sharex=True, squeeze=False, height_ratios=(2, 1)[: 1 + with_accuracy]
    )[:, 0]
    names = [name, *(("accuracy",) if with_accuracy else ())]
    for axes, wanted in zip(panels, names):
        drawn = _draw_curves(axes, curves, wanted, by_distance)
        axes.set_ylabel(wanted)
        if wanted == name and (_is_wide(drawn) if log is None else log):
            axes.set_yscale("log")
        tidy(axes)
    first = next(iter(curves.values()))
    panels[-1].set_xlabel("distance in parameter space" if by_distance else _coordinate(first))
    if len(panels[0].get_lines()) > 1:
        panels[0].legend(frameon=False, fontsize=9)
    panels[0].set_title(title or described(first), loc="left", fontsize=11)
    return figure


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
    norm = _norm(z[finite], log)
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
    norm = _norm(values[np.isfinite(values)], log)
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
    a, b = ({_axis_name(surface, i) for surface in surfaces.values()} for i in (0, 1))
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
        drawn = _draw_cells(axes, surface, name, _norm(z[finite], log))
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
    is_log = bool(finite.any()) and isinstance(_norm(z[finite], log), LogNorm)
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


def trajectory_figure(found: Trajectory, title: str | None = None) -> Figure:
    """Distances by step, the way beside the line from start to end, and explained variance."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(found.steps, found.distance_from_start, color=BLUE, label="from the start")
    left.plot(found.steps, found.distance_to_end, "--", color=ORANGE, label="to the end")
    left.set_xlabel("step")
    left.set_ylabel("distance in parameter space")
    left.legend(frameon=False, fontsize=9)
    middle.plot(found.alpha, found.beta, "o-", color=BLUE, markersize=3)
    middle.set_xlabel("alpha: place on the line from start to end")
    middle.set_ylabel("beta: distance from the line")
    shares = found.explained_variance[:10]
    right.bar(np.arange(1, len(shares) + 1), shares, color=BLUE)
    walk = 6 / (np.pi * np.arange(1, len(shares) + 1)) ** 2
    right.plot(np.arange(1, len(shares) + 1), walk, "o--", color=ORANGE, label="a random walk's")
    right.set_xlabel("principal component")
    right.set_ylabel("share of the variance")
    right.legend(frameon=False, fontsize=9)
    for axes in (left, middle, right):
        tidy(axes)
    left.set_title(title or f"{len(found)} iterates", loc="left", fontsize=11)
    return figure


def described(result: Curve | Surface) -> str:
    """Samples, parameters, and what BatchNorm normalizes by: the title of a picture without one."""
    about, words = result.about, []
    if "num_samples" in about:
        words.append(f"{about['num_samples']:,} samples, n = {about['n']:,}")
    if about.get("batch_norm", "none") != "none":
        words.append(f"BatchNorm: {about['batch_norm']}")
    if result.num_invalid:
        words.append(f"{result.num_invalid} points {INVALID}")
    return "; ".join(words)


# -- inside ------------------------------------------------------------------------------------


def _draw_curves(
    axes: Axes, curves: Mapping[str, Curve], name: str, by_distance: bool
) -> list[Array]:
    drawn = []
    for (label, curve), color in zip(curves.items(), COLORS * len(curves)):
        x = curve.distance if by_distance else curve.t
        for wanted, dashes in zip((name, f"test_{name}"), DASHES):
            if wanted not in curve.values:
                continue
            y = np.where(np.isfinite(curve.values[wanted]), curve.values[wanted], np.nan)
            words = " ".join(word for word in (label, wanted) if word)
            axes.plot(x, y, dashes, color=color, linewidth=1.4, label=words)
            alone = _alone(y)  # of a line of one point nothing would be seen
            if alone.any():
                axes.plot(x[alone], y[alone], "o", color=color, markersize=4)
            drawn.append(y)
        bad = ~np.isfinite(curve.values[name]) if name in curve.values else np.zeros(len(x), bool)
        for place in x[bad]:
            axes.axvline(place, color=GREY, alpha=0.3, linewidth=1)
    if not drawn:
        held = sorted({held for curve in curves.values() for held in curve.values})
        raise InputError(f"no {name!r} was evaluated; there is: {', '.join(held)}")
    return drawn


def _alone(y: Array) -> Array:
    """Points with a value between points without; (p,), true or false."""
    known = np.pad(np.isfinite(y), 1)
    return known[1:-1] & ~known[:-2] & ~known[2:]


def _coordinate(curve: Curve) -> str:
    if "directions" in curve.about:  # a surface's row
        return _axis_name(curve, 0)
    words = {
        "linear": "alpha",
        "ray": "distance",
        "distance": "distance from theta1",
    }
    return words.get(curve.about.get("path"), "t")


def _is_wide(arrays: list[Array]) -> bool:
    values = np.concatenate(arrays)
    values = values[np.isfinite(values)]
    return bool(values.size) and values.min() > 0 and values.max() > 10**DECADES * values.min()


def _norm(values: Array, log: bool | None) -> Normalize:
    """Of finite values; with ``log=True`` values of 0 and less are refused."""
    if log and values.size and not values.min() > 0:
        raise InputError(f"log=True, but a value is {values.min():g}; expected positive ones")
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        return Normalize(low, high)
    wide = _is_wide([values]) if log is None else log
    return LogNorm(low, high) if wide else Normalize(low, high)


def _levels(norm: Normalize) -> Array:
    low, high = norm.vmin, norm.vmax
    if isinstance(norm, LogNorm):
        return np.geomspace(low, high, LEVELS)
    return np.linspace(low, high, LEVELS)


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    return figure, figure.subplots()


def _draw_contours(axes: Axes, surface: Surface, name: str, norm: Normalize) -> QuadContourSet:
    """Of a surface with finite values, in ``norm``'s colours."""
    z = np.ma.masked_invalid(surface.values[name])
    levels, at = _levels(norm), plane_coordinates.of_points(surface)
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
    place = [float(coordinate[found.index]) for coordinate in plane_coordinates.of_points(surface)]
    axes.plot(*place, "*", color="white", markeredgecolor="black", markersize=11, clip_on=False)
    axes.annotate(
        f"${number(found.value)}$",
        place,
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
        size = a[i + 1] - a[i], b[j + 1] - b[j]
        axes.add_patch(Rectangle((a[i], b[j]), *size, **_HATCHED))
    axes.set_xlim(a[0], a[-1])
    axes.set_ylim(b[0], b[-1])
    axes.legend(handles=[Patch(label=INVALID, **_HATCHED)], fontsize=9, loc="upper right")


def _finish(figure: Figure, axes: Axes, surface: Surface, title: str | None) -> Figure:
    axes.set_xlabel(axes.get_xlabel() or _axis_name(surface, 0))
    axes.set_ylabel(axes.get_ylabel() or _axis_name(surface, 1))
    axes.set_title(title or described(surface), loc="left", fontsize=11)
    return figure


def _axis_name(surface: Curve | Surface, index: int) -> str:
    """The coordinate, and what it is along."""
    if plane_coordinates.is_triangle(surface):
        return ("distance along theta1 - theta0", "distance across it")[index]
    recipes = surface.about.get("directions", [])
    name = ("a", "b")[index]
    if surface.about.get("path") in ("bilinear", "barycentric"):
        return ("alpha", "beta")[index]
    if index >= len(recipes):
        return name
    recipe = recipes[index]
    words = [recipe["kind"]]
    if recipe.get("normalize", "none") != "none":
        words.append(f"{recipe['normalize']}-normalized")
    if "seed" in recipe:
        words.append(f"seed {recipe['seed']}")
    return f"{name}: {', '.join(words)} direction"


def _require_two(surface: Surface) -> None:
    if min(surface.shape) < 2:
        raise InputError(
            f"a surface of {surface.shape[0]} x {surface.shape[1]} points has no area; draw "
            "heat_figure(surface), or curve_figure(surface.row())"
        )
