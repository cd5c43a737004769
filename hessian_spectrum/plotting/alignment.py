"""Figure of the alignment of minibatch gradients against the batch size. No pyplot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hessian_spectrum.analyses.alignment_result import Alignment
from hessian_spectrum.plotting.style import AXES, BLUE, COLORS, GREY, ORANGE, number, tidy


def alignment_figure(found: Alignment, title: str | None = None) -> Figure:
    """g^T H g / |g|^2 of each minibatch, with mean and standard deviation for each batch size.

    With lambda_1 the right axis shows its share. With eigenvectors a second panel shows the part
    of |g|^2 in their span, and along the top one.
    """
    panels = 2 if np.isfinite(found.captured).any() else 1
    figure = Figure(figsize=(8, 3 + 2.2 * panels), layout="constrained")
    axes = np.atleast_1d(figure.subplots(panels, sharex=True))
    label = f"mean ± standard deviation of {found.counts().max()} minibatches"
    _draw(axes[0], found.batch_sizes, found.alignment, BLUE, "o", label)
    axes[0].set_ylabel(r"$g^T H g\;/\;|g|^2$")
    axes[0].set_ylim(bottom=min(0.0, float(np.nanmin(found.alignment))))
    if found.top > 0:
        top = found.top
        right = axes[0].secondary_yaxis("right", functions=(lambda a: a / top, lambda a: a * top))
        right.set_ylabel(rf"share of $\lambda_1 = {number(top)}$")
    if panels == 2:
        k = found.eigenvalues.size
        label = f"in the span of {k} eigenvector{'s' if k > 1 else ''}"
        _draw(axes[1], found.batch_sizes, found.captured, BLUE, "o", label)
        if k > 1:
            along = found.cosine[:, :, -1] ** 2
            _draw(axes[1], found.batch_sizes, along, ORANGE, "D", "along the top one")
        axes[1].set_ylabel("part of $|g|^2$")
        axes[1].set_ylim(0, 1)
    for part in axes:
        tidy(part)
        part.legend(frameon=False, fontsize=9, loc="best")
    _size_axis(axes[-1], found)
    axes[0].set_title(title or "Curvature along gradients", loc="left", fontsize=11)
    return figure


def alignments_figure(
    found: Mapping[str, Alignment],
    places: Sequence[float] | None = None,
    axis: str = "index",
    title: str | None = None,
) -> Figure:
    """Mean g^T H g / |g|^2 over minibatches of each size, along a training run; and lambda_1.

    With eigenvectors a second panel shows the mean part of |g|^2 in their span. Bands are one
    standard deviation over minibatches to each side.

    Args:
        found: by label, in order.
        places: such as their epochs; default: 0, 1, ...
        axis: what the places are.
    """
    x = np.arange(len(found)) if places is None else np.asarray(places, float)
    results = list(found.values())
    quantities = {"alignment": r"$g^T H g\;/\;|g|^2$", "captured": "part of $|g|^2$"}
    if not any(np.isfinite(result.captured).any() for result in results):
        del quantities["captured"]
    figure = Figure(figsize=(8, 2 + 2.6 * len(quantities)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(quantities), sharex=True))
    sizes = sorted({int(size) for result in results for size in result.batch_sizes})
    for axes, (quantity, label) in zip(panels, quantities.items()):
        for size, color in zip(sizes, COLORS * len(sizes)):
            mean, spread = (_of_size(results, size, of, quantity) for of in ("mean", "std"))
            band = np.nan_to_num(spread)
            axes.fill_between(x, mean - band, mean + band, color=color, alpha=0.2, linewidth=0)
            name = "all samples" if size == results[0].num_samples else f"{size:,} samples"
            axes.plot(x, mean, "o-", color=color, markersize=3, linewidth=1.2, label=name)
        axes.set_ylabel(label)
        tidy(axes)
    tops = np.array([result.top for result in results])
    if np.isfinite(tops).any():
        panels[0].plot(x, tops, "--", color="black", linewidth=1, label=r"$\lambda_1$")
    if len(panels) > 1:
        panels[1].set_ylim(0, 1)
    panels[0].legend(frameon=False, fontsize=9, loc="best")
    panels[-1].set_xlabel(AXES.get(axis, axis))
    panels[0].set_title(title or "Curvature along gradients", loc="left", fontsize=11)
    return figure


def _of_size(results: Sequence[Alignment], size: int, of: str, quantity: str) -> np.ndarray:
    """(results,), the mean or the standard deviation; NaN where there is no such size."""
    found = np.full(len(results), np.nan)
    for i, result in enumerate(results):
        at = np.flatnonzero(result.batch_sizes == size)
        if len(at):
            found[i] = getattr(result, of)(quantity)[at[0]]
    return found


def _draw(
    axes: Axes, sizes: np.ndarray, values: np.ndarray, color: str, marker: str, label: str
) -> None:
    """Each minibatch as a faint dot; mean, with the standard deviation where there is one."""
    x = np.broadcast_to(sizes[:, None], values.shape)
    axes.plot(x.ravel(), values.ravel(), ".", color=color, alpha=0.25, markersize=5, zorder=1)
    known = np.isfinite(values).sum(axis=1)
    mean = np.array(
        [row[np.isfinite(row)].mean() if n else math.nan for row, n in zip(values, known)]
    )
    spread = [row[np.isfinite(row)].std(ddof=1) if n > 1 else 0.0 for row, n in zip(values, known)]
    style: dict[str, Any] = {
        "color": color,
        "marker": marker,
        "markersize": 5,
        "capsize": 4,
        "linewidth": 1.2,
    }
    axes.errorbar(sizes, mean, spread, label=label, zorder=2, **style)


def _size_axis(axes: Axes, found: Alignment) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("samples in a minibatch")
    axes.xaxis.set_major_locator(FixedLocator(found.batch_sizes.tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _size(size, found.num_samples)))
    first, last = float(found.batch_sizes[0]), float(found.batch_sizes[-1])
    axes.set_xlim(first / 1.5, last * 1.5)
    axes.tick_params(axis="x", color=GREY)


def _size(size: float, total: int) -> str:
    return f"{size:,.0f}\n(all)" if round(size) == total else f"{size:,.0f}"
