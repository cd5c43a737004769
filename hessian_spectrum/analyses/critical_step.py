"""The smallest step along an update that raises the loss, by forward passes only.

Kalra et al. 2026 (arXiv 2601.16979): for an update ``theta - eta direction`` the critical learning
rate eta_c is the smallest eta for which the loss is larger than at theta, and 2 / eta_c the
critical sharpness: the largest eigenvalue where the direction is its eigenvector's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import brentq

DOUBLINGS = 40  # of the step, until the loss rises
PRECISION = 1e-4  # relative, of the step


def critical_step(
    rise: Callable[[float], float], first: float = 1.0, precision: float = PRECISION
) -> tuple[float, int]:
    """The smallest step at which the loss rises, and how often it was evaluated.

    Doubling or halving from ``first`` brackets where ``rise(step) / step`` changes its sign, which
    is linear for a quadratic loss; Brent's method finds it there.

    Args:
        rise: step -> loss there minus loss at step 0; NaN and inf count as a rise.
        first: a step to begin at, such as the one before.

    Returns:
        (step, evaluations). The step is 0 where the loss rises from the start on, and inf where it
        does not rise within 2^40 times ``first``.
    """
    seen: dict[float, float] = {}

    def slope(step: float) -> float:
        if step not in seen:
            value = rise(step) / step
            seen[step] = value if math.isfinite(value) else math.inf
        return seen[step]

    low = high = first
    if slope(first) > 0:
        while slope(low) > 0:
            high, low = low, low / 2
            if low < first * 2.0**-DOUBLINGS:
                return 0.0, len(seen)
    else:
        while slope(high) <= 0:
            low, high = high, high * 2
            if high > first * 2.0**DOUBLINGS:
                return math.inf, len(seen)
    while math.isinf(slope(high)):  # of a loss that overflows: Brent's method needs numbers
        middle = (low + high) / 2
        if high - low <= precision * low:
            return high, len(seen)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    if slope(low) == 0.0:
        return low, len(seen)
    found = brentq(slope, low, high, xtol=precision * low, rtol=precision)
    return float(found), len(seen)
