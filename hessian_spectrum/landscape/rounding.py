"""How large a loss's rounding error is, from its values at evenly spaced points. NumPy only."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray

ORDERS = (3, 4, 5, 6)  # of differences: what a smooth loss leaves in them is small
LEAST = 3  # differences of an order, below which their size is a matter of chance
NEIGHBOURS = 4  # lines on each side, whose rounding is alike
MULTIPLE = 6.0  # of the standard deviation of a rounding error


def rounding(losses: Array, eps: float) -> Array:
    """A bound on the rounding error of a loss, for each line of evenly spaced points.

    The k-th differences of values with independent errors of variance s^2 have the variance
    binomial(2 k, k) s^2, and those of a smooth function become small with k (Hamming; More & Wild,
    SIAM J. Sci. Comput. 33 (2011), section 3). The smallest s that an order from 3 to 6 shows is
    taken, and of a line and its neighbours the larger of its own and their median, since one line
    has few differences. A loss that is rough at the spacing of the points, such as one with kinks,
    raises the bound.

    Args:
        losses: (lines, points), lines in their order along a path.
        eps: of the arithmetic: the bound is at least eps times the line's largest |loss|.

    Returns:
        (lines,); 6 s or that least value, which is all that is known of lines of fewer than six
        points. NaN where a loss is not finite.
    """
    losses = np.asarray(losses, dtype=np.float64)
    finite = np.isfinite(losses).all(axis=1)
    found = np.full(len(losses), np.nan)
    known = losses[finite]
    found[finite] = np.maximum(eps * np.abs(known).max(axis=1), MULTIPLE * _pooled(_scatter(known)))
    return found


def _scatter(losses: Array) -> Array:
    """(lines,), the standard deviation of an error as the differences show it; 0: unknown."""
    found = [
        np.sqrt((np.diff(losses, order) ** 2).mean(axis=1) / math.comb(2 * order, order))
        for order in ORDERS
        if losses.shape[1] - order >= LEAST
    ]
    return np.min(found, axis=0) if found else np.zeros(len(losses))


def _pooled(scatter: Array) -> Array:
    """The larger of each line's value and the median of it and its neighbours."""
    medians = [
        np.median(scatter[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1]) for i in range(len(scatter))
    ]
    return np.maximum(scatter, medians)
