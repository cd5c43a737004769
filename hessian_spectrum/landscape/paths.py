"""Lines, planes, triangles and curves as weights of a few vectors. NumPy only.

Each function returns weights (p, k): row i has the weights of k vectors at point i, so that
``Points(vectors, weights)`` are the points. Weights of 1 and 0 give an end point exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np

from hessian_spectrum._core.errors import InputError

Array = np.ndarray
Numbers = Sequence[float] | Array  # in one row
Axis = Numbers | int  # coordinates along an axis, or their number


def linear(alpha: Numbers) -> Array:
    """(1 - alpha) theta0 + alpha theta1, for any alpha; (p, 2).

    Goodfellow, Vinyals and Saxe 2015, section 3.
    """
    alpha = _numbers(alpha, "alpha")
    return np.column_stack([1 - alpha, alpha])


def ray(distance: Numbers, length: float) -> Array:
    """theta1 + lambda (theta0 - theta1) / |theta0 - theta1|; (p, 2), of theta0 and theta1.

    Im, Tao and Branson 2017, equation 1: points by their distance from theta1.

    Args:
        distance: lambda, in units of theta.
        length: |theta0 - theta1|.
    """
    if not length > 0:
        raise InputError("theta0 and theta1 are equal: they do not define a direction")
    share = _numbers(distance, "distance") / length
    return np.column_stack([share, 1 - share])


def bilinear(alpha: Numbers, beta: Numbers) -> Array:
    """A bilinear patch of four vectors, (p, 4). Im, Tao and Branson 2017, appendix A.1::

        phi = (1 - alpha) theta0 + alpha theta1
        psi = (1 - alpha) theta2 + alpha theta3
        theta = (1 - beta) phi + beta psi

    theta0, theta1, theta2, theta3 are the corners (alpha, beta) = (0, 0), (1, 0), (0, 1), (1, 1).
    """
    alpha, beta = _numbers(alpha, "alpha"), _numbers(beta, "beta")
    return np.column_stack(
        [(1 - beta) * (1 - alpha), (1 - beta) * alpha, beta * (1 - alpha), beta * alpha]
    )


def barycentric(alpha: Numbers, beta: Numbers) -> Array:
    """A triangle of three vectors, (p, 3). Im, Tao and Branson 2017, appendix A.1::

        phi = theta0 + alpha (theta1 - theta0)
        psi = theta0 + alpha (theta2 - theta0)
        theta = beta phi + (1 - beta) psi

    For alpha and beta from 0 to 1 these fill the triangle; all points with alpha = 0 are
    theta0.
    """
    alpha, beta = _numbers(alpha, "alpha"), _numbers(beta, "beta")
    return np.column_stack([1 - alpha, alpha * beta, alpha * (1 - beta)])


def plane(a: Numbers, b: Numbers) -> Array:
    """theta0 + a (theta1 - theta0) + b (theta2 - theta0), for any a and b; (p, 3)."""
    a, b = _numbers(a, "a"), _numbers(b, "b")
    return np.column_stack([1 - (a + b), a, b])


def bezier(t: Numbers, degree: int = 2) -> Array:
    """A Bezier curve of degree + 1 control points, (p, degree + 1).

    Degree 2: (1-t)^2, 2 t (1-t), t^2.

    Garipov et al. 2018, equation 4.
    """
    t = _numbers(t, "t")
    binomials = np.cumprod([1.0, *((degree - j) / (j + 1) for j in range(degree))])
    j = np.arange(degree + 1)
    return binomials * t[:, None] ** j * (1 - t[:, None]) ** (degree - j)


def polygon(t: Numbers, num_vertices: int) -> Array:
    """A polygonal chain of vertices, (p, num_vertices); t = 0 is the first, t = 1 the last.

    Each edge takes an equal part of [0, 1]. Garipov et al. 2018, equation 3, has three vertices.
    """
    if num_vertices < 2:
        raise InputError(f"a chain of {num_vertices} vertices; expected 2 or more")
    place = np.clip(_numbers(t, "t"), 0.0, 1.0) * (num_vertices - 1)
    return np.maximum(0.0, 1 - np.abs(place[:, None] - np.arange(num_vertices)))


def grid(*axes: Numbers) -> Array:
    """All combinations of the axes' coordinates, (p, axes); the last axis varies fastest."""
    rows = [_numbers(axis, f"axis {i}") for i, axis in enumerate(axes)]
    return np.stack(np.meshgrid(*rows, indexing="ij"), axis=-1).reshape(-1, len(axes))


def coordinates(axis: Axis, low: float, high: float, name: str) -> Array:
    """Coordinates along an axis: those given, or as many as said, evenly spaced from low to high.

    Raises:
        InputError: neither a whole number nor finite coordinates in ascending order; the message
            has the axis's ``name``.
    """
    if isinstance(axis, Integral) and not isinstance(axis, bool):
        if axis < 1:
            raise InputError(f"{name} has {axis} points; expected 1 or more")
        return window(low, high, int(axis))
    try:
        found = np.asarray(axis, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(())
    if isinstance(axis, str) or found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise InputError(
            f"{name}={axis!r}: expected a whole number of points, or a sequence of finite "
            "coordinates"
        )
    if (np.diff(found) <= 0).any():
        raise InputError(f"{name} is not ascending; sort its coordinates, each once")
    return found


def through(points: Array, *marks: float) -> Array:
    """The points, with the inner point nearest to each mark moved onto it.

    Ends stay where they are, as do the points for marks beyond them.
    """
    points = points.copy()
    for mark in marks:
        if len(points) > 2 and points[0] < mark < points[-1]:
            nearest = 1 + int(np.abs(points[1:-1] - mark).argmin())
            if points[nearest] not in marks:
                points[nearest] = mark
    return points


def window(start: float, stop: float, num_points: int) -> Array:
    """Evenly spaced coordinates from start to stop, both included; a single point is the start."""
    if num_points < 1:
        raise InputError(f"num_points={num_points}: expected 1 or more")
    if num_points > 1 and not -np.inf < start < stop < np.inf:
        raise InputError(
            f"{num_points} points from {start} to {stop}: expected two finite ends, ascending"
        )
    return np.linspace(start, stop, num_points)


def bezier_slope(t: Numbers, degree: int = 2) -> Array:
    """d/dt of ``bezier``, (p, degree + 1)."""
    below = np.pad(bezier(t, degree - 1), ((0, 0), (1, 1)))
    return degree * (below[:, :-1] - below[:, 1:])


def polygon_slope(t: Numbers, num_vertices: int) -> Array:
    """d/dt of ``polygon``, (p, num_vertices); at a vertex, the slope of the edge after it."""
    edges = num_vertices - 1
    edge = np.minimum((_numbers(t, "t") * edges).astype(int), edges - 1)
    vertices = np.arange(num_vertices)
    return edges * ((vertices == edge[:, None] + 1) * 1.0 - (vertices == edge[:, None]))


def _numbers(values: Numbers, name: str) -> Array:
    found = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if found.ndim != 1 or not np.isfinite(found).all():
        raise InputError(f"{name} of shape {found.shape}; expected finite numbers in one row")
    return found
