"""Weights of the vectors that lines, planes, triangles and curves are combinations of. NumPy only.

Each function gives (p, k): row i are the weights of k vectors in point i, so that
``Points(vectors, weights)`` are the points. Weights of 1 and 0 give an end point exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hessian_spectrum._core.errors import InputError, is_whole

Array = np.ndarray


def linear(alpha: Array) -> Array:
    """(1 - alpha) theta0 + alpha theta1, for any alpha; (p, 2).

    Goodfellow, Vinyals and Saxe 2015, section 3.
    """
    alpha = _numbers(alpha, "alpha")
    return np.column_stack([1 - alpha, alpha])


def ray(distance: Array, length: float) -> Array:
    """theta1 + lambda (theta0 - theta1) / |theta0 - theta1|; (p, 2), of theta0 and theta1.

    Im, Tao and Branson 2017, equation 1: points by their distance from theta1.

    Args:
        distance: lambda, in units of theta.
        length: |theta0 - theta1|.
    """
    if not length > 0:
        raise InputError("theta0 and theta1 are equal: no direction leads from one to the other")
    share = _numbers(distance, "distance") / length
    return np.column_stack([share, 1 - share])


def bilinear(alpha: Array, beta: Array) -> Array:
    """Of four vectors, (p, 4). Im, Tao and Branson 2017, appendix A.1::

        phi = (1 - alpha) theta0 + alpha theta1
        psi = (1 - alpha) theta2 + alpha theta3
        theta = (1 - beta) phi + beta psi

    theta0, theta1, theta2, theta3 are the corners (alpha, beta) = (0, 0), (1, 0), (0, 1), (1, 1).
    """
    alpha, beta = _numbers(alpha, "alpha"), _numbers(beta, "beta")
    return np.column_stack(
        [(1 - beta) * (1 - alpha), (1 - beta) * alpha, beta * (1 - alpha), beta * alpha]
    )


def barycentric(alpha: Array, beta: Array) -> Array:
    """Of three vectors, (p, 3). Im, Tao and Branson 2017, appendix A.1::

        phi = theta0 + alpha (theta1 - theta0)
        psi = theta0 + alpha (theta2 - theta0)
        theta = beta phi + (1 - beta) psi

    For alpha and beta from 0 to 1 these fill the triangle; all of alpha = 0 is theta0.
    """
    alpha, beta = _numbers(alpha, "alpha"), _numbers(beta, "beta")
    return np.column_stack([1 - alpha, alpha * beta, alpha * (1 - beta)])


def plane(a: Array, b: Array) -> Array:
    """theta0 + a (theta1 - theta0) + b (theta2 - theta0), for any a and b; (p, 3)."""
    a, b = _numbers(a, "a"), _numbers(b, "b")
    return np.column_stack([1 - (a + b), a, b])


def bezier(t: Array, degree: int = 2) -> Array:
    """Of degree + 1 control points, (p, degree + 1); degree 2: (1-t)^2, 2 t (1-t), t^2.

    Garipov et al. 2018, equation 4.
    """
    t = _numbers(t, "t")
    chosen = np.cumprod([1.0, *((degree - j) / (j + 1) for j in range(degree))])
    j = np.arange(degree + 1)
    return chosen * t[:, None] ** j * (1 - t[:, None]) ** (degree - j)


def polygon(t: Array, num_vertices: int) -> Array:
    """Of the vertices of a polygonal chain, (p, num_vertices); t = 0 is the first, 1 the last.

    Each edge takes an equal part of [0, 1]. Garipov et al. 2018, equation 3, has three vertices.
    """
    if num_vertices < 2:
        raise InputError(f"a chain of {num_vertices} vertices; expected 2 or more")
    place = np.clip(_numbers(t, "t"), 0.0, 1.0) * (num_vertices - 1)
    return np.maximum(0.0, 1 - np.abs(place[:, None] - np.arange(num_vertices)))


def grid(*axes: Sequence[float]) -> Array:
    """All combinations of the axes' coordinates, (p, axes), the last axis fastest."""
    axes = tuple(_numbers(axis, f"axis {i}") for i, axis in enumerate(axes))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def coordinates(axis: Sequence[float] | int, low: float, high: float, name: str) -> Array:
    """The coordinates themselves, ascending, or how many, evenly spread from low to high."""
    if is_whole(axis):
        if axis < 1:
            raise InputError(f"{name} has {axis} points; expected 1 or more")
        return window(low, high, int(axis))
    try:
        found = np.asarray(axis, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(())
    if isinstance(axis, str) or found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise InputError(
            f"{name}={axis!r}: expected a whole number of points, or finite coordinates in a row"
        )
    if (np.diff(found) <= 0).any():
        raise InputError(f"{name} is not ascending; sort its coordinates, each once")
    return found


def through(points: Array, *marks: float) -> Array:
    """The points, of which the nearest inner one is moved onto each mark between their ends."""
    points = points.copy()
    for mark in marks:
        if len(points) > 2 and points[0] < mark < points[-1]:
            nearest = 1 + int(np.abs(points[1:-1] - mark).argmin())
            if points[nearest] not in marks:
                points[nearest] = mark
    return points


def window(start: float, stop: float, num_points: int) -> Array:
    """Evenly spread alpha from start to stop, both included; a single point is the start."""
    if num_points < 1:
        raise InputError(f"num_points={num_points}: expected 1 or more")
    if num_points > 1 and not -np.inf < start < stop < np.inf:
        raise InputError(
            f"{num_points} points from {start} to {stop}: expected two finite ends, ascending"
        )
    return np.linspace(start, stop, num_points)


def bezier_slope(t: Array, degree: int = 2) -> Array:
    """d/dt of ``bezier``, (p, degree + 1)."""
    below = np.pad(bezier(t, degree - 1), ((0, 0), (1, 1)))
    return degree * (below[:, :-1] - below[:, 1:])


def polygon_slope(t: Array, num_vertices: int) -> Array:
    """d/dt of ``polygon``, (p, num_vertices); at a vertex, that of the edge after it."""
    edges = num_vertices - 1
    edge = np.minimum((_numbers(t, "t") * edges).astype(int), edges - 1)
    vertices = np.arange(num_vertices)
    return edges * ((vertices == edge[:, None] + 1) * 1.0 - (vertices == edge[:, None]))


def _numbers(values: Array, name: str) -> Array:
    values = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(f"{name} of shape {values.shape}; expected finite numbers in one row")
    return values
