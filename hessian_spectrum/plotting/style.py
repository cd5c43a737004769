"""Colours, labels, error bands and symlog axes that the figures share."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import Array
from hessian_spectrum.spectral.uncertainty import standard_error

# Okabe and Ito (2008): distinct with every common colour blindness, and in grey.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5A5A5A"
COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LABELLED = 1e-6  # of |lambda|max: a symlog axis has room for six labelled decades a side
ERROR = "± standard error ({} probes)"
AXES = {"index": "index (epochs are not stored)"}  # of iterates, where a word says too little
EIGENVALUE = "eigenvalue (of the mean loss)"  # of whichever matrix the title names


def number(x: float) -> str:
    """Four digits, in TeX."""
    mantissa, _, exponent = f"{x:.4g}".partition("e")
    return mantissa + (rf" \times 10^{{{int(exponent)}}}" if exponent else "")


def describe(measure: SpectralMeasure) -> str:
    probes = f"{measure.num_probes} probe{'s' if measure.num_probes > 1 else ''}"
    return f"Spectrum: {measure.n:,} eigenvalues, {probes}"


def tidy(axes: Axes) -> None:
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def mean_and_error(per_probe: Array, scatter: float) -> tuple[Array, Array | None]:
    """(probe, ...) -> their mean and its standard error, each (...); no error of one probe.

    Args:
        scatter: that of the measure.
    """
    mean = per_probe.mean(axis=0)
    return mean, None if len(per_probe) < 2 else standard_error(per_probe, scatter)


def draw_band(axes: Axes, x: Array, mean: Array, error: Array | None, **style) -> None:
    """Mean plus and minus one standard error; nothing where that is not known."""
    if error is not None:
        axes.fill_between(x, mean - error, mean + error, alpha=0.25, linewidth=0, **style)


def counted(per_probe: Array, scatter: float) -> str:
    """(probe,) -> "1,118 ± 9" or "7": a number of eigenvalues and its standard error, if any."""
    mean = float(per_probe.mean(axis=0))
    error = float(standard_error(per_probe, scatter)) if len(per_probe) > 1 else 0.0
    if error < 0.005:  # less is a matter of rounding
        return f"{mean:,.0f}" if mean >= 100 or abs(mean - round(mean)) < 1e-3 else f"{mean:.3g}"
    digits = max(0, math.ceil(-math.log10(error / 2)))
    return f"{mean:,.{digits}f} ± {error:,.{digits}f}"


def symlog(axes: Axes, linear: float, left: float, right: float) -> None:
    """A logarithmic axis from left to right through 0, linear and grey where |t| <= linear.

    Ticks are 0 and at most six decades a side: labels of the linear part would overlap.
    """
    axes.set_xscale("symlog", linthresh=linear, linscale=0.6)
    last = math.log10(max(-left, right))
    decades = 10.0 ** np.arange(math.floor(math.log10(linear)), math.floor(last) + 1)
    labelled = decades[decades >= linear]
    labelled = labelled[:: max(1, math.ceil(len(labelled) / 6))]
    between = np.outer(np.arange(1, 10), decades).ravel()
    between = between[between >= linear]
    axes.xaxis.set_major_locator(FixedLocator([*-labelled, 0.0, *labelled]))
    axes.xaxis.set_minor_locator(FixedLocator([*-between, *between]))
    axes.set_xlim(left, right)
    axes.axvspan(-linear, linear, color=GREY, alpha=0.12, linewidth=0, zorder=0)


def symlog_label(name: str, linear: float) -> str:
    return f"{name}\n" rf"(grey: linear scale, up to $\pm {number(linear)}$; white: logarithmic)"
