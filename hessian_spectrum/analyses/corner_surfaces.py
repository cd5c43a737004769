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
from hessian_spectrum.landscape.paths import Axis
from hessian_spectrum.landscape.results import Surface
from hessian_spectrum.landscape.tasks import PointTask, compute, described, surface_task
from hessian_spectrum.loss.evaluator import Evaluator


class Shape(NamedTuple):
    """How corners span a surface."""

    num_corners: int
    weights: Callable[[np.ndarray, np.ndarray], np.ndarray]  # two coordinates -> (p, corners)
    low: float  # range of both coordinates where only their number is given
    high: float


SHAPES = {
    "bilinear": Shape(4, paths.bilinear, 0.0, 1.0),
    "barycentric": Shape(3, paths.barycentric, 0.0, 1.0),
    "plane": Shape(3, paths.plane, -0.25, 1.25),
}


def bilinear(
    ev: Evaluator, corners: Sequence[Tensor], alpha: Axis = 25, beta: Axis = 25, **options: Any
) -> Surface:
    """Values on the bilinear patch between four parameter vectors; a is alpha, b is beta.

    Im, Tao & Branson 2017 (arXiv:1612.04010), appendix A.1; the formula is that of
    ``paths.bilinear``.

    Args:
        corners: theta0, theta1, theta2, theta3, each (n,), at (alpha, beta) = (0, 0), (1, 0),
            (0, 1), (1, 1).
        alpha, beta: ascending coordinates, or their number, evenly spaced from 0 to 1.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Raises:
        InputError: not four corners, or coordinates that do not ascend.

    Cost: a loss for each grid point.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> hs.bilinear(ev, list(torch.randn(4, ev.n)), alpha=5, beta=3).shape
        (5, 3)
    """
    return compute(ev, corner_task(ev, "bilinear", corners, alpha, beta), **options)


def barycentric(
    ev: Evaluator, corners: Sequence[Tensor], alpha: Axis = 25, beta: Axis = 25, **options: Any
) -> Surface:
    """Values over the triangle of three parameter vectors; a is alpha, b is beta.

    Im, Tao & Branson 2017 (arXiv:1612.04010), appendix A.1; the formula is that of
    ``paths.barycentric``. ``Surface.positions`` are coordinates in the plane of the triangle, in
    units of theta, with theta0 at the origin.

    Args:
        corners: theta0, theta1, theta2, each (n,).
        alpha, beta: ascending coordinates, or their number, evenly spaced from 0 to 1. All points
            with alpha = 0 are theta0.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Raises:
        InputError: not three corners, or coordinates that do not ascend.

    Cost: a loss for each grid point.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> triangle = hs.barycentric(ev, list(torch.randn(3, ev.n)), alpha=5, beta=3)
        >>> triangle.shape, triangle.positions.shape
        ((5, 3), (5, 3, 2))
    """
    return compute(ev, corner_task(ev, "barycentric", corners, alpha, beta), **options)


def plane(
    ev: Evaluator, corners: Sequence[Tensor], a: Axis = 25, b: Axis = 25, **options: Any
) -> Surface:
    """Values at theta0 + a (theta1 - theta0) + b (theta2 - theta0), the plane of three vectors.

    Args:
        corners: theta0, theta1, theta2, each (n,).
        a, b: ascending coordinates, or their number, evenly spaced from -0.25 to 1.25.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Raises:
        InputError: not three corners, or coordinates that do not ascend.

    Cost: a loss for each grid point.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> corners = list(torch.randn(3, ev.n))
        >>> found = hs.plane(ev, corners, a=[0.0, 1.0], b=[0.0, 1.0])
        >>> bool(abs(found.loss[1, 0] - ev.loss(corners[1]).item()) < 1e-5)
        True
    """
    return compute(ev, corner_task(ev, "plane", corners, a, b), **options)


def triangles(
    ev: Evaluator,
    networks: Mapping[str, Tensor],
    num_vertices: int = 3,
    resolution: int = 25,
    **options: Any,
) -> dict[tuple[str, ...], Surface]:
    """The surface of every three (or four) of several networks, such as one for each optimizer.

    Three networks are the vertices of a triangle (``barycentric``), four are the corners of a
    bilinear patch (``bilinear``), in the order of ``networks``.

    Args:
        networks: flat parameters (n,) by name.
        num_vertices: 3 or 4.
        resolution: points along each coordinate.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Returns:
        A surface for each choice of names.

    Raises:
        InputError: fewer networks than ``num_vertices``.

    Cost: C(len(networks), num_vertices) * resolution^2 losses.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> networks = dict(zip(["SGD", "Adam", "Adagrad", "RMSprop"], torch.randn(4, ev.n)))
        >>> found = hs.triangles(ev, networks, resolution=3)
        >>> len(found), next(iter(found))
        (4, ('SGD', 'Adam', 'Adagrad'))
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


def corner_task(
    ev: Evaluator, shape: str, corners: Sequence[Tensor], a: Axis = 25, b: Axis = 25
) -> PointTask:
    """The surface through these corners as data, for a runner.

    Args:
        shape: a key of ``SHAPES``.

    Raises:
        InputError: not as many corners as the shape has, or coordinates that do not ascend.
    """
    count, weights_at, low, high = SHAPES[shape]
    first = paths.coordinates(a, low, high, "axis 0")
    second = paths.coordinates(b, low, high, "axis 1")
    if len(corners) != count:
        raise InputError(f"{len(corners)} parameter vectors; expected {count}")
    vectors = stacked(ev, {f"corners[{i}]": corner for i, corner in enumerate(corners)})
    weights = weights_at(*paths.grid(first, second).T)
    # Three corners span a plane. The points of a bilinear patch do not lie in one.
    positions = plane_positions(weights[:, 1:], edge_gram(vectors)) if count == 3 else None
    points, about = Points(vectors, weights), described(ev, path=shape)
    return surface_task(points, first, second, about, positions)
