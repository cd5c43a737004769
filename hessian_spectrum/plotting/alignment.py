"""Figure of the alignment of minibatch gradients against the batch size. No pyplot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hessian_spectrum.analyses.alignment_result import Alignment
from hessian_spectrum.plotting.style import BLUE, GREY, ORANGE, number, tidy


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
