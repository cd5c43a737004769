"""How training moved through parameter space: components, the line to the end, distances.

Iterates are rows (t, n), whole; what is computed of them needs their inner products only.
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
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.directions import Directions, of_vectors
from hessian_spectrum.landscape.parameter_points import Points
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

COLUMNS = 1 << 20  # entries of theta at a time in float64


def trajectory(
    thetas: Tensor | Sequence[Tensor], steps: Sequence[float] | None = None, num_components: int = 2
) -> Trajectory:
    """Distances, the line from start to end, and principal components of the iterates.

    With w0 and wT the first and last iterate and u = wT - w0: alpha(t) = <w(t) - w0, u> / <u, u>
    and beta(t) = |w(t) - w0 - alpha(t) u| (Goodfellow, Vinyals and Saxe 2015, section 6).
    Components are those of the iterates around their mean; coordinates are <w(t) - wT, component>,
    so that the last iterate is the origin of the plane (Li et al. 2018, section 7.2).

    Args:
        thetas: iterates (t, n) in their order, two or more.
        steps: what to call them, such as epochs; default: 0, 1, ...

    Cost: t^2 n operations.
    """
    rows = iterates(thetas)
    inner = _gram(rows - rows[-1])  # around the last: small, where it has converged
    count = len(rows)
    values, vectors = _components(inner)
    total = values.sum()
    k = min(num_components, count - 1)
    # <w(t) - wT, V^T a / s>: rows of the centred iterates are combinations of the components.
    coordinates = np.zeros((count, num_components))
    scaled = vectors[:, :k] / np.sqrt(np.where(values[:k] > 0, values[:k], np.inf))
    centred = scaled - scaled.mean(axis=0)
    coordinates[:, :k] = inner @ centred
    start = _from(inner, 0)
    along = _along(inner)
    shape = np.sqrt(np.maximum(start - along**2 * start[-1], 0.0))
    return Trajectory(
        steps=np.arange(count) if steps is None else np.asarray(steps, float),
        distance_from_start=np.sqrt(start),
        distance_to_end=np.sqrt(np.diagonal(inner)),
        step_length=np.sqrt(np.maximum(_step_squares(inner), 0.0)),
        alpha=along,
        beta=shape,
        coordinates=coordinates,
        explained_variance=values / total if total else values,
        about={"n": rows.shape[1], "num_iterates": count},
    )


def principal_directions(
    ev: Evaluator, thetas: Tensor | Sequence[Tensor], count: int = 2
) -> Directions:
    """The iterates' principal components, of unit length, from the last iterate.

    In a surface along them coordinates are those of ``trajectory(...).coordinates``.

    Raises:
        InputError: the iterates span fewer dimensions.
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


def lines_task(
    ev: Evaluator, thetas: Tensor | Sequence[Tensor], reach: Sequence[float] | int = 11
) -> PointTask:
    rows = iterates(thetas)
    reach = paths.coordinates(reach, 0.0, 2.0, "reach")
    inner = _gram(rows - rows[-1])
    alpha, count = _along(inner), len(rows)
    length = np.sqrt(_from(inner, 0)[-1])
    beta = np.sqrt(np.maximum(_from(inner, 0) - alpha**2 * length**2, 0.0))
    weights = np.zeros((count, len(reach), count))
    for t in range(count):  # (1 - s) ((1 - alpha) w0 + alpha wT) + s w(t)
        weights[t, :, 0] += (1 - reach) * (1 - alpha[t])
        weights[t, :, -1] += (1 - reach) * alpha[t]
        weights[t, :, t] += reach
    positions = np.stack(
        np.broadcast_arrays((alpha * length)[:, None], beta[:, None] * reach), axis=-1
    )
    about = described(ev, path="family of lines", alpha=alpha.tolist(), beta=beta.tolist())
    points = Points(rows, weights.reshape(-1, count))
    return surface_task(points, np.arange(count), reach, about, positions)


def family_of_lines(
    ev: Evaluator,
    thetas: Tensor | Sequence[Tensor],
    reach: Sequence[float] | int = 11,
    **options: Any,
) -> Surface:
    """The loss on the lines that lead from the straight path to each iterate, and beyond.

    Row t, column s is w0 + alpha(t) u + s (w(t) - w0 - alpha(t) u): 0 on the straight path from w0
    to wT, 1 at the iterate. ``positions`` are (alpha(t) |u|, s beta(t)). The rows lie in different
    planes (Goodfellow, Vinyals and Saxe 2015, section 6, their figures of (alpha, beta)).

    Args:
        reach: s, or how many from 0 to 2.
    """
    return compute(ev, lines_task(ev, thetas, reach), **options)


def iterates_task(
    ev: Evaluator, thetas: Tensor | Sequence[Tensor], steps: Sequence[float] | None = None
) -> PointTask:
    rows = iterates(thetas)
    found = trajectory(rows, steps)

    def finish(values: ValuesByName) -> Trajectory:
        return found.with_values(values, described(ev))

    return PointTask(Points.of(rows), finish)


def along_trajectory(
    ev: Evaluator,
    thetas: Tensor | Sequence[Tensor],
    steps: Sequence[float] | None = None,
    **options: Any,
) -> Trajectory:
    """``trajectory``, with the loss and what else there is at each iterate."""
    return compute(ev, iterates_task(ev, thetas, steps), **options)


def random_walk(thetas: Tensor | Sequence[Tensor], seed: int = 0) -> Tensor:
    """A walk from the same start with steps as long as these, each in a random direction; (t, n).

    The control: components of random walks in many dimensions look like a trajectory too (Antognini
    and Sohl-Dickstein 2018): the first explains 6 / pi^2 = 0.61 of the variance.
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
    """(t, n), two or more, finite, the last one not the first."""
    if isinstance(thetas, Tensor):
        rows = thetas
    else:
        rows = [vector_of(t) for t in thetas]
        if len({(t.shape, t.dtype, t.device) for t in rows}) != 1:
            raise InputError("iterates of several shapes or dtypes, or none; expected (t, n)")
        rows = torch.stack([t.detach() for t in rows])
    if rows.ndim != 2 or len(rows) < 2:
        raise InputError(f"iterates of shape {tuple(rows.shape)}; expected (t, n) with t >= 2")
    if not rows.isfinite().all():
        first = int((~rows.isfinite()).any(1).nonzero()[0])
        raise InputError(f"iterate {first} has NaN or infinite entries; leave such ones out")
    if torch.equal(rows[0], rows[-1]):
        raise InputError("the last iterate is the first: no line leads from start to end")
    return rows.detach()


# -- inside: everything from inner products of w(t) - wT ------------------------------------------


def _gram(rows: Tensor) -> np.ndarray:
    """(t, t), float64, some columns at a time."""
    total = sum(part.double() @ part.double().T for part in rows.split(COLUMNS, dim=1))
    return total.cpu().numpy()


def _components(inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances along the principal components, times t, descending, and weights of the centred
    iterates in them: eigenvalues and eigenvectors of the centred Gram matrix."""
    centre = np.eye(len(inner)) - 1 / len(inner)
    values, vectors = np.linalg.eigh(centre @ inner @ centre)
    order = np.argsort(values)[::-1][: len(inner) - 1]
    return np.maximum(values[order], 0.0), vectors[:, order]


def _from(inner: np.ndarray, i: int) -> np.ndarray:
    """|w(t) - w(i)|^2 for each t."""
    diagonal = np.diagonal(inner)
    return np.maximum(diagonal - 2 * inner[i] + inner[i, i], 0.0)


def _along(inner: np.ndarray) -> np.ndarray:
    """alpha(t) = <w(t) - w0, wT - w0> / |wT - w0|^2; the inner products of wT - wT are 0."""
    return 1 - inner[0] / inner[0, 0]


def _step_squares(inner: np.ndarray) -> np.ndarray:
    """|w(t) - w(t - 1)|^2, and 0 first."""
    diagonal = np.diagonal(inner)
    squares = diagonal[1:] - 2 * np.diagonal(inner, 1) + diagonal[:-1]
    return np.concatenate([[0.0], squares])
