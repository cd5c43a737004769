"""How training moved through parameter space: distances, projections, principal components.

Iterates are the rows of a (t, n) tensor. Everything is computed from their inner products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.krylov.dense_eigen import eigh
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.directions import Directions, of_vectors
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.paths import Axis
from hessian_spectrum.landscape.results import Surface, Trajectory
from hessian_spectrum.landscape.tasks import (
    PointTask,
    ValuesByName,
    compute,
    described,
    surface_task,
)
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.validation import vector_of

COLUMNS = 1 << 20  # entries of theta that are converted to float64 at a time


def trajectory(
    thetas: Tensor | Sequence[Tensor], steps: Sequence[float] | None = None, num_components: int = 2
) -> Trajectory:
    """Distances of the iterates, their projections, and their principal components.

    With w0 and wT the first and last iterate and u = wT - w0: alpha(t) = <w(t) - w0, u> / <u, u>
    and beta(t) = |w(t) - w0 - alpha(t) u| (Goodfellow, Vinyals & Saxe, ICLR 2015, section 6).
    Principal components are those of the iterates around their mean. Coordinates are
    <w(t) - wT, component>, so that the last iterate is the origin (Li et al., NeurIPS 2018,
    section 7.2).

    Args:
        thetas: iterates (t, n) in their order, two or more.
        steps: labels of the iterates, such as epochs; default: 0, 1, ...
        num_components: principal components; beyond t - 1 the coordinates are 0.

    Returns:
        A Trajectory; lengths and coordinates are in units of theta.

    Raises:
        InputError: fewer than two iterates, entries that are not finite, or wT = w0.

    Cost: t^2 n flops; no evaluation of the loss.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> found = hs.trajectory(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]))
        >>> round(found.length, 4), float(found.distance_from_start[-1])
        (2.8284, 2.0)
        >>> found.alpha.tolist(), found.beta.tolist()
        ([0.0, 0.5, 1.0], [0.0, 1.0, 0.0])
    """
    rows = iterates(thetas)
    inner = _gram(rows - rows[-1])  # relative to wT: small numbers where training converged
    count = len(rows)
    values, vectors = _components(inner)
    total = values.sum()
    k = min(num_components, count - 1)
    # <w(t) - wT, component>, where a component is a combination of the centred iterates.
    coordinates = np.zeros((count, num_components))
    scaled = vectors[:, :k] / np.sqrt(np.where(values[:k] > 0, values[:k], np.inf))
    centred = scaled - scaled.mean(axis=0)
    coordinates[:, :k] = inner @ centred
    start = _from(inner, 0)
    alpha = _along(inner)
    beta = np.sqrt(np.maximum(start - alpha**2 * start[-1], 0.0))
    return Trajectory(
        steps=np.arange(count) if steps is None else np.asarray(steps, float),
        distance_from_start=np.sqrt(start),
        distance_to_end=np.sqrt(np.diagonal(inner)),
        step_length=np.sqrt(np.maximum(_step_squares(inner), 0.0)),
        alpha=alpha,
        beta=beta,
        coordinates=coordinates,
        explained_variance=values / total if total else values,
        about={"n": rows.shape[1], "num_iterates": count},
    )


def principal_directions(
    ev: Evaluator, thetas: Tensor | Sequence[Tensor], count: int = 2
) -> Directions:
    """Unit principal components of the iterates, with the last iterate as the origin.

    The coordinates of a surface along them are those of ``trajectory(...).coordinates``.

    Args:
        thetas: iterates (t, n) in their order.
        count: components, by descending variance.

    Raises:
        InputError: the iterates span fewer than ``count`` dimensions.

    Cost: t^2 n flops.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> steps = torch.randn(6, ev.n).cumsum(0)
        >>> found = hs.principal_directions(ev, steps, count=2)
        >>> found.vectors.shape, torch.allclose(found.vectors.norm(dim=1), torch.ones(2))
        (torch.Size([2, 4]), True)
    """
    require_whole(1, count=count)
    rows = iterates(thetas)
    shifted = (rows - rows[-1]).to(ev.device)
    values, vectors = _components(_gram(shifted))
    if (values[:count] <= 1e-14 * values[0]).any() or len(values) < count:
        raise InputError(
            f"{len(rows)} iterates span fewer than {count} dimensions; ask for fewer components"
        )
    scaled = vectors[:, :count] / np.sqrt(values[:count])
    centred = torch.from_numpy((scaled - scaled.mean(axis=0)).T.copy())
    components = Points(shifted, centred.numpy()).rows(0, count)
    return of_vectors(ev, components, rows[-1], kind="principal component")


def lines_task(ev: Evaluator, thetas: Tensor | Sequence[Tensor], reach: Axis = 11) -> PointTask:
    """``family_of_lines`` as data."""
    rows = iterates(thetas)
    s = paths.coordinates(reach, 0.0, 2.0, "reach")
    inner = _gram(rows - rows[-1])
    alpha, count = _along(inner), len(rows)
    length = np.sqrt(_from(inner, 0)[-1])
    beta = np.sqrt(np.maximum(_from(inner, 0) - alpha**2 * length**2, 0.0))
    weights = np.zeros((count, len(s), count))
    for t in range(count):  # (1 - s) ((1 - alpha) w0 + alpha wT) + s w(t)
        weights[t, :, 0] += (1 - s) * (1 - alpha[t])
        weights[t, :, -1] += (1 - s) * alpha[t]
        weights[t, :, t] += s
    positions = np.stack(np.broadcast_arrays((alpha * length)[:, None], beta[:, None] * s), axis=-1)
    about = described(ev, path="family of lines", alpha=alpha.tolist(), beta=beta.tolist())
    points = Points(rows, weights.reshape(-1, count))
    return surface_task(points, np.arange(count), s, about, positions)


def family_of_lines(
    ev: Evaluator,
    thetas: Tensor | Sequence[Tensor],
    reach: Axis = 11,
    **options: Any,
) -> Surface:
    """The loss on the line from the straight path to each iterate, and beyond the iterate.

    Row t, column s is w0 + alpha(t) u + s (w(t) - w0 - alpha(t) u): s = 0 is on the straight path
    from w0 to wT, s = 1 is the iterate. ``positions`` are (alpha(t) |u|, s beta(t)), in units of
    theta. Each row lies in a plane of its own (Goodfellow, Vinyals & Saxe, ICLR 2015, section 6).

    Args:
        thetas: iterates (t, n) in their order, two or more.
        reach: the values of s, ascending, or their number, evenly spaced from 0 to 2.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Cost: a loss for each iterate and s.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> hs.family_of_lines(ev, torch.randn(4, ev.n).cumsum(0), reach=3).shape
        (4, 3)
    """
    return compute(ev, lines_task(ev, thetas, reach), **options)


def iterates_task(
    ev: Evaluator,
    thetas: Tensor | Sequence[Tensor],
    steps: Sequence[float] | None = None,
    **about: Any,
) -> PointTask:
    """``along_trajectory`` as data; ``about`` is added to what the result says of itself."""
    rows = iterates(thetas)
    found = trajectory(rows, steps)

    def finish(values: ValuesByName) -> Trajectory:
        return found.with_values(values, {**described(ev), **about})

    return PointTask(Points.of(rows), finish)


def along_trajectory(
    ev: Evaluator,
    thetas: Tensor | Sequence[Tensor],
    steps: Sequence[float] | None = None,
    **options: Any,
) -> Trajectory:
    """``trajectory``, with the loss, and where it is defined the accuracy, at each iterate.

    Args:
        thetas: iterates (t, n) in their order, two or more.
        steps: labels of the iterates, such as epochs; default: 0, 1, ...
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Cost: a loss for each iterate, and t^2 n flops.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> found = hs.along_trajectory(ev, torch.randn(4, ev.n).cumsum(0))
        >>> found.values["loss"].shape, found.coordinates.shape
        ((4,), (4, 2))
    """
    return compute(ev, iterates_task(ev, thetas, steps), **options)


def random_walk(thetas: Tensor | Sequence[Tensor], seed: int = 0) -> Tensor:
    """A random walk from the first iterate whose steps have the iterates' lengths; (t, n).

    A control for principal components: those of a random walk in many dimensions look like a
    trajectory too, and the first one explains 6 / pi^2 = 0.61 of the variance (Antognini &
    Sohl-Dickstein, NeurIPS 2018).

    Args:
        thetas: iterates (t, n) in their order, two or more.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> steps = torch.randn(5, 8).cumsum(0)
        >>> walk = hs.random_walk(steps, seed=1)
        >>> torch.allclose(walk.diff(dim=0).norm(dim=1), steps.diff(dim=0).norm(dim=1))
        True
    """
    rows = iterates(thetas)
    lengths = np.sqrt(np.maximum(_step_squares(_gram(rows - rows[-1])), 0.0))[1:]
    noise = gaussian_probes(
        Layout.of_size(rows.shape[1]), range(len(lengths)), seed, torch.float64, rows.device
    )
    noise *= torch.from_numpy(lengths).to(noise)[:, None] / noise.norm(dim=1, keepdim=True)
    walk = torch.cat([torch.zeros_like(noise[:1]), noise.cumsum(0)])
    return (rows[:1].double() + walk).to(rows.dtype)


def iterates(thetas: Tensor | Sequence[Tensor]) -> Tensor:
    """Iterates as one tensor (t, n).

    Raises:
        InputError: fewer than two, entries that are not finite, or the last equals the first.
    """
    if isinstance(thetas, Tensor):
        rows = thetas
    else:
        vectors = [vector_of(theta) for theta in thetas]
        if len({(v.shape, v.dtype, v.device) for v in vectors}) != 1:
            raise InputError("iterates of several shapes or dtypes, or none; expected (t, n)")
        rows = torch.stack([v.detach() for v in vectors])
    if rows.ndim != 2 or len(rows) < 2:
        raise InputError(f"iterates of shape {tuple(rows.shape)}; expected (t, n) with t >= 2")
    if not rows.isfinite().all():
        first = int((~rows.isfinite()).any(1).nonzero()[0])
        raise InputError(f"iterate {first} has NaN or infinite entries; leave it out")
    if torch.equal(rows[0], rows[-1]):
        raise InputError("the last iterate equals the first, so they do not define a line")
    return rows.detach()


# -- inside: inner is the Gram matrix of w(t) - wT, (t, t) ---------------------------------------


def _gram(rows: Tensor) -> np.ndarray:
    """Inner products of the rows, (t, t), float64; a bounded number of columns at a time."""
    parts = (part.double() for part in rows.split(COLUMNS, dim=1))
    total = sum((part @ part.T for part in parts), start=torch.zeros((), dtype=torch.float64))
    return total.cpu().numpy()


def _components(inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, descending, and eigenvectors of the centred Gram matrix.

    Eigenvalues are t times the variances along the principal components; eigenvectors are weights
    of the centred iterates.
    """
    centre = np.eye(len(inner)) - 1 / len(inner)
    values, vectors = eigh(centre @ inner @ centre)
    order = np.argsort(values)[::-1][: len(inner) - 1]
    return np.maximum(values[order], 0.0), vectors[:, order]


def _from(inner: np.ndarray, i: int) -> np.ndarray:
    """|w(t) - w(i)|^2 for each t."""
    diagonal = np.diagonal(inner)
    return np.maximum(diagonal - 2 * inner[i] + inner[i, i], 0.0)


def _along(inner: np.ndarray) -> np.ndarray:
    """alpha(t) = <w(t) - w0, wT - w0> / |wT - w0|^2; the row of wT in ``inner`` is 0."""
    return 1 - inner[0] / inner[0, 0]


def _step_squares(inner: np.ndarray) -> np.ndarray:
    """|w(t) - w(t - 1)|^2, with 0 for the first iterate."""
    diagonal = np.diagonal(inner)
    squares = diagonal[1:] - 2 * np.diagonal(inner, 1) + diagonal[:-1]
    return np.concatenate([[0.0], squares])
