"""Several densities or eigenpairs in one picture: over the epochs, or beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.plotting.alignment import alignments_figure
from hessian_spectrum.plotting.outlier_ratio import zeta_figure
from hessian_spectrum.plotting.style import AXES, BLUE, COLORS, EIGENVALUE, GREY, number, tidy
from hessian_spectrum.spectral.drawn import drawing_grid, drawn_density
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import Array

POINTS = 2000  # of the axis of eigenvalues, about
BINS, FEW = 120, 1e-2  # of the picture of blocks; fewer eigenvalues in a bin are white
MOST_ROWS = 60  # of blocks that have their names beside them
OVERLAP = 2.2  # rows that the highest ridge is high

Densities = Mapping[str, SpectralMeasure]


def heat_figure(
    measures: Densities,
    places: Sequence[float] | None = None,
    axis: str = "index",
    sigma2: float | None = None,
    title: str | None = None,
) -> Figure:
    """Densities as colours on a log scale: eigenvalues to the right, epochs upwards.

    Each row is coloured half-way to its neighbours. Lines join the smallest and the largest
    eigenvalues. White is less than a tenth of the height of a single eigenvalue.

    Args:
        measures: by label, in order.
        places: ascending, such as their epochs; default: 0, 1, ...
        axis: what the places are.
        sigma2: variance of the smoothing, the same for all; default: that of the widest spectrum.

    Raises:
        InputError: no densities, places that do not ascend, a variance that is not positive.
    """
    y = _places(measures, places)
    sigma2 = _common_variance(measures, sigma2)
    t, values = _on_one_grid(measures, sigma2)
    floor, peak = _range(measures, values, sigma2)
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    shown = np.ma.masked_less(values, floor)
    edges = _edges(t), _edges(y)
    norm = LogNorm(floor, peak)
    mesh = axes.pcolormesh(*edges, shown, norm=norm, cmap="viridis_r", rasterized=True)
    figure.colorbar(mesh, ax=axes, label="density per unit eigenvalue")
    ends = np.array([measure.support for measure in measures.values()])
    for column in ends.T:
        axes.plot(column, y, "o-", color=GREY, markersize=2, linewidth=0.7)
    axes.set_xlim(t[0], t[-1])
    axes.set_ylim(edges[1][0], edges[1][-1])
    _label(axes, measures, axis, sigma2, title)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def ridge_figure(
    measures: Densities,
    places: Sequence[float] | None = None,
    axis: str = "index",
    sigma2: float | None = None,
    title: str | None = None,
) -> Figure:
    """Densities one above the other, each on a log scale of its own row; arguments as above.

    All rows have the same scale, from a tenth of the height of a single eigenvalue.
    """
    y = _places(measures, places)
    sigma2 = _common_variance(measures, sigma2)
    t, values = _on_one_grid(measures, sigma2)
    floor, peak = _range(measures, values, sigma2)
    heights = np.log10(np.maximum(values, floor) / floor) / math.log10(peak / floor) * OVERLAP
    count = len(heights)
    figure = Figure(figsize=(8, min(12.0, 2.5 + 0.3 * count)), layout="constrained")
    axes = figure.subplots()
    for row, height in enumerate(heights):
        order = 2 * (count - row)  # lower rows stand before higher ones
        axes.fill_between(t, row, row + height, color="white", zorder=order, linewidth=0)
        axes.fill_between(t, row, row + height, color=BLUE, alpha=0.3, zorder=order, linewidth=0)
        axes.plot(t, row + height, color=BLUE, linewidth=0.8, zorder=order + 1)
    every = max(1, math.ceil(count / 20))
    axes.set_yticks(range(0, count, every), [f"{place:g}" for place in y[::every]])
    axes.set_xlim(t[0], t[-1])
    axes.set_ylim(-0.3, count - 1 + OVERLAP + 0.2)
    _label(axes, measures, axis, sigma2, title)
    decades = math.log10(peak / floor)
    axes.annotate(
        f"height: log density, {decades / OVERLAP:.2g} decades a row",
        xy=(1, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=GREY,
    )
    return figure


def blocks_figure(
    measures: Densities,
    places: Sequence[float] | None = None,
    axis: str = "index",
    title: str | None = None,
) -> Figure:
    """A row for each block: how many eigenvalues it has of each size and sign.

    Colours are numbers of eigenvalues in a bin, on a log scale; bins are even in asinh of the
    eigenvalue over a thousandth of the largest one in size. Dots are the smallest and the largest.

    Args:
        measures: by the block's name, in order.
        places, axis: as for ``heat_figure``, not used: rows have names.

    Raises:
        InputError: no densities.
    """
    _places(measures, places)
    nodes = np.concatenate([measure.nodes for measure in measures.values()])
    unit = (np.abs(nodes).max() or 1.0) / 1e3
    low, high = np.arcsinh(nodes.min() / unit), np.arcsinh(nodes.max() / unit)
    margin = 0.03 * (high - low) or 1.0
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    counts = np.array(
        [
            np.histogram(np.arcsinh(m.nodes / unit), edges, weights=m.n * m.weights.mean(axis=0))[0]
            for m in measures.values()
        ]
    )
    rows = np.arange(len(measures))
    figure = Figure(figsize=(8, 1.6 + 0.17 * min(len(rows), MOST_ROWS)), layout="constrained")
    axes = figure.subplots()
    shown = np.ma.masked_less(counts, FEW)
    mesh = axes.pcolormesh(
        *(edges, np.arange(len(rows) + 1) - 0.5, shown),
        norm=LogNorm(FEW, max(counts.max(), 10 * FEW)),
        cmap="viridis_r",
        rasterized=True,
    )
    figure.colorbar(mesh, ax=axes, label="eigenvalues in a bin")
    for end in (0, -1):
        ends = [np.arcsinh(measure.nodes[end] / unit) for measure in measures.values()]
        axes.plot(ends, rows, "o", color=GREY, markersize=3)
    decades = 10.0 ** (math.floor(math.log10(unit * 1e3)) - np.arange(2, -1, -1))
    ticks = [*-decades[::-1], 0.0, *decades]
    axes.set_xticks([np.arcsinh(t / unit) for t in ticks], [number(t) for t in ticks], fontsize=8)
    axes.set_xlim(edges[0], edges[-1])
    every = math.ceil(len(rows) / MOST_ROWS)
    axes.set_yticks(rows[::every], list(measures)[::every], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(EIGENVALUE)
    axes.set_title(title or f"Spectra of {len(measures)} blocks", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def curves_figure(
    measures: Densities, sigma2: float | None = None, title: str | None = None
) -> Figure:
    """Densities as curves on one log axis, each with its 95 % interval.

    Args:
        measures: by the names in the legend.
        sigma2: variance of the smoothing, the same for all; default: that of the widest spectrum.
    """
    _places(measures, None)
    sigma2 = _common_variance(measures, sigma2)
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    drawn = [drawn_density(measure, sigma2) for measure in measures.values()]
    floor, peak = _range(measures, np.array([density.values.max() for density in drawn]), sigma2)
    for (name, measure), density, color in zip(measures.items(), drawn, COLORS * len(drawn)):
        if measure.num_probes >= 2:
            low, high = np.maximum([density.lower, density.upper], floor)
            axes.fill_between(density.t, low, high, color=color, alpha=0.2, linewidth=0)
        values = np.maximum(density.values, floor / 10)
        axes.plot(density.t, values, color=color, linewidth=1.3, label=name)
    axes.set_yscale("log")
    axes.set_ylim(floor, 20 * peak)
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(d.t[0] for d in drawn), max(d.t[-1] for d in drawn))
    axes.set_xlabel(f"{EIGENVALUE}; smoothed with $\\sigma = {number(math.sqrt(sigma2))}$")
    axes.set_ylabel("density per unit eigenvalue")
    tidy(axes)
    axes.set_title(title or "Spectra, with 95 % intervals", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def eigenvalues_figure(
    pairs: Mapping[str, EigenPairs],
    places: Sequence[float] | None = None,
    axis: str = "index",
    title: str | None = None,
) -> Figure:
    """Eigenvalues over the epochs, with their residuals as bars.

    A line joins those of one rank: the K-th largest in blue, the K-th smallest in orange.

    Args:
        pairs: by label, in order.
        places, axis: as for ``heat_figure``.
    """
    x = _places(pairs, places)
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for upper, color, name in ((True, BLUE, "largest"), (False, COLORS[1], "smallest")):
        values, residuals = _by_rank(list(pairs.values()), upper)
        for rank, (row, bars) in enumerate(zip(values, residuals)):
            label = name if rank == 0 else None
            style: dict[str, Any] = {
                "color": color,
                "markersize": 3,
                "linewidth": 1.0,
                "capsize": 2,
            }
            axes.errorbar(x, row, bars, marker="o", label=label, **style)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    tidy(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(AXES.get(axis, axis))
    axes.set_ylabel(EIGENVALUE)
    axes.set_title(title or f"Eigenvalues of {len(pairs)} results", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def _by_rank(pairs: list[EigenPairs], upper: bool) -> tuple[Array, Array]:
    """(rank, result): eigenvalues of one end from outside inwards, and residuals; NaN: none."""
    ends = []
    for found in pairs:
        split = found.num_lower or 0
        rows = np.stack([found.values, found.residuals])
        ends.append(rows[:, split:][:, ::-1] if upper else rows[:, :split])
    table = np.full((2, max(end.shape[1] for end in ends), len(ends)), np.nan)
    for i, end in enumerate(ends):
        table[:, : end.shape[1], i] = end
    return table[0], table[1]


def _places(results: Mapping[str, object], places: Sequence[float] | None) -> Array:
    if not results:
        raise InputError("nothing to draw; expected one result or more")
    found = np.arange(len(results)) if places is None else np.asarray(places)
    if len(found) != len(results) or not (np.diff(found) > 0).all():
        raise InputError(
            f"places {found.tolist()} of {len(results)} results; expected one each, ascending"
        )
    return found.astype(float)


def _common_variance(measures: Densities, sigma2: float | None) -> float:
    if sigma2 is None:
        return max(measure.default_sigma2 for measure in measures.values())
    if not sigma2 > 0:
        raise InputError(f"sigma2={sigma2}: the variance must be positive")
    return sigma2


def _on_one_grid(measures: Densities, sigma2: float) -> tuple[Array, Array]:
    """(t,) over all spectra and (result, t), their densities."""
    grids = [drawing_grid(measure, math.sqrt(sigma2)) for measure in measures.values()]
    t = np.linspace(min(g[0] for g in grids), max(g[-1] for g in grids), POINTS)
    fine = np.concatenate(grids)
    if t[1] - t[0] > math.sqrt(sigma2) / 2:  # peaks would be stepped over
        t = np.union1d(t, fine)
    return t, np.stack([measure.density(t, sigma2) for measure in measures.values()])


def _range(measures: Densities, values: Array, sigma2: float) -> tuple[float, float]:
    """Of the log scale: from a tenth of the height of a single eigenvalue to the peak.

    At least three decades below the peak and at most twelve.
    """
    peak = float(values.max())
    largest = max(measure.n for measure in measures.values())
    single = 1 / (largest * math.sqrt(2 * math.pi * sigma2))
    return min(max(single / 10, 1e-12 * peak), 1e-3 * peak), peak


def _edges(centres: Array) -> Array:
    """The ends of cells around these points, half-way to their neighbours; one more."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    first, last = 2 * centres[0] - middle[0], 2 * centres[-1] - middle[-1]
    return np.concatenate([[first], middle, [last]])


def _label(axes: Axes, measures: Densities, axis: str, sigma2: float, title: str | None) -> None:
    axes.set_xlabel(f"{EIGENVALUE}; smoothed with $\\sigma = {number(math.sqrt(sigma2))}$")
    axes.set_ylabel(AXES.get(axis, axis))
    axes.set_title(title or f"Spectra of {len(measures)} results", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


VIEWS_OF: dict[str, dict[str, Callable[..., Figure]]] = {
    "density": {
        "heat": heat_figure,
        "ridge": ridge_figure,
        "density": heat_figure,
        "blocks": blocks_figure,
    },
    "eigenpairs": {"eigenvalues": eigenvalues_figure, "zeta": zeta_figure},
    "alignment": {"alignment": alignments_figure},
}
