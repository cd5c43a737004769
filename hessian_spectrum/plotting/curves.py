"""Figures of curves through parameter space and of trajectories. Without pyplot."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Array, Curve, Trajectory
from hessian_spectrum.plotting.style import BLUE, GREY, ORANGE, tidy
from hessian_spectrum.plotting.value_scale import axis_name, described, is_wide

COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito
DASHES = ("-", "--", ":", "-.")


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
