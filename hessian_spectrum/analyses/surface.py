"""The loss on a grid along one or two directions, and the same in random planes to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hessian_spectrum._core.errors import require_whole
from hessian_spectrum.landscape import directions as along
from hessian_spectrum.landscape.direction_grid import Grid, grid_task
from hessian_spectrum.landscape.directions import Directions
from hessian_spectrum.landscape.results import Surface
from hessian_spectrum.landscape.tasks import compute
from hessian_spectrum.loss.evaluator import Evaluator


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
    return compute(ev, grid_task(ev, directions, grid), **options)


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
