"""Smallest and largest eigenvalue over a plane: how far is the loss from convex, and where?

Li, Xu, Taylor, Studer & Goldstein, NeurIPS 2018, figure 7, with signs and error bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms.residual_check import arithmetic_error
from hessian_spectrum.krylov.extremal import STEPS, extremes
from hessian_spectrum.landscape.direction_grid import Grid, grid_task
from hessian_spectrum.landscape.directions import Directions
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.results import Surface
from hessian_spectrum.landscape.tasks import PointTask, ValuesByName
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.curvature import Curvature, Hessian
from hessian_spectrum.planning.planned_operator import planned_once

COLUMNS = (
    *("loss", "smallest", "largest", "smallest_residual", "largest_residual"),
    *("converged", "products"),
)
EXPECTED_PRODUCTS = 25  # at a point, for a plan
LENGTH = 16  # points of a path; only the first starts without the eigenvectors of its neighbour
OperatorAt = Callable[[Evaluator, Tensor], Curvature]


def curvature_map(
    ev: Evaluator,
    directions: Directions | Tensor,
    grid: Grid = 9,
    *,
    tol: float = 1e-5,
    max_products: int = 500,
    operator: OperatorAt = Hessian,
) -> Surface:
    """Both extreme eigenvalues of the Hessian on a grid, and |smallest / largest|.

    The grid is traversed row by row in alternating direction; the solver of each point starts from
    the two eigenvectors of the point before. A point whose loss or products are not finite has
    NaN.

    Args:
        directions, grid: as for ``surface``.
        tol: largest residual, relative to the larger |eigenvalue|. The ratio is guaranteed to
            about tol; where the eigenvalues are separated its error is about tol^2.
        max_products: Hessian products for one point; a point that needs more is recorded as not
            converged.
        operator: ``operator(ev, theta)`` is the matrix; default: the Hessian. If it has no plan,
            the plan for the first point serves all.

    Returns:
        A Surface with the values "loss", "smallest", "largest", "smallest_residual" and
        "largest_residual" (an eigenvalue lies within the residual of each value), "ratio",
        "ratio_error" (a bound), "converged" (1 or 0) and "products". In float32
        residuals include the rounding of products, relative to the larger |eigenvalue| as it was
        measured at the first point of each path of 16; "converged" does not.

    Raises:
        InputError: as for ``surface``.

    Cost: typically 15 to 50 Hessian products a point, and memory for 81 vectors; in float32 two
    products more a path, and two in float64.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> plane = hs.directions.random(ev, count=2, seed=0)
        >>> found = hs.curvature_map(ev, plane, grid=2)
        >>> found.values["largest"].shape, bool(found.values["converged"].all())
        ((2, 2), True)
        >>> bool(found.values["smallest"].min() > -1e-5)  # the loss of a linear model is convex
        True
    """
    task = map_task(ev, directions, grid)
    rows = np.full((len(task.points), len(COLUMNS)), np.nan)
    shape = _shape(task)
    operator = planned_once(operator, 1, EXPECTED_PRODUCTS, kept=STEPS + 1)
    for path in segments(shape, shape[0] * shape[1]):
        found = along(ev, task.points, path, tol=tol, max_products=max_products, operator=operator)
        for index, row in found:
            rows[index] = row
    return task.finish(dict(zip(COLUMNS, rows.T)))


def map_task(ev: Evaluator, directions: Directions | Tensor, grid: Grid = 9) -> PointTask:
    """``curvature_map`` as data; ``finish`` takes the columns of ``along`` and adds the ratio."""
    task = grid_task(ev, directions, grid)

    def finish(values: ValuesByName) -> Surface:
        ratio, error = ratios(
            *(values[name] for name in COLUMNS[1:3]), *(values[name] for name in COLUMNS[3:5])
        )
        return task.finish({**values, "ratio": ratio, "ratio_error": error})

    return PointTask(task.points, finish)


def ratios(
    smallest: np.ndarray,
    largest: np.ndarray,
    smallest_residual: np.ndarray,
    largest_residual: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """|smallest / largest|, and a bound on its error for eigenvalues within the residuals.

    The bound is inf where the largest eigenvalue may be 0.
    """
    top, bottom = np.abs(largest), np.abs(smallest)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = bottom / top
        least = top - largest_residual
        error = (smallest_residual + ratio * largest_residual) / np.where(least > 0, least, 0.0)
    return ratio, error


def segments(shape: tuple[int, int], length: int = LENGTH) -> list[list[int]]:
    """The points of a grid, row by row in alternating direction, cut into paths.

    Args:
        length: most points of a path.

    Returns:
        Indices into the flattened grid.
    """
    if length < 1:
        raise InputError(f"length={length}: expected a number of points, 1 or more")
    index = np.arange(shape[0] * shape[1]).reshape(shape)
    index[1::2] = index[1::2, ::-1]
    order = index.reshape(-1).tolist()
    return [order[first : first + length] for first in range(0, len(order), length)]


def along(
    ev: Evaluator,
    points: Points,
    path: Sequence[int],
    *,
    tol: float,
    max_products: int,
    operator: OperatorAt = Hessian,
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, values of ``COLUMNS``) for each point of the path, in its order."""
    points, known = points.to(ev.device, ev.dtype), None  # the pairs of the point before
    rounding = None if ev.dtype != torch.float64 else 0.0  # of a product, over |lambda|max
    for index in path:
        row = np.full(len(COLUMNS), np.nan)
        theta = points.rows(index, index + 1)
        row[0] = ev.loss(theta).item()
        # All ranks take the same branch: the loss and products are sums over them.
        if np.isfinite(row[0]):
            try:
                matrix = operator(ev, theta[0])
                known = found = extremes(matrix, known, tol=tol, max_products=max_products)
                scale = np.abs(found.values).max()
                if rounding is None and scale:
                    rounding = arithmetic_error(matrix, found.vectors, seed=0) / scale
            except FloatingPointError:
                pass
            else:
                residuals = found.residuals + (rounding or 0.0) * scale
                row[1:] = *found.values, *residuals, found.converged, found.products
        yield index, row


def _shape(task: PointTask) -> tuple[int, int]:
    empty = np.full(len(task.points), np.nan)
    return task.finish(dict.fromkeys(COLUMNS, empty)).shape
