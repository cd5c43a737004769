"""How far the largest eigenvalue stands out of the ten largest, along a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.plotting.style import AXES, BLUE, tidy
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.outliers import TENTH, outlier_ratios

LABEL = r"$\zeta = \lambda_1\,/\,\lambda_{10}$"


def zeta_figure(
    pairs: Mapping[str, EigenPairs],
    places: Sequence[float] | None = None,
    axis: str = "index",
    title: str | None = None,
) -> Figure:
    """zeta = lambda_1 / lambda_10 of each result, with its bounds by the residuals.

    Ghorbani, Krishnan & Xiao 2019, section 4.2.

    Args:
        pairs: by label, in order.
        places: such as their epochs; default: 0, 1, ...
        axis: what the places are.

    Raises:
        InputError: no result has ten eigenvalues at the upper end, or none a positive tenth.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    x = np.arange(len(pairs)) if places is None else np.asarray(places, float)
    draw_zeta(axes, x, list(pairs.values()))
    axes.set_xlabel(AXES.get(axis, axis))
    axes.set_title(title or f"Outlier ratio of {len(pairs)} results", loc="left", fontsize=11)
    tidy(axes)
    return figure


def draw_zeta(axes: Axes, x: np.ndarray, pairs: Sequence[EigenPairs]) -> None:
    """The ratios at places x, (results,); InputError where there is none."""
    value, low, high = np.array([*outlier_ratios(pairs, TENTH)], float).reshape(-1, 3).T
    if not np.isfinite(value).any():
        raise InputError(
            "zeta = lambda_1 / lambda_10 of no result is known: each takes ten eigenvalues at the "
            "upper end, of which the tenth is above 0; compute them, with --largest 10"
        )
    axes.fill_between(x, low, high, color=BLUE, alpha=0.25, linewidth=0, label="by the residuals")
    axes.plot(x, value, "o-", color=BLUE, markersize=3, linewidth=1.2)
    axes.set_ylabel(LABEL)
    axes.legend(frameon=False, fontsize=9, loc="best")
