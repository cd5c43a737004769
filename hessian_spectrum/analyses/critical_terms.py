"""Terms of orders 3 and 4 of the loss along null directions of its Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum.krylov.dense_eigen import least_squares

Array = NDArray[np.float64]
# (t, u) -> H(theta + t u) u, (n,), float64
ProductAlong = Callable[[float, Array], Array]

STEP = 0.02  # of the differences along a unit vector, in units of the parameters' size
ROUNDING = 64 * 2.0**-52  # of a product, relative
LOSS_ROUNDING = 2.0**-52  # of the loss, relative
FACTOR = 4.0  # a term counts where it is so many times its error
MOST_VECTORS = 24  # null vectors that are examined, and as many random combinations
ANGLES = 8  # in half a turn: even and odd harmonics up to the fourth are determined by five
FINE = 2880  # angles at which the harmonics are evaluated


@dataclass(frozen=True)
class Line:
    """The loss along theta + t u: c3 t^3 + c4 t^4, with errors."""

    c3: float
    c3_error: float
    c4: float
    c4_error: float
    bends: bool  # does D3(u, u, .) leave the null space? Then curves may do better than lines


@dataclass(frozen=True)
class Terms:
    """What the loss does on lines along null directions."""

    odd: bool  # a cubic term that is not 0: the loss falls and rises on a line
    low: float  # least and largest quartic term of the directions that were examined
    high: float
    error: float  # of these two
    margin: float  # that the term may exceed them by on other directions of a plane
    bends: bool  # on some direction
    examined: bool  # all directions: there are at most two null ones

    def verdict(self, sign: float) -> str:
        """Of a minimum (sign 1) or a maximum (-1): "excluded", "strict" on lines, or ""."""
        low = min(sign * self.low, sign * self.high)
        if self.odd or low < -self.error:
            return "excluded"
        return "strict" if self.examined and low - self.margin > self.error else ""

    @property
    def order(self) -> int:
        """Of the terms that exclude minima and maxima, or confirm one."""
        return 3 if self.odd else 4


def lines(
    product: ProductAlong, null: Array, floor: float, size: float, loss: float = 0.0
) -> Terms:
    """What the loss does along null directions, by its derivatives of orders 3 and 4.

    Of one null direction a line is enough. Of two, the terms are polynomials of the angle, known
    from eight lines. Of more, lines along each null vector and random combinations are examined: a
    cubic form that is not zero is not zero on these (with probability 1), and no more than that is
    claimed.

    Args:
        product: Hessian products along a line.
        null: orthonormal rows (m, n).
        floor: magnitude that eigenvalues along them may have.
        size: of the parameters, the unit of the steps.
        loss: at theta. What its rounding hides within a step is an error: where units are saturated
            1 - f(x) is rounding alone, and so are products that are made of it.

    Cost: five products for each line.
    """
    hidden = LOSS_ROUNDING * abs(loss)
    found = [line(product, u, null, floor, size, hidden) for u in _directions(null)]
    c4 = np.array([one.c4 for one in found])
    low, high, margin = (c4.min(), c4.max(), 0.0) if len(null) != 2 else _extremes(c4)
    return Terms(
        odd=any(abs(one.c3) > FACTOR * one.c3_error for one in found),
        low=float(low),
        high=float(high),
        margin=margin,
        error=FACTOR * max(one.c4_error for one in found),
        bends=any(one.bends for one in found),
        examined=len(null) <= 2,
    )


def line(
    product: ProductAlong, u: Array, null: Array, floor: float, size: float, hidden: float = 0.0
) -> Line:
    """Derivatives by central differences of two widths; what these differ by is the error.

    A minimum of order 4 at a distance s has along u the terms 6 c4 s^2 and 4 c4 s of orders 2 and
    3: so large a cubic term is explained by an eigenvalue within ``floor``, and counts as error.

    Args:
        hidden: a change of the loss that its rounding hides.
    """
    center = product(0.0, u)
    cubic, quartic, noise = [], [], floor
    for h in (STEP * size, STEP * size / 2):
        ahead, behind = product(h, u), product(-h, u)
        noise = max(noise, ROUNDING * float(np.linalg.norm(ahead)))
        cubic.append((ahead - behind) / (2 * h))
        quartic.append((ahead + behind - 2 * center) / h**2)
    h = STEP * size / 2
    d3, d4 = ([float(u @ row) for row in rows] for rows in (cubic, quartic))
    c3_error = (abs(d3[1] - d3[0]) + noise / h) / 6 + math.sqrt(abs(d4[1]) / 24 * floor * 4 / 3)
    c4_error = (abs(d4[1] - d4[0]) + 4 * noise / h**2) / 24
    c3_error, c4_error = c3_error + hidden / h**3, c4_error + hidden / h**4
    aside = [row - null.T @ (null @ row) for row in cubic]
    bend = float(np.linalg.norm(aside[1]))
    bend_error = float(np.linalg.norm(aside[1] - aside[0])) + noise / h
    return Line(d3[1] / 6, c3_error, d4[1] / 24, c4_error, bend > FACTOR * bend_error)


def _directions(null: Array) -> Array:
    if len(null) == 1:
        return null
    if len(null) == 2:
        angles = math.pi * np.arange(ANGLES) / ANGLES
        return np.column_stack([np.cos(angles), np.sin(angles)]) @ null
    few = null[:MOST_VECTORS]
    mixed = np.random.default_rng(0).standard_normal((len(few), len(null))) @ null
    return np.concatenate([few, mixed / np.linalg.norm(mixed, axis=1)[:, None]])


def _extremes(values: Array) -> tuple[float, float, float]:
    """(low, high, margin) of a quartic form on the unit circle, from its values at ``ANGLES``.

    It takes the values low and high, and none below low - margin or above high + margin.

    A trigonometric polynomial of degree 4 changes by at most 4 max|q| a radian (Bernstein).
    """
    angles = math.pi * np.arange(ANGLES) / ANGLES
    fine = math.pi * np.arange(FINE) / FINE
    fit = least_squares(_harmonics(angles), values)
    found = _harmonics(fine) @ fit
    margin = 4 * np.abs(found).max() * math.pi / (2 * FINE)
    return float(found.min()), float(found.max()), margin


def _harmonics(angles: Array) -> Array:
    columns = [np.ones_like(angles)]
    for k in (2, 4):
        columns += [np.cos(k * angles), np.sin(k * angles)]
    return np.column_stack(columns)
