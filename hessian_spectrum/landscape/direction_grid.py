"""A grid of points along one or two directions, as the task of a surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_whole
from hessian_spectrum.landscape import directions as along
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.directions import Directions
from hessian_spectrum.landscape.geometry import plane_positions
from hessian_spectrum.landscape.parameter_points import Points, gram
from hessian_spectrum.landscape.paths import Axis, Numbers
from hessian_spectrum.landscape.tasks import PointTask, described, surface_task
from hessian_spectrum.loss.evaluator import Evaluator

Grid = int | Sequence[int] | Sequence[float] | Sequence[Numbers]


def grid_task(ev: Evaluator, directions: Directions | Tensor, grid: Grid = 25) -> PointTask:
    """Points at origin + a d0 + b d1, as the task of a ``Surface``.

    Args:
        directions: one or two, or vectors (k, n) from the model's own parameters.
        grid: as for ``axes``.

    Raises:
        InputError: a direction is zero, two are parallel, or the grid does not fit them.
    """
    if not isinstance(directions, Directions):
        directions = along.of_vectors(ev, directions)
    a, b = axes(grid, len(directions))
    coordinates = paths.grid(a, b)[:, : len(directions)]
    inner = gram(directions.vectors)
    _require_plane(inner)
    about = described(
        ev, directions=list(directions.recipes), gram=inner.tolist(), num_axes=len(directions)
    )
    points = Points.around(directions.origin, directions.vectors, coordinates)
    return surface_task(points, a, b, about, _positions(coordinates, inner))


def axes(grid: Grid, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates along each of ``count`` directions.

    Args:
        grid: a number of points for all directions, or for each; or coordinates for each. One
            direction may have its coordinates as they are. Numbers of points are spaced evenly
            from -1 to 1.

    Returns:
        Two axes; for one direction, the second axis is the point 0.

    Raises:
        InputError: not one or two directions, or another number of axes.
    """
    if count not in (1, 2):
        raise InputError(f"{count} directions; expected one or two")
    if isinstance(grid, str) or not (is_whole(grid) or hasattr(grid, "__len__")):
        raise InputError(
            f"grid={grid!r}: expected a whole number of points, or coordinates for each direction"
        )
    given: list[Any] = [grid] * count if is_whole(grid) else list(cast(Sequence, grid))
    scalars = all(np.ndim(x) == 0 for x in given)
    if count == 1 and scalars and (len(given) > 1 or not all(map(is_whole, given))):
        given = [given]  # the coordinates themselves
    if len(given) != count:
        raise InputError(
            f"a grid of {len(given)} axes for {count} directions; expected one for each"
        )
    found = [_axis(axis, f"axis {i}") for i, axis in enumerate(given)]
    return (found[0], np.zeros(1)) if count == 1 else (found[0], found[1])


def _require_plane(inner: np.ndarray) -> None:
    lengths = np.sqrt(np.diagonal(inner))
    if not (lengths > 0).all():
        raise InputError(
            f"direction {int(lengths.argmin())} is zero; expected vectors with a length"
        )
    if len(inner) == 2 and abs(inner[0, 1]) >= (1 - 1e-12) * lengths.prod():
        raise InputError(
            "the two directions are parallel, so they span a line; pass one of them, or others"
        )


def _axis(axis: Axis, name: str) -> np.ndarray:
    """Coordinates, or their number from -1 to 1; a single point is the centre."""
    end = 0.0 if is_whole(axis) and axis == 1 else 1.0
    return paths.coordinates(axis, -end, end, name)


def _positions(coordinates: np.ndarray, inner: np.ndarray) -> np.ndarray:
    if len(inner) == 1:
        return np.column_stack([coordinates * np.sqrt(inner[0, 0]), 0 * coordinates])
    return plane_positions(coordinates, inner)
