"""The global structure of a loss surface, from minima: Gallagher (2000), chapter 4.

Are points of lower loss nearer to a reference, and are the points' distances those of a tree?
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.landscape.results.correlation import (
    LEVEL,
    RESAMPLES,
    Correlation,
    correlation,
)
from hessian_spectrum.landscape.results.values import Array

LEAST_POINTS = 4


def fitness_distance(
    values: ArrayLike,
    points: ArrayLike,
    reference: ArrayLike,
    *,
    rank: bool = False,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Correlation:
    """Correlation of the values at points with their distances from a reference point.

    Jones & Forrest (1995); by Gallagher (2000) for networks: of minima, near 1 where the surface is
    a single large bowl around the reference, 0 where distance says nothing.

    Args:
        values: shape (p,), such as the loss at each point.
        points: shape (p, n), independent of each other, as the intervals assume.
        reference: shape (n,): the global minimum, a teacher's parameters, or the best point. A
            reference that is itself one of the points is to be left out of these, since its
            distance is 0 by construction.
        rank: Spearman's correlation; default: Pearson's.
        level, resamples, seed: of the intervals, as for ``Correlation``.

    Raises:
        InputError: shapes that do not fit, numbers that are not finite, fewer than 4 points, or
            values or distances that are all equal.

    Example:
        >>> import numpy as np, hessian_spectrum as hs
        >>> points = np.arange(1.0, 7.0)[:, None] * [[3.0, 4.0]]
        >>> hs.fitness_distance([1, 2, 3, 4, 5, 6], points, [0.0, 0.0]).value
        1.0
    """
    rows, center = _rows(points), np.asarray(reference, dtype=np.float64)
    if center.shape != rows.shape[1:]:
        raise InputError(
            f"a reference of shape {center.shape} for points of shape {rows.shape}; expected "
            f"{rows.shape[1:]}"
        )
    distances = np.linalg.norm(rows - center, axis=1)
    return correlation(values, distances, rank=rank, level=level, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class Ultrametricity:
    """How far the triangles of points are from those of a tree.

    Of the three sides a >= b >= c of each triangle, (a - b) / a: 0 where the distances are
    ultrametric, that is where the two longest sides are equal; at most 1/2.
    """

    mean: float  # over all triangles
    interval: tuple[float, float]  # of the mean, by bootstrap over points
    differences: Array  # (triangle,), ascending
    level: float

    def share_below(self, bound: float) -> float:
        """The share of triangles whose normalized difference is at most ``bound``."""
        return float(np.searchsorted(self.differences, bound, side="right")) / len(self.differences)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"two longest sides differ by {self.mean:.4f} of the longest, {self.level:.0%} "
            f"interval {low:.4f} to {high:.4f}, {len(self.differences)} triangles"
        )


def ultrametricity(
    points: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Ultrametricity:
    """The mean normalized difference of the two longest sides over all triangles of points.

    Gallagher (2000, section 4.3). Random points of many dimensions are nearly equidistant, and so
    nearly ultrametric: compare with points of the same dimension and scatter.

    The interval is by bootstrap over points, not over triangles, which share points: a resample
    weighs each triangle by the product of how often its points are drawn.

    Args:
        points: shape (p, n), all different.
        level, resamples, seed: of the interval.

    Raises:
        InputError: fewer than 4 points, points that coincide, numbers that are not finite.

    Cost: O(p^2 n) for distances, then O(resamples p^3 / 6).
    """
    require_whole(1, resamples=resamples)
    if not 0 < level < 1:
        raise InputError(f"level={level}: expected a number between 0 and 1")
    rows = _rows(points)
    count = len(rows)
    if count < LEAST_POINTS:
        raise InputError(f"{count} points; expected at least {LEAST_POINTS}")
    distances = np.array([np.linalg.norm(rows - row, axis=1) for row in rows])
    i, j, k = _triangles(count)
    sides = np.sort(np.stack([distances[i, j], distances[j, k], distances[i, k]]), axis=0)
    if not sides[0].all():
        raise InputError("some points coincide; leave out copies")
    differences = (sides[2] - sides[1]) / sides[2]
    rng, means = np.random.default_rng(seed), []
    for _ in range(resamples):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        weights = times[i] * times[j] * times[k]
        if weights.any():  # else fewer than three different points were drawn
            means.append(weights @ differences / weights.sum())
    tails = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(means, tails) if means else (0.0, 0.5)
    mean = float(differences.mean())
    return Ultrametricity(mean, (float(low), float(high)), np.sort(differences), level)


def _rows(points: ArrayLike) -> Array:
    rows = np.asarray(points, dtype=np.float64)
    if rows.ndim != 2 or not rows.shape[1]:
        raise InputError(f"points of shape {rows.shape}; expected (points, n)")
    if not np.isfinite(rows).all():
        raise InputError("points with numbers that are not finite; leave those out")
    return rows


def _triangles(count: int) -> Array:
    """Indices i < j < k of all triples, (3, triangle)."""
    i, j, k = np.ogrid[:count, :count, :count]
    return np.argwhere((i < j) & (j < k)).T
