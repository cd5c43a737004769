"""Figure of certified eigenvalues and of the density of the unresolved rest. No pyplot."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.plotting.style import (
    BLUE,
    EIGENVALUE,
    ERROR,
    GREY,
    LABELLED,
    ORANGE,
    counted,
    describe,
    draw_band,
    mean_and_error,
    number,
    symlog,
    symlog_label,
    tidy,
)
from hessian_spectrum.spectral.atoms import smoothed
from hessian_spectrum.spectral.drawn import drawing_grid
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import Array

SAME = 1e-12  # of |lambda|max: float64 rounding may separate nodes of one eigenvalue by this
VISIBLE = 1 / 400  # of the axis: narrower intervals are hidden by their bar
LINEAR = 3  # standard deviations of the smoothing around 0 where the axis is linear
NEAR = 0.1  # of |lambda|max: without nodes this near 0 the axis is linear
NOTHING = 1e-9  # eigenvalues: an unresolved part below it is rounding


@dataclass(frozen=True)
class Certified:
    """Certified eigenvalues; nodes that may be the same eigenvalue are merged."""

    places: Array  # (k,), ascending, means of their nodes by weight
    counts: Array  # (k,), eigenvalues there; below 1 where one is accepted in part
    low: Array  # (k,)
    high: Array  # (k,), [low, high] is what the nodes' residuals cover


def certified_eigenvalues(measure: SpectralMeasure) -> Certified:
    """The certified nodes, merged where their residual intervals overlap.

    Groups of probes that are left out in turn find the same eigenvalue, each with weights for
    its own probes, so it is the mean weights of all these nodes that sum to 1/n.
    """
    counts = measure.n * measure.weights.mean(axis=0)
    mask = measure.certified & (counts > 0)
    reach = np.maximum(measure.residuals, SAME * np.abs(measure.nodes).max())
    low, high = (measure.nodes - reach)[mask], (measure.nodes + reach)[mask]
    order = np.argsort(low, kind="stable")
    nodes, counts, low, high = (x[order] for x in (measure.nodes[mask], counts[mask], low, high))
    # Intervals [low, high] that overlap, one after another, are one place.
    covered = np.maximum.accumulate(high)
    first = np.flatnonzero(np.append(True, low[1:] > covered[:-1])[: len(low)])
    if not first.size:
        return Certified(nodes, counts, low, high)
    total = np.add.reduceat(counts, first)
    places = np.add.reduceat(counts * nodes, first) / total
    return Certified(places, total, low[first], np.maximum.reduceat(high, first))


def certified_figure(
    measure: SpectralMeasure, sigma2: float | None = None, title: str | None = None
) -> Figure:
    """Certified eigenvalues as bars, and below them the density of the unresolved rest times n.

    A bar is one eigenvalue, or as many as it is high: several that are nearer to each other than
    their residuals, or a part where the rest of one is unresolved. Horizontal lines show what
    residuals cover. With two or more probes the band is one standard error on each side.

    Args:
        measure: what to draw.
        sigma2: variance of the smoothing; default ``measure.default_sigma2``.
        title: default: n and the number of probes.
    """
    sigma2 = measure.default_sigma2 if sigma2 is None else sigma2
    if not sigma2 > 0:
        raise InputError(f"certified_figure(sigma2={sigma2}): the variance must be positive")
    rest = measure.n * measure.weights[:, ~measure.certified]
    known, some_rest = certified_eigenvalues(measure), rest.sum(axis=1).mean() > NOTHING
    title = title or describe(measure)
    if not known.places.size:
        title += "; no eigenvalue is certified"
    figure, top, bottom = _panels(known.places.size > 0, some_rest)
    t = _axis(figure.axes, measure, math.sqrt(sigma2))
    if top is not None:
        _draw_bars(top, known, measure)
    if bottom is not None:
        _draw_rest(bottom, measure, rest, t, sigma2)
    figure.axes[0].set_title(title, loc="left", fontsize=11)
    return figure


def _panels(bars: bool, rest: bool) -> tuple[Figure, Axes | None, Axes | None]:
    """A panel for the bars and one for the density, whose units differ."""
    figure = Figure(figsize=(8, 5.6 if bars and rest else 4), layout="constrained")
    if bars and rest:
        return figure, *figure.subplots(2, sharex=True, height_ratios=(1, 1.4))
    axes = figure.subplots()
    return figure, axes if bars else None, axes if rest else None


def _axis(panels: list[Axes], measure: SpectralMeasure, sigma: float) -> Array:
    """Set the horizontal axis, and return the grid for the density on it.

    Symlog where the spectrum reaches 0, since the bulk is a few sigma wide and the outliers are
    decades away; linear for a spectrum away from 0.
    """
    t, size = drawing_grid(measure, sigma), np.abs(measure.nodes)
    if size.min() > NEAR * size.max():
        panels[-1].set_xlim(t[0], t[-1])
        panels[-1].set_xlabel(EIGENVALUE)
        return t
    linear = max(LINEAR * sigma, LABELLED * size.max())
    low, high = measure.support
    left, right = min(1.3 * low, t[0], -1.5 * linear), max(1.3 * high, t[-1], 1.5 * linear)
    for axes in panels:
        symlog(axes, linear, left, right)
    panels[-1].set_xlabel(symlog_label(EIGENVALUE, linear))
    return np.union1d(t, np.linspace(-1.5 * linear, 1.5 * linear, 400))


def _draw_bars(axes: Axes, known: Certified, measure: SpectralMeasure) -> None:
    places, counts = known.places, known.counts
    per_probe = measure.n * measure.weights[:, measure.certified].sum(axis=1)
    bars = f"{places.size} bar{'s' if places.size > 1 else ''}"
    label = f"certified: {counted(per_probe, measure.scatter)} eigenvalues in {bars}"
    axes.vlines(places, 0, counts, color=ORANGE, linewidth=1.3, label=label)
    axes.plot(places, counts, "o", color=ORANGE, markersize=3.5)
    drawn = axes.xaxis.get_transform().transform
    widths = drawn(known.high) - drawn(known.low)
    wide = widths > VISIBLE * np.ptp(drawn(np.array(axes.get_xlim())))
    if wide.any():
        spans = counts[wide], known.low[wide], known.high[wide]
        label = "where they lie, by their residuals"
        axes.hlines(*spans, color="black", linewidth=1.3, label=label)
    axes.set_ylim(0, 1.45 * counts.max())  # headroom for the legend
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axes.set_ylabel("eigenvalues" + "\n(below 1: in part)" * bool(counts.min() < 0.99))
    tidy(axes)
    axes.legend(frameon=False, fontsize=9, loc="upper right", ncols=2)


def _draw_rest(axes: Axes, measure: SpectralMeasure, rest: Array, t: Array, sigma2: float) -> None:
    mean, error = mean_and_error(
        smoothed(measure.nodes[~measure.certified], rest, t, sigma2), measure.scatter
    )
    single = 1 / math.sqrt(2 * math.pi * sigma2)
    peak = max(mean.max(), single)
    many = counted(rest.sum(axis=1), measure.scatter)
    label = rf"unresolved: {many} eigenvalues, smoothed with $\sigma = {number(math.sqrt(sigma2))}$"
    draw_band(axes, t, mean, error, color=BLUE, label=ERROR.format(measure.num_probes))
    axes.plot(t, mean, color=BLUE, linewidth=1.3, label=label)
    axes.set_yscale("log")
    axes.set_ylim(max(single / 10, 1e-12 * peak), 20 * peak)  # headroom for the legend
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("eigenvalues per\nunit eigenvalue")
    tidy(axes)
    label = "one eigenvalue, smoothed alike"
    axes.axhline(single, color=GREY, linewidth=0.8, linestyle=":", zorder=0, label=label)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
