"""The loss on surfaces through three or four parameter vectors: rectangles, triangles, planes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.geometry import plane_positions
from hessian_spectrum.landscape.parameter_points import Points, edge_gram, stacked
from hessian_spectrum.landscape.results import Surface
from hessian_spectrum.landscape.tasks import PointTask, compute, described, surface_task
from hessian_spectrum.loss.evaluator import Evaluator

Axis = Sequence[float] | int


class Shape(NamedTuple):
    """How corners span a surface."""

    num_corners: int
    weights: Callable[[np.ndarray, np.ndarray], np.ndarray]  # two coordinates -> (p, corners)
    low: float  # the range of both coordinates where only their number is given
    high: float


SHAPES = {
    "bilinear": Shape(4, paths.bilinear, 0.0, 1.0),
    "barycentric": Shape(3, paths.barycentric, 0.0, 1.0),
    "plane": Shape(3, paths.plane, -0.25, 1.25),
}


def corner_task(
    ev: Evaluator, shape: str, corners: Sequence[Tensor], a: Axis = 25, b: Axis = 25
) -> PointTask:
    """The surface of this shape through the corners, as data for a runner.

    Raises:
        InputError: not as many corners as the shape has, or coordinates that do not ascend.
    """
    count, weights_at, low, high = SHAPES[shape]
    a, b = (paths.coordinates(x, low, high, f"axis {i}") for i, x in enumerate((a, b)))
    if len(corners) != count:
        raise InputError(f"{len(corners)} parameter vectors; expected {count}")
    vectors = stacked(ev, {f"corners[{i}]": corner for i, corner in enumerate(corners)})
    weights = weights_at(*paths.grid(a, b).T)
    # Three corners span one plane; the points of a bilinear surface do not lie in one.
    positions = plane_positions(weights[:, 1:], edge_gram(vectors)) if count == 3 else None
    return surface_task(Points(vectors, weights), a, b, described(ev, path=shape), positions)


def bilinear(
    ev: Evaluator, corners: Sequence[Tensor], alpha: Axis = 25, beta: Axis = 25, **options: Any
) -> Surface:
    """Values between four parameter vectors (``paths.bilinear``); a is alpha, b is beta.

    Args:
        corners: theta0, theta1, theta2, theta3 at (alpha, beta) = (0, 0), (1, 0), (0, 1), (1, 1).
        alpha, beta: coordinates, or how many from 0 to 1.
    """
    return compute(ev, corner_task(ev, "bilinear", corners, alpha, beta), **options)


def barycentric(
    ev: Evaluator, corners: Sequence[Tensor], alpha: Axis = 25, beta: Axis = 25, **options: Any
) -> Surface:
    """Values over the triangle of three parameter vectors (``paths.barycentric``).

    ``positions`` are places in the triangle's own plane, with theta0 at the origin.

    Args:
        alpha, beta: coordinates, or how many from 0 to 1; all of alpha = 0 is theta0.
    """
    return compute(ev, corner_task(ev, "barycentric", corners, alpha, beta), **options)


def plane(
    ev: Evaluator, corners: Sequence[Tensor], a: Axis = 25, b: Axis = 25, **options: Any
) -> Surface:
    """Values at theta0 + a (theta1 - theta0) + b (theta2 - theta0): the plane through three.

    Args:
        a, b: coordinates, or how many from -0.25 to 1.25.
    """
    return compute(ev, corner_task(ev, "plane", corners, a, b), **options)


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
