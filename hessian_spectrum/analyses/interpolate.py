"""The loss on lines through parameter vectors: between two, or along a direction.

Each ``*_task`` is the analysis as data, for a runner; the public function carries it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_whole
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.geometry import chain_length
from hessian_spectrum.landscape.parameter_points import Points, edge_gram, gram, stacked
from hessian_spectrum.landscape.results import Curve
from hessian_spectrum.landscape.tasks import PointTask, compute, curve_task, described
from hessian_spectrum.loss.evaluator import Evaluator

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
    vectors = stacked(ev, {"theta0": theta0, "theta1": theta1})
    return _line_task(ev, vectors, alpha, paths.linear(alpha), path="linear", ends=[0.0, 1.0])


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
    vectors = stacked(ev, {"theta0": theta0, "theta1": theta1})
    length = float(np.sqrt(edge_gram(vectors)[0, 0]))
    distance = _distances(distance)
    weights = paths.ray(distance, length)
    return _line_task(ev, vectors, distance, weights, path="distance", ends=[0.0, length])


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
    vectors = stacked(ev, {"theta": theta, "direction": direction})
    length = vectors[1].double().norm().item()
    if not length > 0:
        raise InputError("the direction is zero; expected a vector with a length")
    distance = _distances(distance)
    weights = np.column_stack([np.ones_like(distance), distance / length])
    return _line_task(ev, vectors, distance, weights, path="ray")


def along_ray(
    ev: Evaluator, theta: Tensor, direction: Tensor, distance: Sequence[float], **options: Any
) -> Curve:
    """Values at theta + lambda d / |d|; t is lambda, a distance in units of theta."""
    return compute(ev, ray_task(ev, theta, direction, distance), **options)


# -- inside ------------------------------------------------------------------------------------


def _line_task(
    ev: Evaluator, vectors: Tensor, t: np.ndarray, weights: np.ndarray, **about: Any
) -> PointTask:
    # From an origin along directions, or between vectors: then the weights add up to 1.
    inner = gram(vectors[1:]) if about["path"] == "ray" else edge_gram(vectors)
    distance = chain_length(weights[:, 1:], inner)
    return curve_task(Points(vectors, weights), t, distance, described(ev, **about))


def _distances(distance: Sequence[float]) -> np.ndarray:
    if isinstance(distance, Number):
        raise InputError(f"distance={distance!r}: expected distances in a row, ascending")
    return paths.coordinates(distance, 0.0, 1.0, "distance")
