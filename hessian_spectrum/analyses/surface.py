"""The loss on a grid along one or two directions, and the same in random planes to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_whole, require_whole
from hessian_spectrum.landscape import directions as along
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.directions import Directions
from hessian_spectrum.landscape.geometry import plane_positions
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.results import Surface
from hessian_spectrum.landscape.tasks import PointTask, Values, compute, described, gram
from hessian_spectrum.loss.evaluator import Evaluator

Grid = Sequence[Sequence[float]] | Sequence[float] | int | tuple[int, ...]


def surface_task(ev: Evaluator, directions: Directions | Tensor, grid: Grid = 25) -> PointTask:
    """``surface`` as data, for a runner; points run over the second axis first."""
    if not isinstance(directions, Directions):
        directions = along.of_vectors(ev, directions)
    a, b = axes(grid, len(directions))
    coordinates = paths.grid(a, b)[:, : len(directions)]
    inner = gram(directions.vectors)
    _require_plane(inner)
    about = described(
        ev, directions=list(directions.recipes), gram=inner.tolist(), num_axes=len(directions)
    )
    positions = _positions(coordinates, inner).reshape(len(a), len(b), 2)

    def finish(values: Values) -> Surface:
        grids = {name: array.reshape(len(a), len(b)) for name, array in values.items()}
        return Surface(a, b, grids, about, positions)

    return PointTask(Points.around(directions.origin, directions.vectors, coordinates), finish)


def surface(
    ev: Evaluator, directions: Directions | Tensor, grid: Grid = 25, **options: Any
) -> Surface:
    """Values at theta + a d0 + b d1 on a grid of a and b, or along a alone for one direction.

    Values that overflow are recorded as inf or NaN; ``Surface.num_invalid`` counts them.

    Args:
        directions: of ``hessian_spectrum.directions``, which say the origin, or vectors (k, n) from
            the model's own parameters; one or two.
        grid: one sequence of coordinates for each direction, or how many from -1 to 1: ``25``,
            ``(51, 21)``.
        **options: of ``compute``: test, quantities, plan.

    Cost: a loss for each grid point; many at once where that is faster.
    """
    return compute(ev, surface_task(ev, directions, grid), **options)


def random_planes(
    ev: Evaluator,
    theta: Tensor | None = None,
    num_planes: int = 3,
    grid: Grid = 25,
    *,
    seed: int = 0,
    normalize: str = "filter",
    ignore: Sequence[str] = along.IGNORABLE,
    **options: Any,
) -> list[Surface]:
    """Surfaces in random planes through theta: what a special plane is to be compared with.

    Plane i has the random directions 2 i and 2 i + 1 of the seed.
    """
    require_whole(1, num_planes=num_planes)
    surfaces = []
    for i in range(num_planes):
        pair = along.random(
            ev, theta, 2, seed=seed, first=2 * i, normalize=normalize, ignore=ignore
        )
        surfaces.append(surface(ev, pair, grid, **options))
    return surfaces


def axes(grid: Grid, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates along each direction; of one direction, the second axis is the point 0.

    Raises:
        InputError: not one or two directions, or not as many axes.
    """
    if count not in (1, 2):
        raise InputError(f"{count} directions; expected one or two")
    if is_whole(grid):
        grid = (grid,) * count
    if isinstance(grid, str) or not hasattr(grid, "__len__"):
        raise InputError(
            f"grid={grid!r}: expected a whole number of points, or coordinates for each direction"
        )
    grid = list(grid)
    scalars = all(np.ndim(x) == 0 for x in grid)
    if count == 1 and scalars and (len(grid) > 1 or not all(map(is_whole, grid))):
        grid = [grid]  # the coordinates themselves
    if len(grid) != count:
        raise InputError(
            f"a grid of {len(grid)} axes for {count} directions; expected one for each"
        )
    found = [_axis(axis, f"axis {i}") for i, axis in enumerate(grid)]
    return (found[0], np.zeros(1)) if count == 1 else (found[0], found[1])


def _require_plane(inner: np.ndarray) -> None:
    lengths = np.sqrt(np.diagonal(inner))
    if not (lengths > 0).all():
        raise InputError(
            f"direction {int(lengths.argmin())} is zero; expected vectors with a length"
        )
    if len(inner) == 2 and abs(inner[0, 1]) >= (1 - 1e-12) * lengths.prod():
        raise InputError("the two directions are parallel: they span a line; give one, or others")


def _axis(axis: Sequence[float] | int, name: str) -> np.ndarray:
    """Coordinates, or how many from -1 to 1; a single one is the centre."""
    end = 0.0 if is_whole(axis) and axis == 1 else 1.0
    return paths.coordinates(axis, -end, end, name)


def _positions(coordinates: np.ndarray, inner: np.ndarray) -> np.ndarray:
    if len(inner) == 1:
        return np.column_stack([coordinates * np.sqrt(inner[0, 0]), 0 * coordinates])
    return plane_positions(coordinates, inner)
