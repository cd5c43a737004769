"""The loss on a grid along one or two directions, and in random planes for comparison."""

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

    Li, Xu, Taylor, Studer & Goldstein, NeurIPS 2018, section 4, with filter-normalized directions
    from ``hs.directions.random``. Values that overflow are recorded as inf or NaN;
    ``Surface.num_invalid`` counts them.

    Args:
        directions: one or two directions made by ``hs.directions``, with their origin theta; or
            vectors (k, n) from the model's own parameters.
        grid: a sequence of coordinates for each direction, or their number, evenly spaced from -1
            to 1: ``25``, ``(51, 21)``. Coordinates are in units of the directions' lengths.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Returns:
        A Surface with values of shape (a, b), and the points' Euclidean coordinates in units of
        theta as ``positions``.

    Raises:
        InputError: a direction is zero, two are parallel, or the grid does not fit them.

    Cost: a loss for each grid point; many points share a pass over the data where that is faster.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> found = hs.surface(ev, hs.directions.random(ev, count=2, seed=0), grid=(5, 3))
        >>> found.loss.shape, found.num_invalid
        ((5, 3), 0)
        >>> bool(abs(found.loss[2, 1] - ev.loss().item()) < 1e-6)  # the centre is the model
        True
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
    """Surfaces in random planes through theta, with which a chosen plane can be compared.

    Plane i is along the random directions 2 i and 2 i + 1 of the seed.

    Args:
        theta: the origin, (n,); default: the model's own parameters.
        grid: as for ``surface``.
        normalize, ignore: as for ``hs.directions.random``.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Cost: ``num_planes`` surfaces.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> [plane.shape for plane in hs.random_planes(ev, num_planes=2, grid=3)]
        [(3, 3), (3, 3)]
    """
    require_whole(1, num_planes=num_planes)
    surfaces = []
    for i in range(num_planes):
        pair = along.random(
            ev, theta, 2, seed=seed, first=2 * i, normalize=normalize, ignore=ignore
        )
        surfaces.append(surface(ev, pair, grid, **options))
    return surfaces
