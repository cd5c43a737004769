"""The loss between consecutive iterates of SGD: barriers, and the floor of the valley."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.parameter_points import Points, stacked
from hessian_spectrum.landscape.results import Barriers
from hessian_spectrum.landscape.rounding import rounding
from hessian_spectrum.landscape.tasks import PointTask, ValuesByName, compute, described
from hessian_spectrum.loss.evaluator import Evaluator

ENTRIES = 1 << 24  # of the iterates that are converted to float64 at a time


def barriers(
    ev: Evaluator,
    thetas: Tensor | Sequence[Tensor],
    num_points: int = 10,
    *,
    steps: Sequence[float] | None = None,
    epochs: Sequence[float] | None = None,
    **options: Any,
) -> Barriers:
    """Values at both ends of each segment between consecutive iterates, and between them.

    Xing, Arpit, Tsirigotis & Bengio 2018 (arXiv:1802.08770), "A walk with SGD", who evaluate 10
    points between iterates: the loss of all of ``ev``'s data there tells whether an update has
    crossed a barrier, or the floor of a valley.

    Args:
        thetas: iterates (t, n) in their order, two or more.
        num_points: points between two iterates, evenly spaced.
        steps: ascending labels of the iterates; default: 0, 1, ... Iterates that are farther apart
            than the closest ones are not consecutive, and there is no segment between them: so
            windows of a longer run are given in one call.
        epochs: number of finished epochs at each iterate. The update that leads away from an
            iterate belongs to the epoch after them.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Returns:
        Barriers; with k iterates in one window, k - 1 segments.

    Raises:
        InputError: fewer than two iterates, entries that are not finite, labels that do not
            ascend.

    Cost: ``num_points`` losses for each segment, and one for each iterate. Memory for all iterates.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> found = hs.barriers(ev, torch.randn(5, ev.n).cumsum(0))
        >>> found.loss.shape, found.count().barriers  # the loss of a linear model is convex
        ((4, 12), 0)
    """
    return compute(ev, barriers_task(ev, thetas, num_points, steps, epochs), **options)


def barriers_task(
    ev: Evaluator,
    thetas: Tensor | Sequence[Tensor],
    num_points: int = 10,
    steps: Sequence[float] | None = None,
    epochs: Sequence[float] | None = None,
    **about: Any,
) -> PointTask:
    """``barriers`` as data; ``about`` is added to what the result says of itself."""
    require_whole(1, num_points=num_points)
    rows = _rows(ev, thetas)
    labels = _labels(len(rows), steps, "steps", np.arange(len(rows)))
    finished = _labels(len(rows), epochs, "epochs", np.full(len(rows), np.nan))
    gaps = np.diff(labels)
    if not (gaps > 0).all():
        raise InputError("steps do not ascend; give the iterates in their order, each once")
    first = np.flatnonzero(gaps == gaps.min())
    t = paths.window(0.0, 1.0, num_points + 2)
    weights, places = _chain(first, len(rows), t)
    lengths, cosines = _updates(rows)
    told = described(ev, eps=torch.finfo(ev.dtype).eps, **about)

    def finish(values: ValuesByName) -> Barriers:
        grids = {name: array[places] for name, array in values.items()}
        return Barriers(
            t=t,
            start=labels[first],
            stop=labels[first + 1],
            epoch=finished[first] + 1,
            step_length=lengths[first],
            cosine=np.where(np.isin(first - 1, first), cosines[first], np.nan),
            rounding=rounding(grids["loss"], told["eps"]),
            values=grids,
            about=told,
        )

    return PointTask(Points(rows, weights), finish)


def _rows(ev: Evaluator, thetas: Tensor | Sequence[Tensor]) -> Tensor:
    """(t, n), in the evaluator's dtype and on its device; a matrix of them is not copied."""
    if len(thetas) < 2:
        raise InputError(f"{len(thetas)} iterates; expected two or more")
    if not isinstance(thetas, Tensor):
        return stacked(ev, {f"iterate {i}": theta for i, theta in enumerate(thetas)})
    for i, theta in enumerate(thetas):
        ev.given(theta, f"iterate {i}")
    return thetas.detach().to(ev.device, ev.dtype)


def _labels(
    count: int, given: Sequence[float] | None, name: str, default: np.ndarray
) -> np.ndarray:
    found = np.asarray(default if given is None else given, dtype=np.float64)
    if found.shape != (count,):
        raise InputError(f"{name} of shape {found.shape} for {count} iterates; expected one each")
    return found


def _chain(first: np.ndarray, count: int, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of all segments in the order of the iterates, an iterate between two of them once.

    Args:
        first: (segments,), ascending, the iterate that each segment starts from.
        count: of the iterates.
        t: (points,), places on a segment, its ends included.

    Returns:
        Weights (p, count) of the iterates at each point, and the index (segments, points) of each
        segment's points among them.
    """
    along = paths.linear(t)
    weights: list[np.ndarray] = []
    places = np.empty((len(first), len(t)), dtype=int)
    for segment, i in enumerate(first):
        follows = segment > 0 and first[segment - 1] == i - 1
        rows = np.zeros((len(t) - follows, count))
        rows[:, i : i + 2] = along[int(follows) :]
        places[segment] = len(weights) - follows + np.arange(len(t))
        weights.extend(rows)
    return np.array(weights), places


def _updates(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """|w(i + 1) - w(i)|, and its cosine with the update before; (t - 1,) each, float64.

    The first cosine, and that of an update of length 0, is NaN.
    """
    squares = rows.new_zeros(len(rows) - 1, dtype=torch.float64)
    products = rows.new_zeros(len(rows) - 2, dtype=torch.float64)
    for part in rows.split(max(1, ENTRIES // len(rows)), dim=1):
        updates = part.double().diff(dim=0)
        squares += updates.square().sum(1)
        products += (updates[1:] * updates[:-1]).sum(1)
    lengths = squares.sqrt().cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = products.cpu().numpy() / (lengths[1:] * lengths[:-1])
    return lengths, np.concatenate([[np.nan], np.where(np.isfinite(cosines), cosines, np.nan)])
