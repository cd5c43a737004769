"""Smallest and largest eigenvalue over a plane: how far is the loss from convex, and where?

Li, Xu, Taylor, Studer and Goldstein 2018, figure 7, with signs and error bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.krylov.extremal import STEPS, extremes
from hessian_spectrum.landscape.direction_grid import Grid, grid_task
from hessian_spectrum.landscape.directions import Directions
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.results import Surface
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.curvature import Curvature, Hessian
from hessian_spectrum.planning.planned_operator import planned_once

COLUMNS = (
    *("loss", "smallest", "largest", "smallest_residual", "largest_residual"),
    *("converged", "products"),
)
EXPECTED_PRODUCTS = 25  # at a point, for a plan
LENGTH = 16  # points that are visited one after another before a path starts anew
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

    The grid is visited row by row, there and back, each point starting from the two eigenvectors of
    the one before. Points whose loss or products are not finite have NaN, and the map goes on.

    Args:
        directions, grid: as for ``surface``.
        tol: of the residuals, relative to the larger |eigenvalue|: the ratio is certain to about
            tol, and right to the square of it where the eigenvalues are separated.
        max_products: for one point; one that needs more is recorded as not converged.
        operator: ``operator(ev, theta)``, the matrix; default: the Hessian. Where it has no plan,
            the plan for the first point serves all.

    Returns:
        a Surface with the values "loss", "smallest", "largest", their residuals (an eigenvalue lies
        within), "ratio", "ratio_error" (a bound), "converged" (1 or 0) and "products". Residuals
        are of the matrix as its products are formed: float32 moves eigenvalues of a deep network
        by some 1e-5 of the largest, which ``eigenpairs`` measures.

    Cost: some 15 to 50 products a point (README), memory for 81 vectors.
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
    """The points, and ``finish``, which adds the ratio; rows are ``along``'s."""
    task = grid_task(ev, directions, grid)

    def finish(values) -> Surface:
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
    """|smallest / largest|, and how far it may be from that of eigenvalues within the residuals.

    inf where the largest may be 0.
    """
    top, bottom = np.abs(largest), np.abs(smallest)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = bottom / top
        least = top - largest_residual
        error = (smallest_residual + ratio * largest_residual) / np.where(least > 0, least, 0.0)
    return ratio, error


def segments(shape: tuple[int, int], length: int = LENGTH) -> list[list[int]]:
    """All points of a grid, row by row, there and back, cut into paths of at most that length."""
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
    """(index, row of ``COLUMNS``) for each point of the path, in its order."""
    points, known = points.to(ev.device, ev.dtype), None  # of the point before
    for index in path:
        row = np.full(len(COLUMNS), np.nan)
        theta = points.rows(index, index + 1)
        row[0] = ev.loss(theta).item()
        # Known to all ranks of the evaluator: the loss and products are sums over them.
        if np.isfinite(row[0]):
            try:
                known = found = extremes(
                    operator(ev, theta[0]), known, tol=tol, max_products=max_products
                )
            except FloatingPointError:
                pass
            else:
                row[1:] = *found.values, *found.residuals, found.converged, found.products
        yield index, row


def _shape(task: PointTask) -> tuple[int, int]:
    empty = np.full(len(task.points), np.nan)
    return task.finish(dict.fromkeys(COLUMNS, empty)).shape
