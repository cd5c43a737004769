"""The loss between parameter vectors: on lines, by distance, over triangles and rectangles.

Each ``*_task`` is the analysis as data, for a runner; the function of the same name carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_whole
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.geometry import chain_length, plane_positions
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.results import Curve, Surface
from hessian_spectrum.landscape.tasks import PointTask, Values, compute, described, edges, gram
from hessian_spectrum.loss.evaluator import Evaluator

Axis = Sequence[float] | int
Window = tuple[float, float]


def linear_task(
    ev: Evaluator,
    theta0: Tensor,
    theta1: Tensor,
    num_points: int = 50,
    alpha: Sequence[float] | None = None,
    window: Window = (0.0, 1.0),
) -> PointTask:
    spread = alpha is None and is_whole(num_points)
    alpha = paths.coordinates(num_points if alpha is None else alpha, *window, "alpha")
    alpha = paths.through(alpha, 0.0, 1.0) if spread else alpha
    vectors = _vertices(ev, [theta0, theta1])
    return _curve_task(ev, vectors, alpha, paths.linear(alpha), path="linear", ends=[0.0, 1.0])


def interpolate(
    ev: Evaluator,
    theta0: Tensor,
    theta1: Tensor,
    num_points: int = 50,
    *,
    alpha: Sequence[float] | None = None,
    window: Window = (0.0, 1.0),
    **options: Any,
) -> Curve:
    """Values at (1 - alpha) theta0 + alpha theta1 (Goodfellow, Vinyals and Saxe 2015, section 3).

    Args:
        theta0, theta1: flat parameters, (n,).
        num_points: evenly spread over the window; the nearest to alpha = 0 and 1 inside of it are
            moved there, so that the two networks themselves are among the points.
        alpha: the points themselves, in ascending order, within 0 to 1 or beyond.
        window: the first and the last alpha, to look closer ((0, 0.01)) or farther ((-1, 2)).
        **options: of ``compute``: test, quantities, plan.

    Cost: num_points losses.
    """
    return compute(ev, linear_task(ev, theta0, theta1, num_points, alpha, window), **options)


def distance_task(
    ev: Evaluator, theta0: Tensor, theta1: Tensor, distance: Sequence[float]
) -> PointTask:
    vectors = _vertices(ev, [theta0, theta1])
    length = float(np.sqrt(edges(vectors)[0, 0]))
    distance = _distances(distance)
    weights = paths.ray(distance, length)
    return _curve_task(ev, vectors, distance, weights, path="distance", ends=[0.0, length])


def by_distance(
    ev: Evaluator, theta0: Tensor, theta1: Tensor, distance: Sequence[float], **options: Any
) -> Curve:
    """Values at theta1 + lambda (theta0 - theta1) / |theta0 - theta1|; t is lambda.

    The loss against the absolute distance from theta1, so that basins of different solutions can be
    compared (Im, Tao and Branson 2017, equation 1).

    Args:
        distance: lambda, ascending, in units of theta; negative ones lead away from theta0.
    """
    return compute(ev, distance_task(ev, theta0, theta1, distance), **options)


def ray_task(
    ev: Evaluator, theta: Tensor, direction: Tensor, distance: Sequence[float]
) -> PointTask:
    vectors = _vertices(ev, [theta, direction])
    length = vectors[1].double().norm().item()
    if not length > 0:
        raise InputError("the direction is zero; expected a vector with a length")
    distance = _distances(distance)
    weights = np.column_stack([np.ones_like(distance), distance / length])
    return _curve_task(ev, vectors, distance, weights, path="ray")


def along_ray(
    ev: Evaluator, theta: Tensor, direction: Tensor, distance: Sequence[float], **options: Any
) -> Curve:
    """Values at theta + lambda d / |d|; t is lambda, a distance in units of theta."""
    return compute(ev, ray_task(ev, theta, direction, distance), **options)


def bilinear_task(ev: Evaluator, corners: Sequence[Tensor], alpha: Axis, beta: Axis) -> PointTask:
    alpha, beta = _axes(alpha, beta)
    weights = paths.bilinear(*paths.grid(alpha, beta).T)
    return _surface_task(ev, _vertices(ev, corners, 4), (alpha, beta), weights, "bilinear")


def bilinear(
    ev: Evaluator,
    corners: Sequence[Tensor],
    alpha: Axis = 25,
    beta: Axis = 25,
    **options: Any,
) -> Surface:
    """Values between four parameter vectors (``paths.bilinear``); a is alpha, b is beta.

    Args:
        corners: theta0, theta1, theta2, theta3 at (alpha, beta) = (0, 0), (1, 0), (0, 1), (1, 1).
        alpha, beta: coordinates, or how many from 0 to 1.
    """
    return compute(ev, bilinear_task(ev, corners, alpha, beta), **options)


def barycentric_task(
    ev: Evaluator, corners: Sequence[Tensor], alpha: Axis, beta: Axis
) -> PointTask:
    alpha, beta = _axes(alpha, beta)
    weights = paths.barycentric(*paths.grid(alpha, beta).T)
    return _surface_task(ev, _vertices(ev, corners, 3), (alpha, beta), weights, "barycentric")


def barycentric(
    ev: Evaluator,
    corners: Sequence[Tensor],
    alpha: Axis = 25,
    beta: Axis = 25,
    **options: Any,
) -> Surface:
    """Values over the triangle of three parameter vectors (``paths.barycentric``).

    ``positions`` are places in the triangle's own plane, with theta0 at the origin.

    Args:
        alpha, beta: coordinates, or how many from 0 to 1; all of alpha = 0 is theta0.
    """
    return compute(ev, barycentric_task(ev, corners, alpha, beta), **options)


def plane_task(ev: Evaluator, corners: Sequence[Tensor], a: Axis, b: Axis) -> PointTask:
    a, b = _axes(a, b, low=-0.25, high=1.25)
    grid = paths.grid(a, b)
    weights = np.column_stack([1 - grid.sum(1), grid])
    return _surface_task(ev, _vertices(ev, corners, 3), (a, b), weights, "plane")


def plane(
    ev: Evaluator,
    corners: Sequence[Tensor],
    a: Axis = 25,
    b: Axis = 25,
    **options: Any,
) -> Surface:
    """Values at theta0 + a (theta1 - theta0) + b (theta2 - theta0): the plane through three.

    Args:
        a, b: coordinates, or how many from -0.25 to 1.25.
    """
    return compute(ev, plane_task(ev, corners, a, b), **options)


def triangles(
    ev: Evaluator,
    networks: Mapping[str, Tensor],
    num_vertices: int = 3,
    resolution: int = 25,
    **options: Any,
) -> dict[tuple[str, ...], Surface]:
    """The surface of every three (or four) networks of a table, such as one of optimizers.

    Three are the vertices of a triangle (``barycentric``), four the corners of a rectangle
    (``bilinear``), in the table's order.

    Args:
        networks: flat parameters by name.
        resolution: points along each coordinate.

    Cost: a surface for each choice: C(networks, num_vertices) * resolution^2 losses.
    """
    if num_vertices not in (3, 4):
        raise InputError(f"num_vertices={num_vertices!r}: expected 3 or 4")
    if len(networks) < num_vertices:
        raise InputError(f"{len(networks)} networks; expected {num_vertices} or more")
    over = barycentric if num_vertices == 3 else bilinear
    return {
        names: over(ev, [networks[name] for name in names], resolution, resolution, **options)
        for names in combinations(networks, num_vertices)
    }


# -- inside ------------------------------------------------------------------------------------


def _curve_task(
    ev: Evaluator, vectors: Tensor, t: np.ndarray, weights: np.ndarray, **about: Any
) -> PointTask:
    # From an origin along directions, or between vectors: then the weights add up to 1.
    inner = gram(vectors[1:]) if about["path"] == "ray" else edges(vectors)
    distance, about = chain_length(weights[:, 1:], inner), described(ev, **about)
    return PointTask(Points(vectors, weights), lambda values: Curve(t, distance, values, about))


def _surface_task(
    ev: Evaluator,
    vectors: Tensor,
    axes: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray,
    path: str,
) -> PointTask:
    a, b = axes
    shape, about, places = (len(a), len(b)), described(ev, path=path), {}
    if len(vectors) == 3:  # the points lie in one plane
        positions = plane_positions(weights[:, 1:], edges(vectors))
        places = {"positions": positions.reshape(*shape, 2)}

    def finish(values: Values) -> Surface:
        grids = {name: array.reshape(shape) for name, array in values.items()}
        return Surface(a, b, grids, about, **places)

    return PointTask(Points(vectors, weights), finish)


def _vertices(ev: Evaluator, thetas: Sequence[Tensor], count: int = 2) -> Tensor:
    """(count, n), the vectors in the evaluator's dtype and on its device."""
    if len(thetas) != count:
        raise InputError(f"{len(thetas)} parameter vectors; expected {count}")
    return torch.stack([ev.given(theta, f"vector {i}") for i, theta in enumerate(thetas)])


def _axes(*axes: Axis, low: float = 0.0, high: float = 1.0) -> list[np.ndarray]:
    """Coordinates along each of two, given or spread from low to high."""
    return [paths.coordinates(axis, low, high, f"axis {i}") for i, axis in enumerate(axes)]


def _distances(distance: Sequence[float]) -> np.ndarray:
    if isinstance(distance, Number):
        raise InputError(f"distance={distance!r}: expected distances in a row, ascending")
    return paths.coordinates(distance, 0.0, 1.0, "distance")
