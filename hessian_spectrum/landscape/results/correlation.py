"""Correlations of two quantities over points, with intervals. NumPy and SciPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.landscape.results.values import Array

RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 2**20  # resampled numbers
LEAST = 4  # pairs: Fisher's variance is 1 / (pairs - 3)
RANK_VARIANCE = 1.06  # of Fisher's z of ranks, times (pairs - 3)


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient of independent pairs, with two intervals of one level."""

    value: float
    fisher: tuple[float, float]  # tanh(z +- quantile * deviation), z = atanh(value)
    bootstrap: tuple[float, float]  # percentiles over resampled pairs
    count: int  # pairs
    level: float

    def __str__(self) -> str:
        told = (f"{low:.3f} to {high:.3f}" for low, high in (self.fisher, self.bootstrap))
        return (
            f"{self.value:.3f} over {self.count} pairs, {self.level:.0%} interval {next(told)} "
            f"(Fisher), {next(told)} (bootstrap)"
        )


def correlation(
    x: ArrayLike,
    y: ArrayLike,
    *,
    rank: bool = False,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Correlation:
    """Pearson's or Spearman's correlation of x and y, each of shape (m,), with intervals.

    Fisher's interval takes atanh of the coefficient as Gaussian, of variance 1 / (m - 3) [1], of
    ranks 1.06 / (m - 3) [2]. Both intervals take the pairs as independent.

    Args:
        rank: Spearman's, of the ranks, ties at their mean rank.
        level: of both intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: fewer than 4 pairs, a number that is not finite, or all of one value.

    Cost: O(resamples m), with ``rank`` O(resamples m log m).

    References:
        [1] Fisher, Metron 1 (1921) 3-32.
        [2] Fieller, Hartley & Pearson, Biometrika 44 (1957) 470-481, eq. 13.
    """
    require_whole(1, resamples=resamples)
    if not 0 < level < 1:
        raise InputError(f"level={level}: expected a number between 0 and 1")
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) < LEAST:
        raise InputError(
            f"a correlation of arrays of shapes {a.shape} and {b.shape}; expected as many of both, "
            f"at least {LEAST}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("a correlation of numbers that are not all finite; leave those out")
    found = float(_coefficients(a[None], b[None], rank)[0])
    if math.isnan(found):
        raise InputError("a correlation of numbers that are all equal is not defined")
    rng, each = np.random.default_rng(seed), []
    at_once = max(1, AT_ONCE // len(a))
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = rng.integers(len(a), size=(rows, len(a)))
        each.append(_coefficients(a[drawn], b[drawn], rank))
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    # A resample of one value only has no coefficient.
    known = np.concatenate(each)
    known = known[np.isfinite(known)]
    low, high = np.quantile(known, tails) if known.size else (-1.0, 1.0)
    return Correlation(
        found, _fisher(found, len(a), rank, level), (float(low), float(high)), len(a), level
    )


def _fisher(found: float, count: int, rank: bool, level: float) -> tuple[float, float]:
    if abs(found) >= 1:
        return found, found
    deviation = math.sqrt((RANK_VARIANCE if rank else 1.0) / (count - 3))
    half = float(ndtri((1 + level) / 2)) * deviation
    return math.tanh(math.atanh(found) - half), math.tanh(math.atanh(found) + half)


def _coefficients(a: Array, b: Array, rank: bool) -> Array:
    """(r, m), (r, m) -> (r,), Pearson's, of the ranks if asked; NaN where one is constant."""
    if rank:
        from scipy.stats import rankdata  # half a second that readers of files need not wait

        a, b = rankdata(a, axis=1), rankdata(b, axis=1)
    # Constant numbers are centred to rounding error, of which a coefficient says nothing.
    is_constant = (np.ptp(a, axis=1) == 0) | (np.ptp(b, axis=1) == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = _centred(a), _centred(b)
        found = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.where(is_constant, np.nan, np.clip(found, -1, 1))


def _centred(rows: Array) -> Array:
    """In units of their sizes: squares neither overflow nor vanish."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.abs(rows).max(axis=1, keepdims=True)
