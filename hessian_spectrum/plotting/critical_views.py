"""Critical points: index against loss, and the spectra at each level of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Array, CriticalPoints
from hessian_spectrum.plotting.style import COLORS, EIGENVALUE, GREY, symlog, tidy
from hessian_spectrum.plotting.value_scale import is_wide

# Kinds differ by marker as well as colour; what is not critical is a cross.
MARKERS: dict[str, tuple[str, str]] = {
    "minimum": ("v", COLORS[0]),
    "saddle": ("o", COLORS[1]),
    "maximum": ("^", COLORS[2]),
    "undecided": ("s", COLORS[3]),
    "not critical": ("x", GREY),
}
LEVELS = 4  # of the loss, with as many points each
BINS = 60
LEAST_LOSS = 1e-5  # of the largest loss: below, the axis is linear
ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}  # of a legend
LINEAR = 1e-4  # of |lambda|max: eigenvalues up to there are on a linear scale


def critical_figure(
    found: CriticalPoints, title: str | None = None, view: str | None = None
) -> Figure:
    """Index against loss and spectra by level of the loss, side by side; or one of these.

    Args:
        view: index or spectra; default: both where whole spectra are stored, else index.

    Raises:
        InputError: the view of spectra where none is whole, or no point has an index.
    """
    has_spectra = found.eigenvalues is not None and np.isfinite(found.eigenvalues).any()
    if view == "spectra" and not has_spectra:
        raise InputError(
            "--view spectra: no whole spectrum is stored, as of networks of up to 300 parameters; "
            "choose --view index"
        )
    names = [view] if view else [name for name in VIEWS if name != "spectra" or has_spectra]
    figure = Figure(figsize=(6.0 * len(names), 4.6), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names):
        VIEWS[name](axes, found)
        tidy(axes)
        axes.legend(frameon=False, fontsize=8, **ABOVE)
    counted = f"{int(found.is_critical.sum())} critical points of {len(found)}{_told(found)}"
    figure.suptitle(f"{title}: {counted}" if title else counted, x=0.02, ha="left", fontsize=11)
    return figure


def _told(found: CriticalPoints) -> str:
    """The rank correlation; nothing of too few points, or of points that are all alike."""
    try:
        told = found.rank_correlation()
    except InputError:
        return ""
    low, high = told.fisher
    return f"; rank correlation of index and loss {told.value:.2f} ({low:.2f} to {high:.2f})"


def _share(found: CriticalPoints) -> Array:
    """(point,), index fractions; of points that have none all eigenvalues below 0 of a spectrum."""
    fraction = found.index_fraction
    if found.eigenvalues is None:
        return fraction
    whole = np.isfinite(found.eigenvalues).all(axis=1)
    counted = np.where(whole, (found.eigenvalues < 0).mean(axis=1), np.nan)
    return np.where(np.isnan(fraction), counted, fraction)


def _index(axes: Axes, found: CriticalPoints) -> None:
    fraction, kinds = _share(found), np.array(found.kinds)
    shown = np.isfinite(fraction) & np.isfinite(found.loss)
    if not shown.any():
        raise InputError("no point has certified eigenvalues, so there is no index to draw")
    more = (found.values["negative_most"] - found.values["negative"]) / found.n
    spans = shown & (more > 0)
    x, y = fraction[spans], found.loss[spans]
    axes.hlines(y, x, x + more[spans], color=GREY, linewidth=0.6, alpha=0.4, zorder=1)
    ended = ~found.is_unfinished
    for kind, (marker, color) in MARKERS.items():
        for of_it, face in ((ended, color), (~ended, "none")):
            of_it = of_it & shown & (kinds == kind)
            if of_it.any():
                said = "" if face == color else ", search not converged"
                axes.plot(
                    fraction[of_it],
                    found.loss[of_it],
                    marker,
                    color=color,
                    markerfacecolor=face,
                    markersize=5,
                    linestyle="none",
                    label=f"{kind}{said} ({of_it.sum()})",
                )
    if is_wide([found.loss[shown]]):
        # Losses that are 0 to rounding would take most of a logarithmic axis.
        axes.set_yscale("symlog", linthresh=LEAST_LOSS * found.loss[shown].max())
    axes.set_xlabel("index: share of negative eigenvalues (grey: up to all that may be)")
    axes.set_ylabel("loss")


def _spectra(axes: Axes, found: CriticalPoints) -> None:
    """Histograms of all eigenvalues of the points of each quantile of the loss."""
    assert found.eigenvalues is not None
    whole = np.isfinite(found.eigenvalues).all(axis=1) & found.is_critical
    whole &= np.isfinite(found.loss)
    if not whole.any():
        raise InputError("no critical point has a whole spectrum; choose --view index")
    scale = float(np.abs(found.eigenvalues[whole]).max()) or 1.0
    edges = _edges(scale)
    for i, (color, of_it) in enumerate(zip(COLORS, _levels(found.loss, whole))):
        values = found.eigenvalues[of_it].ravel()
        share = np.histogram(values, edges)[0] / values.size
        losses = found.loss[of_it]
        label = f"loss {losses.min():.3g} to {losses.max():.3g} ({of_it.sum()} points)"
        style = ("-", "--", "-.", ":")[i % 4]
        axes.stairs(share, edges, color=color, linestyle=style, linewidth=1.4, label=label)
    symlog(axes, LINEAR * scale, edges[0], edges[-1])
    axes.set_yscale("log")
    axes.set_xlabel(EIGENVALUE)
    axes.set_ylabel("share of the eigenvalues, in each bin")


def _levels(loss: Array, of_them: Array) -> list[Array]:
    """Masks of the points of each quantile of the loss, lowest first; none is empty."""
    cuts = np.quantile(loss[of_them], np.linspace(0, 1, LEVELS + 1)[1:-1])
    level = np.searchsorted(cuts, loss, side="left")
    masks = (of_them & (level == i) for i in range(LEVELS))
    return [mask for mask in masks if mask.any()]


def _edges(scale: float) -> Array:
    """Bins of equal width on a symlog axis from -scale to scale; one around 0."""
    outer = np.geomspace(LINEAR * scale, 1.0001 * scale, BINS // 2)
    return np.concatenate([-outer[::-1], outer])


VIEWS: dict[str, Callable[[Axes, CriticalPoints], None]] = {"index": _index, "spectra": _spectra}
