"""Figures of curves through parameter space and of trajectories. Without pyplot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Array, Curve, Trajectory
from hessian_spectrum.plotting.style import AXES, BLUE, COLORS, GREY, ORANGE, tidy
from hessian_spectrum.plotting.value_scale import axis_name, described, is_wide

DASHES = ("-", "--", ":", "-.")
TRAJECTORY_VIEWS = {"loss": "loss", "distance": "", "eigenvalues": "extreme eigenvalues"}  # labels
COLUMNS = 6  # of a trajectory's picture: one, two or three panels fill a row


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
        if wanted == name and (is_wide(drawn) if log is None else log):
            axes.set_yscale("log")
        tidy(axes)
    first = next(iter(curves.values()))
    panels[-1].set_xlabel("distance in parameter space" if by_distance else _coordinate(first))
    if len(panels[0].get_lines()) > 1:
        panels[0].legend(frameon=False, fontsize=9)
    panels[0].set_title(title or described(first), loc="left", fontsize=11)
    return figure


def trajectory_figure(
    found: Trajectory,
    title: str | None = None,
    name: str | None = None,
    view: str | None = None,
) -> Figure:
    """Values by epoch; below them distances, the way beside the line, and explained variance.

    Args:
        view: one panel alone: loss, distance or eigenvalues.
        name: the only value that is drawn; default: the loss, the accuracy and the extreme
            eigenvalues, each with its residual as a bar, as far as they were evaluated.

    Raises:
        InputError: there is no value of that name, or nothing that the view would show.
    """
    panels, axis = _value_panels(found, name), str(found.about.get("axis", "step"))
    axis = AXES.get(axis, axis)
    if view is not None:
        return _one_panel(found, title, panels, view, axis)
    figure = Figure(figsize=(11, 7 if panels else 3.6), layout="constrained")
    grid = figure.add_gridspec(1 + bool(panels), COLUMNS)
    wide = COLUMNS // max(1, len(panels))
    for i, (label, names) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[0, wide * i : wide * (i + 1)])
        _draw_values(axes, found, label, names)
        axes.set_xlabel(axis)
    below = [figure.add_subplot(grid[-1, first : first + 2]) for first in range(0, COLUMNS, 2)]
    _draw_distances(below[0], found, axis)
    _draw_path(below[1], found)
    _draw_variance(below[2], found)
    figure.axes[0].set_title(title or f"{len(found)} iterates", loc="left", fontsize=11)
    return figure


def _one_panel(
    found: Trajectory, title: str | None, panels: Mapping[str, list[str]], view: str, axis: str
) -> Figure:
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    if view == "distance":
        _draw_distances(axes, found, axis)
    else:
        label = TRAJECTORY_VIEWS[view]
        if label not in panels:
            raise InputError(
                f"--view {view} of a trajectory: it has {', '.join(found.values) or 'no values'}"
            )
        _draw_values(axes, found, label, panels[label])
        axes.set_xlabel(axis)
    axes.set_title(title or f"{len(found)} iterates", loc="left", fontsize=11)
    return figure


def _value_panels(found: Trajectory, name: str | None) -> dict[str, list[str]]:
    """What is drawn in each panel, by its label."""
    if name is not None:
        found.values[name]  # refused by name
        return {name.replace("_", " "): [name]}
    panels = {
        "loss": ["loss", "test_loss"],
        "accuracy": ["accuracy", "test_accuracy"],
        "extreme eigenvalues": ["largest", "smallest"],
    }
    held = {label: [n for n in names if n in found.values] for label, names in panels.items()}
    return {label: names for label, names in held.items() if names}


def _draw_values(axes: Axes, found: Trajectory, label: str, names: list[str]) -> None:
    drawn = []
    for name, color, dashes in zip(names, (BLUE, ORANGE), DASHES):
        values = np.where(np.isfinite(found.values[name]), found.values[name], np.nan)
        residual = f"{name}_residual"
        bars = found.values[residual] if residual in found.values else None
        style: dict[str, Any] = {
            "color": color,
            "linestyle": dashes,
            "linewidth": 1.4,
            "markersize": 3,
        }
        axes.errorbar(found.steps, values, bars, marker="o", label=name.replace("_", " "), **style)
        drawn.append(values)
    if label.endswith("loss") and is_wide(drawn):
        axes.set_yscale("log")
    axes.set_ylabel(label)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=9)
    tidy(axes)


def _draw_distances(axes: Axes, found: Trajectory, axis: str) -> None:
    axes.plot(found.steps, found.distance_from_start, color=BLUE, label="from the start")
    axes.plot(found.steps, found.distance_to_end, "--", color=ORANGE, label="to the end")
    axes.set_xlabel(axis)
    axes.set_ylabel("distance in parameter space")
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)


def _draw_path(axes: Axes, found: Trajectory) -> None:
    axes.plot(found.alpha, found.beta, "o-", color=BLUE, markersize=3)
    axes.set_xlabel("alpha: place on the line from start to end")
    axes.set_ylabel("beta: distance from the line")
    tidy(axes)


def _draw_variance(axes: Axes, found: Trajectory) -> None:
    shares = found.explained_variance[:10]
    axes.bar(np.arange(1, len(shares) + 1), shares, color=BLUE)
    walk = 6 / (np.pi * np.arange(1, len(shares) + 1)) ** 2
    axes.plot(np.arange(1, len(shares) + 1), walk, "o--", color=ORANGE, label="a random walk's")
    axes.set_xlabel("principal component")
    axes.set_ylabel("share of the variance")
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)


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
        return axis_name(curve, 0)
    words = {
        "linear": "alpha",
        "ray": "distance",
        "distance": "distance from theta1",
    }
    return words.get(str(curve.about.get("path")), "t")
