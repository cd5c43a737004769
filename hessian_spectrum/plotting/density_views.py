"""Figures of spectra over many decades: per decade of |lambda|, and cumulative. No pyplot."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

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
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import Array

DECADES = 0.1  # standard deviation of the smoothing in log10 |lambda|
EPS = float(np.finfo(float).eps)


# -- by decades ------------------------------------------------------------------------------------


def log_figure(
    measure: SpectralMeasure,
    decades: float = DECADES,
    floor: float | None = None,
    title: str | None = None,
) -> Figure:
    """Eigenvalues per decade of |lambda|, positive and negative ones apart, on log axes.

    A curve integrates over log10 |lambda| to its number of eigenvalues. The caption counts those
    at or below the floor. With two or more probes bands are one standard error wide on each side.

    Args:
        measure: what to draw.
        decades: standard deviation of the Gaussian smoothing, in log10 |lambda|.
        floor: in units of the eigenvalues; default ``resolution(measure)``.
        title: default: n and the number of probes.
    """
    if not 0.01 <= decades <= 1:
        raise InputError(f"log_figure(decades={decades}): expected a width from 0.01 to 1 decades")
    if floor is not None and not 0 <= floor < math.inf:
        raise InputError(f"log_figure(floor={floor}): expected a finite number, 0 or more")
    known = resolution(measure)
    floor = known if floor is None else floor
    size = np.abs(measure.nodes)
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    shown, grey = size > floor, False
    if shown.any():
        x = _decades_grid(np.log10(size[shown]), decades)
        _draw_signs(axes, measure, shown, x, decades)
        grey = _shade_unknown(axes, known)
        axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)
    else:
        axes.text(0.5, 0.5, "nothing to draw", ha="center", color=GREY, transform=axes.transAxes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=10))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"|λ|, size of an {EIGENVALUE}")
    axes.set_ylabel("eigenvalues per decade of |λ|")
    tidy(axes)
    axes.set_title(title or describe(measure), loc="left", fontsize=11, pad=20)
    _say_below(axes, measure, ~shown, floor, grey)
    return figure


def resolution(measure: SpectralMeasure) -> float:
    """The largest |node| whose residual interval contains 0; at least float64 rounding.

    An eigenvalue lies within the residual of each node. Where that interval contains 0, neither
    its sign nor its decade is known. Residuals include the error of the products, such as that of
    float32.
    """
    size = np.abs(measure.nodes)
    unknown = (size <= measure.residuals) & (measure.weights.mean(axis=0) > 0)
    return float(max(EPS * size.max(), size[unknown].max(initial=0.0)))


def _decades_grid(places: Array, width: float) -> Array:
    """Five points a standard deviation, up to five of these beyond the nodes."""
    low, high = places.min() - 5 * width, places.max() + 5 * width
    return np.linspace(low, high, 1 + max(500, math.ceil(5 * (high - low) / width)))


def _draw_signs(
    axes: Axes, measure: SpectralMeasure, shown: NDArray[np.bool_], x: Array, decades: float
) -> None:
    peak = single = 1 / math.sqrt(2 * math.pi * decades**2)
    band: str | None = ERROR.format(measure.num_probes)  # said once
    signs = (("positive", 1, BLUE, "-"), ("negative", -1, ORANGE, "--"))
    for name, sign, color, dashes in signs:
        mask = shown & (np.sign(measure.nodes) == sign)
        weights = measure.n * measure.weights[:, mask]
        if not mask.any():
            continue
        places = np.log10(np.abs(measure.nodes[mask]))
        mean, error = mean_and_error(smoothed(places, weights, x, decades**2), measure.scatter)
        label = f"{name}: {counted(weights.sum(axis=1), measure.scatter)} eigenvalues"
        axes.plot(10**x, mean, dashes, color=color, linewidth=1.4, label=label)
        draw_band(axes, 10**x, mean, error, color=color, label=band)
        band = None
        peak = max(peak, mean.max())
    label = rf"one eigenvalue, smoothed with $\sigma = {number(decades)}$ decades"
    axes.axhline(single, color=GREY, linewidth=0.8, linestyle=":", zorder=0, label=label)
    axes.set_ylim(single / 10, 8 * peak)  # headroom for the legend
    axes.set_xlim(10 ** x[0], 10 ** x[-1])


def _shade_unknown(axes: Axes, known: float) -> bool:
    left, right = axes.get_xlim()
    if known > left:
        axes.axvspan(left, min(known, right), color=GREY, alpha=0.12, linewidth=0, zorder=0)
    return known > left


def _say_below(
    axes: Axes, measure: SpectralMeasure, below: NDArray[np.bool_], floor: float, grey: bool
) -> None:
    many = counted(measure.n * measure.weights[:, below].sum(axis=1), measure.scatter)
    why = "; in the grey, residuals leave sign and size open" if grey else ""
    axes.annotate(
        rf"{many} at or below $|\lambda| = {number(floor)}$" + why,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=9,
        color=GREY,
    )


# -- summed up -------------------------------------------------------------------------------------


def cumulative_figure(measure: SpectralMeasure, title: str | None = None) -> Figure:
    """Share and number of the eigenvalues up to t, a step at each node, t on a symlog axis.

    With two or more probes the band is one standard error on each side. The axis is linear
    near 0: as far as ``resolution(measure)`` and 1e-6 of the largest, and where no node is.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    low, high = measure.support
    size = np.abs(measure.nodes)
    linear = max(resolution(measure), LABELLED * size.max(), size.min()) or 1.0
    left, right = 1.5 * min(low, -linear), 1.5 * max(high, linear)
    symlog(axes, linear, left, right)
    _draw_steps(axes, measure, left, right)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlabel(symlog_label(f"t, {EIGENVALUE}", linear))
    axes.set_ylabel("share of the eigenvalues ≤ t")
    tidy(axes)
    numbers = axes.secondary_yaxis(
        "right",
        functions=(
            lambda share: np.asarray(share) * measure.n,
            lambda count: np.asarray(count) / measure.n,
        ),
    )
    numbers.set_ylabel("number of eigenvalues ≤ t")
    numbers.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    numbers.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_title(title or describe(measure), loc="left", fontsize=11)
    if measure.num_probes > 1:
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _draw_steps(axes: Axes, measure: SpectralMeasure, left: float, right: float) -> None:
    x = np.concatenate([[left], measure.nodes, [right]])
    sums = np.cumsum(measure.weights, axis=1)
    share, error = mean_and_error(
        np.column_stack([0 * sums[:, 0], sums, sums[:, -1]]), measure.scatter
    )
    if error is not None:
        label = ERROR.format(measure.num_probes)
        draw_band(axes, x, share, error, color=BLUE, step="post", label=label)
    axes.step(x, share, where="post", color=BLUE, linewidth=1.3)
