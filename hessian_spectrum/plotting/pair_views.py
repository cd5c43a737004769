"""All pairs of several networks in one picture, as Im, Tao and Branson (2017) draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hessian_spectrum.landscape.results import Array, Curve, Pairs, Surface
from hessian_spectrum.landscape.results.pairs import DISAGREEMENT, FUNCTIONAL
from hessian_spectrum.plotting.style import BLUE, COLORS, GREY, ORANGE, tidy
from hessian_spectrum.plotting.value_scale import (
    LABELS,
    color_scale,
    contour_levels,
    described,
    is_wide,
)

MAP = "viridis"


def table_figure(found: Pairs, name: str = "loss", title: str | None = None) -> Figure:
    """Their table 1: a row and a column a network.

    Below the diagonal ``name`` over the triangle of the start and both ends, all in the same
    colours; above it distances (lines) and label disagreements (dashes) of outputs, from the row's
    network (blue) and from the column's (orange), along the line from the row's to the column's.
    """
    names, count = found.names, len(found.names)
    figure = Figure(figsize=(1.9 * count + 1.6, 1.8 * count + 0.8), layout="constrained")
    grid = figure.subplots(count, count, squeeze=False)
    shown = [triangle.values[name].ravel() for triangle in found.triangles.values()]
    values = np.concatenate(shown) if shown else np.empty(0)
    norm = color_scale(values[np.isfinite(values)], None)
    top = _largest(found.lines.values())
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            axes = grid[i, j]
            if i == j:
                axes.axis("off")
            elif i > j:
                _draw_triangle(axes, found.triangles.get((second, first)), name, norm)
            else:
                _draw_outputs(axes, found.lines[first, second], top)
        grid[0, i].set_title(first, fontsize=9)
        grid[i, 0].set_ylabel(first, fontsize=9)
        grid[i, i].text(0.5, 0.5, first, ha="center", va="center", transform=grid[i, i].transAxes)
    if len(values):
        label = LABELS.get(name, name)
        figure.colorbar(ScalarMappable(norm, MAP), ax=grid, label=label, shrink=0.7, format="%.3g")
    grid[0, -1].legend(frameon=False, fontsize=6)
    about = described(next(iter(found.lines.values())))
    figure.suptitle(", ".join(filter(None, (title, about))), x=0.02, ha="left", fontsize=11)
    return figure


def lines_figure(found: Pairs, name: str = "loss", title: str | None = None) -> Figure:
    """Their figures 5 and 6: ``name`` along lines, by distance in parameter space.

    To the left from each end towards its start, to the right from end to end.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    starts = {end: _reversed(line, name) for end, line in found.from_start.items()}
    ends = {
        f"{a} to {b}": (line.distance, line.values[name]) for (a, b), line in found.lines.items()
    }
    _draw_lines(left, starts, "distance from the end, towards the start")
    _draw_lines(right, ends, "distance from the first end")
    left.set_ylabel(LABELS.get(name, name))
    if is_wide([values for _, values in (*starts.values(), *ends.values())]):
        left.set_yscale("log")
    about = described(next(iter(found.lines.values())))
    figure.suptitle(", ".join(filter(None, (title, about))), x=0.02, ha="left", fontsize=11)
    return figure


# -- inside --------------------------------------------------------------------------------------


def _draw_triangle(axes: Axes, triangle: Surface | None, name: str, norm: Normalize) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if triangle is None or triangle.positions is None:
        style: dict[str, Any] = {"transform": axes.transAxes, "color": GREY, "fontsize": 8}
        axes.text(0.5, 0.5, "no common\nstart", ha="center", va="center", **style)
        return
    x, y = np.moveaxis(triangle.positions, -1, 0)
    z = np.ma.masked_invalid(triangle.values[name])
    if z.count():
        axes.contourf(x, y, z, levels=contour_levels(norm), norm=norm, cmap=MAP)
    axes.plot(x[0, :1], y[0, :1], "o", color="white", markeredgecolor="black", markersize=4)
    axes.plot(x[-1, [0, -1]], y[-1, [0, -1]], "^", color="white", markeredgecolor="black", ms=4)
    axes.set_aspect("equal", adjustable="datalim")


def _draw_outputs(axes: Axes, line: Curve, top: float) -> None:
    for names, dashes, what in ((FUNCTIONAL, "-", "distance"), (DISAGREEMENT, "--", "labels")):
        for quantity, color, end in zip(names, (BLUE, ORANGE), ("row's", "column's")):
            style: dict[str, Any] = {"color": color, "linestyle": dashes, "linewidth": 1.1}
            axes.plot(line.t, line.values[quantity], label=f"{what}, {end}", **style)
    axes.set_ylim(0, top)
    axes.tick_params(labelsize=6)
    tidy(axes)


def _largest(lines: Iterable[Curve]) -> float:
    """The upper end of an axis for all distances and disagreements."""
    values = np.concatenate(
        [line.values[n] for line in lines for n in (*FUNCTIONAL, *DISAGREEMENT)]
    )
    values = values[np.isfinite(values)]
    return 1.05 * float(values.max(initial=0.0)) or 1.0


def _reversed(line: Curve, name: str) -> tuple[Array, Array]:
    """Distances from the line's last point, and the values there."""
    return line.distance[-1] - line.distance, line.values[name]


def _draw_lines(axes: Axes, lines: Mapping[str, tuple[Array, Array]], label: str) -> None:
    for i, (name, (x, values)) in enumerate(lines.items()):
        dashes = ("-", "--", ":", "-.")[i // len(COLORS) % 4]
        shown = np.where(np.isfinite(values), values, np.nan)
        axes.plot(x, shown, dashes, color=COLORS[i % len(COLORS)], linewidth=1.2, label=name)
    axes.set_xlabel(label)
    tidy(axes)
    if lines:
        axes.legend(frameon=False, fontsize=7)


VIEWS: dict[str, Callable[..., Figure]] = {"table": table_figure, "lines": lines_figure}
