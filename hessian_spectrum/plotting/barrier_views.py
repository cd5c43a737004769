"""The loss between consecutive iterates along the iterations, as Xing et al. (2018) draw it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hessian_spectrum.landscape.results import Array, Barriers
from hessian_spectrum.plotting.style import BLUE, GREY, ORANGE, tidy
from hessian_spectrum.plotting.value_scale import is_wide

MOST_WINDOWS = 4  # side by side; more are drawn in one panel, with gaps
MOST_LINES = 150  # iterates in a panel that are marked by lines
# Of a legend: a long run leaves no room among its values.
ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4}
AXES = {"index": "index of the iterate"}


def barriers_figure(found: Barriers, title: str | None = None, view: str | None = None) -> Figure:
    """Loss between iterates, heights, and cosines of consecutive updates; or one of these.

    Each window of consecutive iterates is a column.

    Args:
        view: loss, heights or cosine; default: all three, one below the other.
    """
    views = VIEWS if view is None else {view: VIEWS[view]}
    windows = _windows(found)
    figure = Figure(figsize=(9, 4.2 if view else 8.4), layout="constrained")
    ratios = (2, 1, 1) if view is None else None
    grid = figure.subplots(
        len(views),
        len(windows),
        sharex="col",
        squeeze=False,
        height_ratios=ratios,
    )
    for row, (name, draw) in zip(grid, views.items()):
        for axes, window in zip(row, windows):
            draw(axes, found, window)
            tidy(axes)
        row[0].set_ylabel(LABELS[name])
        # Its height is left free by a title; its width, which may be more than a column's, is not.
        row[0].set_title(" ", fontsize=9)
        row[0].legend(frameon=False, fontsize=8, **ABOVE).set_in_layout(False)
    axis = str(found.about.get("axis", "step"))
    for axes in grid[-1]:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8 // len(windows) + 1, integer=True))
        axes.set_xlabel(AXES.get(axis, axis))
    count = found.count()
    said = f"{count.barriers} barriers on {count.segments} segments"
    figure.suptitle(f"{title}: {said}" if title else said, x=0.02, ha="left", fontsize=11)
    return figure


def _windows(found: Barriers) -> list[Array]:
    """The indices of the segments of each window."""
    cuts = 1 + np.flatnonzero(found.start[1:] != found.stop[:-1])
    windows = np.split(np.arange(len(found)), cuts)
    return windows if len(windows) <= MOST_WINDOWS else [np.arange(len(found))]


def _loss(axes: Axes, found: Barriers, window: Array) -> None:
    few = len(window) < MOST_LINES
    start, stop = found.start[window], found.stop[window]
    if few:
        style: dict[str, Any] = {"color": GREY, "linewidth": 0.5, "alpha": 0.5}
        iterates, across = np.union1d(start, stop), axes.get_xaxis_transform()
        axes.vlines(iterates, 0, 1, transform=across, label="iterates", **style)
    x, y = _chained(found, window)
    axes.plot(x, y, color=BLUE, linewidth=1.2 if few else 0.5, label="loss of all data")
    at = start + found.floor_at[window] * (stop - start)
    size = 3.0 if few else 1.5
    axes.plot(at, found.floor[window], ".", color="black", markersize=2 * size, label="floor")
    over = window[found.is_barrier[window]]
    highest = found.loss[over, 1:-1].argmax(axis=1)
    peak = found.start[over] + found.t[1 + highest] * (found.stop[over] - found.start[over])
    top = found.loss[over, 1 + highest]
    named = "barriers" if found.is_barrier.any() else None
    axes.plot(peak, top, "v", color=ORANGE, markersize=2 * size, label=named)
    if is_wide([found.loss[window].ravel()]):
        axes.set_yscale("log")


def _heights(axes: Axes, found: Barriers, window: Array) -> None:
    middle = (found.start + found.stop) / 2
    heights, label = found.height_above_floor[window], "of the iterates, above the floor"
    axes.plot(middle[window], heights, ".-", color=BLUE, linewidth=0.8, label=label)
    over = window[found.is_barrier[window]]
    named = "of barriers, above the higher end" if found.is_barrier.any() else None
    axes.plot(middle[over], found.rise[over], "v", color=ORANGE, label=named)


def _cosine(axes: Axes, found: Barriers, window: Array) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8)
    cosine = found.cosine[window]
    label = "of an update and the one before"
    axes.plot(found.start[window], cosine, ".-", color=BLUE, linewidth=0.8, label=label)
    axes.set_ylim(-1.05, 1.05)


def _chained(found: Barriers, window: Array) -> tuple[Array, Array]:
    """The places and losses of all points, with a gap where a segment does not go on."""
    x = found.start[window, None] + found.t * (found.stop - found.start)[window, None]
    y = np.where(np.isfinite(found.loss[window]), found.loss[window], np.nan)
    gap = np.append(found.start[window][1:] != found.stop[window][:-1], True)
    broken = np.where(gap, np.nan, y[:, -1])
    return np.column_stack([x, x[:, -1]]).ravel(), np.column_stack([y, broken]).ravel()


VIEWS: dict[str, Callable[[Axes, Barriers, Array], None]] = {
    "loss": _loss,
    "heights": _heights,
    "cosine": _cosine,
}
LABELS = {"loss": "loss", "heights": "height (loss)", "cosine": "cosine of updates"}
