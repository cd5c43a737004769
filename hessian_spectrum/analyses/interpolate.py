"""The loss on lines in parameter space: between two parameter vectors, or along a direction.

Each ``*_task`` is the analysis as data, for a runner; the public function carries it out.
"""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np
from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_whole
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.geometry import chain_length
from hessian_spectrum.landscape.parameter_points import Points, edge_gram, gram, stacked
from hessian_spectrum.landscape.paths import Numbers
from hessian_spectrum.landscape.results import Curve
from hessian_spectrum.landscape.tasks import PointTask, compute, curve_task, described
from hessian_spectrum.loss.evaluator import Evaluator

Window = tuple[float, float]


def interpolate(
    ev: Evaluator,
    theta0: Tensor,
    theta1: Tensor,
    num_points: int = 50,
    *,
    alpha: Numbers | None = None,
    window: Window = (0.0, 1.0),
    **options: Any,
) -> Curve:
    """Values at (1 - alpha) theta0 + alpha theta1, with alpha as the curve's coordinate t.

    Goodfellow, Vinyals & Saxe, ICLR 2015, section 3.

    Args:
        theta0, theta1: flat parameters, (n,).
        num_points: values of alpha, evenly spaced over ``window``. The inner points nearest to
            alpha = 0 and alpha = 1 are moved there, so that the curve contains both networks.
        alpha: the values of alpha themselves, ascending; they may lie outside [0, 1].
        window: first and last alpha: (0, 0.01) looks closer, (-1, 2) looks farther.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Raises:
        InputError: a vector does not have n entries, or alpha does not ascend.

    Cost: ``num_points`` losses.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> curve = hs.interpolate(ev, ev.theta, -ev.theta, num_points=11)
        >>> curve.loss.shape, float(curve.t[0]), float(curve.t[-1])
        ((11,), 0.0, 1.0)
        >>> curve.barrier() < 1e-6  # the loss of a linear model is convex
        True
    """
    return compute(ev, linear_task(ev, theta0, theta1, num_points, alpha, window), **options)


def linear_task(
    ev: Evaluator,
    theta0: Tensor,
    theta1: Tensor,
    num_points: int = 50,
    alpha: Numbers | None = None,
    window: Window = (0.0, 1.0),
) -> PointTask:
    """``interpolate`` as data."""
    t = paths.coordinates(num_points if alpha is None else alpha, *window, "alpha")
    if alpha is None and is_whole(num_points):
        t = paths.through(t, 0.0, 1.0)
    vectors = stacked(ev, {"theta0": theta0, "theta1": theta1})
    return _line_task(ev, vectors, t, paths.linear(t), path="linear", ends=[0.0, 1.0])


def by_distance(
    ev: Evaluator, theta0: Tensor, theta1: Tensor, distance: Numbers, **options: Any
) -> Curve:
    """Values at theta1 + lambda (theta0 - theta1) / |theta0 - theta1|; t is lambda.

    The loss against the absolute distance from theta1, so that basins of different solutions can
    be compared. Im, Tao & Branson 2017 (arXiv:1612.04010), equation 1.

    Args:
        theta0, theta1: flat parameters, (n,), not equal.
        distance: lambda, ascending, in units of theta; negative values lead away from theta0.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Raises:
        InputError: theta0 equals theta1, or ``distance`` does not ascend.

    Cost: a loss for each distance.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> curve = hs.by_distance(ev, 0 * ev.theta, ev.theta, [0.0, 0.1, 0.2])
        >>> [round(float(d), 6) for d in curve.distance]
        [0.0, 0.1, 0.2]
        >>> bool(abs(curve.loss[0] - ev.loss().item()) < 1e-6)
        True
    """
    return compute(ev, distance_task(ev, theta0, theta1, distance), **options)


def distance_task(ev: Evaluator, theta0: Tensor, theta1: Tensor, distance: Numbers) -> PointTask:
    """``by_distance`` as data."""
    vectors = stacked(ev, {"theta0": theta0, "theta1": theta1})
    length = float(np.sqrt(edge_gram(vectors)[0, 0]))
    t = _distances(distance)
    return _line_task(ev, vectors, t, paths.ray(t, length), path="distance", ends=[0.0, length])


def along_ray(
    ev: Evaluator, theta: Tensor, direction: Tensor, distance: Numbers, **options: Any
) -> Curve:
    """Values at theta + lambda d / |d|; t is lambda, a distance in units of theta.

    Args:
        theta: the origin, (n,).
        direction: d, (n,), of any length above 0.
        distance: lambda, ascending.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Raises:
        InputError: the direction is zero, or ``distance`` does not ascend.

    Cost: a loss for each distance.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> curve = hs.along_ray(ev, ev.theta, -ev.gradient(), [0.0, 0.01])
        >>> bool(curve.loss[1] < curve.loss[0])  # a short step against the gradient
        True
    """
    return compute(ev, ray_task(ev, theta, direction, distance), **options)


def ray_task(ev: Evaluator, theta: Tensor, direction: Tensor, distance: Numbers) -> PointTask:
    """``along_ray`` as data."""
    vectors = stacked(ev, {"theta": theta, "direction": direction})
    length = vectors[1].double().norm().item()
    if not length > 0:
        raise InputError("the direction is zero; expected a vector with a length")
    t = _distances(distance)
    weights = np.column_stack([np.ones_like(t), t / length])
    return _line_task(ev, vectors, t, weights, path="ray")


# -- inside ------------------------------------------------------------------------------------


def _line_task(
    ev: Evaluator, vectors: Tensor, t: np.ndarray, weights: np.ndarray, **about: Any
) -> PointTask:
    # A ray's vectors are its origin and a direction. The others are between parameter vectors,
    # whose weights add up to 1.
    inner = gram(vectors[1:]) if about["path"] == "ray" else edge_gram(vectors)
    distance = chain_length(weights[:, 1:], inner)
    return curve_task(Points(vectors, weights), t, distance, described(ev, **about))


def _distances(distance: Numbers) -> np.ndarray:
    if isinstance(distance, Number):
        raise InputError(f"distance={distance!r}: expected a sequence of ascending distances")
    return paths.coordinates(distance, 0.0, 1.0, "distance")
