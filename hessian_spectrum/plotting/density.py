"""Figures of spectral densities and eigenpairs. Without pyplot, so no display is needed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from hessian_spectrum._core.atomic import replacing
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.plotting.alignment import alignment_figure
from hessian_spectrum.plotting.certified import certified_eigenvalues, certified_figure
from hessian_spectrum.plotting.density_views import cumulative_figure, log_figure
from hessian_spectrum.plotting.noise import noise_figure
from hessian_spectrum.plotting.participation import participation_figure
from hessian_spectrum.plotting.style import (
    BLUE,
    EIGENVALUE,
    GREY,
    ORANGE,
    describe,
    number,
    tidy,
)
from hessian_spectrum.spectral.drawn import DrawnDensity, drawn_density
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.measure import SpectralMeasure


def density_figure(
    measure: SpectralMeasure, sigma2: float | None = None, title: str | None = None
) -> Figure:
    """The smoothed density on a log axis, and below it the share of eigenvalues up to t.

    With two or more probes the band is the 95 % interval at each t. Ticks under the
    density mark the certified nodes, each of which is one eigenvalue.

    Args:
        measure: what to draw.
        sigma2: variance of the smoothing; default ``measure.default_sigma2``.
        title: default: n and the number of probes.
    """
    sigma2 = measure.default_sigma2 if sigma2 is None else sigma2
    if not sigma2 > 0:
        raise InputError(f"density_figure(sigma2={sigma2}): the variance must be positive")
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(2.6, 1))
    drawn = measure.drawn if sigma2 == measure.default_sigma2 else drawn_density(measure, sigma2)
    _draw_density(top, measure, drawn)
    _draw_rug(top, measure)
    _draw_cumulative(bottom, measure, drawn.t)
    top.set_title(title or describe(measure), loc="left", fontsize=11, pad=20)
    bottom.set_xlabel(EIGENVALUE)
    bottom.set_xlim(drawn.t[0], drawn.t[-1])
    _draw_extremes(top, measure)
    top.legend(frameon=False, fontsize=9, loc="best")
    return figure


def eigenpairs_figure(pairs: EigenPairs, title: str | None = None) -> Figure:
    """Eigenvalues with their residuals as bars, and below them the residuals on a log axis.

    Filled circles have converged, open diamonds have not. Within each bar lies an eigenvalue.
    """
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(2, 1))
    rank = np.arange(1, len(pairs) + 1)
    residuals = _positive(pairs.residuals)
    for mask, style in ((pairs.converged, _CONVERGED), (~pairs.converged, _NOT_CONVERGED)):
        if mask.any():
            bars = pairs.residuals[mask]
            top.errorbar(rank[mask], pairs.values[mask], bars, capsize=3, **style)
            bottom.plot(rank[mask], residuals[mask], **style)
    tidy(top)
    tidy(bottom)
    top.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    top.set_ylabel(EIGENVALUE.replace(" of the mean", "\nof the mean"))
    bottom.set_yscale("log")
    bottom.set_ylabel("residual\n(same units)")
    bottom.set_xlabel("eigenpair, in ascending order")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    done = int(np.count_nonzero(pairs.converged))
    top.set_title(title or f"{len(pairs)} eigenpairs, {done} converged", loc="left", fontsize=11)
    top.legend(frameon=False, fontsize=9, loc="best")
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure atomically, in the format of its extension.

    Raises:
        InputError: matplotlib knows no such extension, or the folder does not exist.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise InputError(
            f"{path}: cannot write {path.suffix or 'a picture without an extension'}; expected "
            f"one of {', '.join(f'.{name}' for name in sorted(known))}"
        )
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=160)


def _draw_density(axes: Axes, measure: SpectralMeasure, drawn: DrawnDensity) -> None:
    t, peak = drawn.t, drawn.values.max()
    floor = _floor(measure, peak, drawn.sigma2)
    if measure.num_probes >= 2:
        low, high = np.maximum([drawn.lower, drawn.upper], floor)
        label = f"95 % interval ({measure.num_probes} probes)"
        axes.fill_between(t, low, high, color=BLUE, alpha=0.25, linewidth=0, label=label)
    label = rf"density, smoothed with $\sigma = {number(math.sqrt(drawn.sigma2))}$"
    axes.plot(t, np.maximum(drawn.values, floor / 10), color=BLUE, linewidth=1.3, label=label)
    axes.set_yscale("log")
    axes.set_ylim(floor, 20 * peak)  # headroom for the legend
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("density per unit eigenvalue")
    tidy(axes)


def _floor(measure: SpectralMeasure, peak: float, sigma2: float) -> float:
    """Lower end of the axis: a tenth of the height of a single eigenvalue.

    At least three decades below the peak and at most twelve.
    """
    single = 1 / (measure.n * math.sqrt(2 * math.pi * sigma2))
    return min(max(single / 10, 1e-12 * peak), 1e-3 * peak)


def _draw_rug(axes: Axes, measure: SpectralMeasure) -> None:
    known = certified_eigenvalues(measure)
    if known.places.size:
        axes.plot(
            known.places,
            np.full(known.places.size, 0.025),
            "|",
            transform=axes.get_xaxis_transform(),
            color=ORANGE,
            markersize=11,
            markeredgewidth=1.2,
            label=f"certified eigenvalues ({known.counts.sum():.4g})",
        )


def _draw_extremes(axes: Axes, measure: SpectralMeasure) -> None:
    low, high = measure.support
    left, right = axes.get_xlim()
    # Labels extend inwards on a wide axis, outwards where they would overlap.
    sides = ("left", "right") if high - low > 0.5 * (right - left) else ("right", "left")
    for node, name, side in zip((low, high), ("min", "max"), sides):
        axes.axvline(node, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        axes.annotate(
            rf"$\lambda_\mathrm{{{name}}} = {number(node)}$",
            xy=(node, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4 if side == "left" else -4, 3),
            textcoords="offset points",
            ha=side,
            fontsize=9,
            color=GREY,
        )


def _draw_cumulative(axes: Axes, measure: SpectralMeasure, t: np.ndarray) -> None:
    share = np.cumsum(measure.weights.mean(axis=0))
    x = np.concatenate([t[:1], measure.nodes, t[-1:]])
    axes.step(x, np.concatenate([[0], share, share[-1:]]), where="post", color=BLUE, linewidth=1.3)
    axes.set_ylim(-0.04, 1.04)
    axes.set_ylabel("share of\neigenvalues ≤ t")
    tidy(axes)


def _positive(residuals: np.ndarray) -> np.ndarray:
    """Residuals for a log axis: zeros are replaced by the smallest positive one."""
    some = residuals[residuals > 0]
    return np.maximum(residuals, some.min() if some.size else np.finfo(float).eps)


_CONVERGED = {
    "marker": "o",
    "color": BLUE,
    "linestyle": "none",
    "markersize": 5,
    "label": "converged",
}
_NOT_CONVERGED = {
    "marker": "D",
    "color": ORANGE,
    "markerfacecolor": "white",
    "linestyle": "none",
    "markersize": 6,
    "label": "not converged",
}

View = Callable[..., Figure]
VIEWS: dict[str, View] = {
    "density": density_figure,
    "log": log_figure,
    "cumulative": cumulative_figure,
    "certified": certified_figure,
}

# The views of each kind of result; the first is the default.
VIEWS_OF: dict[str, dict[str, View]] = {
    "noise": {"noise": noise_figure},  # before the spectra that its file holds, too
    "density": VIEWS,
    "eigenpairs": {"eigenvalues": eigenpairs_figure, "participation": participation_figure},
    "alignment": {"alignment": alignment_figure},
}
