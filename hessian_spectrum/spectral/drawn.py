"""A density as it is drawn: smoothed on a grid, with its 95 % interval. NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import stored, stored_attribute
from hessian_spectrum.spectral.atoms import Atoms
from hessian_spectrum.spectral.functionals import OF_MEASURE, evaluate
from hessian_spectrum.spectral.quadrature import Array
from hessian_spectrum.spectral.uncertainty import of_query

LEVEL = 0.95
MARGIN = 0.02  # of the axis, on each side


@dataclass(frozen=True)
class DrawnDensity:
    """The curve and the band of a density plot.

    ``values`` integrates over ``t`` to 1. With one probe ``lower`` and ``upper`` are NaN.
    """

    # (g,), ascending
    t: Array = field(metadata=stored("eigenvalue, ascending", ("t",), "eigenvalue"))
    # (g,)
    values: Array = field(metadata=stored("smoothed density at t", ("t",), "1 / eigenvalue"))
    # (g,)
    lower: Array = field(
        metadata=stored("lower end of the 95 % interval at t", ("t",), "1 / eigenvalue")
    )
    # (g,)
    upper: Array = field(
        metadata=stored("upper end of the 95 % interval at t", ("t",), "1 / eigenvalue")
    )
    # variance of the Gaussian smoothing, in squared units of the eigenvalues
    sigma2: float = field(metadata=stored_attribute("variance of the Gaussian smoothing"))


def drawn_density(measure: Atoms, sigma2: float | None = None) -> DrawnDensity:
    """The smoothed density on a grid, and its interval at each point.

    Args:
        sigma2: variance of the smoothing; default ``measure.default_sigma2``, of which the grid
            has 2002 points. A narrower smoothing has up to 41 more for each node.

    Raises:
        InputError: sigma2 is not positive.

    Cost: O(probes * nodes * points) six times, and O(N^3) for each of up to five shorter
    recurrences of order N; no products. Intervals use these, ``measure`` keeps them.
    """
    sigma2 = measure.default_sigma2 if sigma2 is None else sigma2
    if not sigma2 > 0:
        raise InputError(f"drawn_density(sigma2={sigma2}): the variance must be positive")
    t, row = drawing_grid(measure, math.sqrt(sigma2)), OF_MEASURE["density"]
    values = evaluate(measure, row.name, t, sigma2)
    lower, upper = of_query(measure, row, t, sigma2, level=LEVEL)
    return DrawnDensity(t, values, lower, upper, float(sigma2))


def drawing_grid(measure: Atoms, sigma: float) -> Array:
    """The measure's even grid, with points around each node where that would step over peaks.

    One point beyond it on each side keeps the extreme eigenvalues off the frame.
    """
    t = measure.grid(sigma**2)
    if t[1] - t[0] > sigma / 2:
        peaks = measure.nodes[:, None] + sigma * np.linspace(-5, 5, 41)
        t = np.union1d(t, peaks)
    margin = MARGIN * (t[-1] - t[0])
    return np.concatenate([[t[0] - margin], t, [t[-1] + margin]])
