"""Asymmetric valleys: is the loss steep on one side of a solution and flat on the other?

He, Huang and Yuan 2019. Slopes are derivatives of the loss along a line, exact by its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.landscape import directions as along
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.directions import Directions
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.results import Asymmetry, AveragingBias
from hessian_spectrum.landscape.tasks import described
from hessian_spectrum.loss.evaluator import Evaluator


def slopes(
    ev: Evaluator, points: Points, direction: Tensor, start: int = 0, stop: int | None = None
) -> np.ndarray:
    """<grad L(theta_i), u> at points start, ..., stop - 1, (stop - start,); NaN where it overflows.

    A pure function of the range. Cost: a gradient for each point.
    """
    stop = len(points) if stop is None else stop
    u = ev.checked(direction).double()
    points = points.to(ev.device, ev.dtype)
    rows = points.rows(start, stop)
    return np.array([(ev.gradient(theta).double() @ u).item() for theta in rows])


def asymmetry(
    ev: Evaluator,
    directions: Directions | Tensor,
    distance: Sequence[float],
) -> Asymmetry:
    """Slopes of the loss at w + l u and w - l u, away from w, for unit vectors u.

    Args:
        directions: from their origin w; vectors (k, n) from the model's own parameters.
        distance: l > 0, ascending, in units of theta.

    Cost: 2 gradients for each direction and distance.
    """
    if not isinstance(directions, Directions):
        directions = along.of_vectors(ev, directions)
    distance = _lengths(distance)
    forward, backward = [], []
    for vector in directions.vectors:
        u = _unit(vector)
        for sign, found in ((1, forward), (-1, backward)):
            points = Points.around(directions.origin, u[None], sign * distance[:, None])
            found.append(sign * slopes(ev, points, u))
    return Asymmetry(
        distance,
        np.array(forward),
        np.array(backward),
        described(ev, directions=list(directions.recipes)),
    )


def find_asymmetric(
    ev: Evaluator,
    theta: Tensor | None = None,
    *,
    distance: Sequence[float],
    num_steps: int = 20,
    angle: float = 0.3,
    seed: int = 0,
    start: Tensor | None = None,
) -> Directions:
    """A direction u of unit length along which the loss falls or stays flat, and rises along -u.

    Ascends A(u) = sum over l of (L(w - l u) - L(w + l u)) / l on the unit sphere: each step turns u
    towards the projected gradient by ``angle``, which is halved when A has not grown. Random
    directions in many dimensions are nearly symmetric; this is a search for one that is not.

    Args:
        theta: w; default: the model's own parameters.
        distance: l, in units of theta.
        angle: of the first step, in radians.
        start: (n,), where to begin; default: a Gaussian direction from (seed, 0).

    Returns:
        One direction; its recipe says the seed, and A before and after.

    Cost: for each step 2 losses and gradients for each l.
    """
    theta = ev.checked(theta)
    distance = _lengths(distance)
    require_whole(0, num_steps=num_steps)
    first = along.random(ev, theta, 1, seed=seed, normalize="none", ignore=()).vectors[0]
    u = _unit(first if start is None else ev.checked(start))
    value, slope = _lean(ev, theta, u, distance)
    begun, turns = value, 0
    for _ in range(num_steps):
        across = slope - (slope @ u) * u
        if not across.norm() > 0:
            break
        turned = np.cos(angle) * u + np.sin(angle) * across / across.norm()
        turned = turned / turned.norm()
        tried = _lean(ev, theta, turned, distance)
        if tried[0] > value:
            u, (value, slope), turns = turned, tried, turns + 1
        else:
            angle /= 2
    recipe = {
        "kind": "asymmetric",
        "seed": seed,
        "distance": distance.tolist(),
        "num_turns": turns,
        "before": begun,
        "after": value,
    }
    return Directions(theta, u[None].to(theta), (recipe,))


def averaging_bias(
    ev: Evaluator,
    iterates: Tensor | Sequence[Tensor],
    minimum: Tensor,
    directions: Directions | Tensor,
) -> AveragingBias:
    """Where SGD's iterates and their average lie of a minimum, along directions.

    In an asymmetric valley iterates spend more time on the flat side, so that their average (SWA)
    is biased towards it (He, Huang and Yuan 2019). The standard error of the mean is by
    batch means, of about sqrt(t) consecutive batches, since iterates are correlated.

    Args:
        iterates: (t, n), of SGD at a constant learning rate, in their order.
        minimum: w*, (n,).
        directions: (k, n); coordinates are along unit vectors.

    Cost: t + 2 losses.
    """
    rows = list(iterates)
    if len(rows) < 4:
        raise InputError(f"{len(rows)} iterates; expected 4 or more, to know their spread")
    rows = torch.stack([ev.given(row, "an iterate") for row in rows])
    if not isinstance(directions, Directions):
        directions = along.of_vectors(ev, directions)
    units = torch.stack([_unit(v) for v in directions.vectors])
    star = ev.given(minimum, "minimum")
    coordinates = ((rows - star).double() @ units.T).cpu().numpy()
    average = rows.double().mean(0).to(rows.dtype)
    return AveragingBias(
        coordinates=coordinates,
        standard_error=_batch_means_error(coordinates),
        losses=ev.loss(rows).cpu().numpy(),
        loss_at_average=ev.loss(average).item(),
        loss_at_minimum=ev.loss(star).item(),
        about=described(ev),
    )


# -- inside ------------------------------------------------------------------------------------


def _lengths(distance: Sequence[float]) -> np.ndarray:
    if np.ndim(distance) == 0:
        raise InputError(f"distance={distance!r}: expected lengths above 0 in a row")
    found = paths.coordinates(distance, 0.0, 1.0, "distance")
    if found[0] <= 0:
        raise InputError(f"distance={distance!r}: expected lengths above 0 in a row")
    return found


def _lean(ev: Evaluator, theta: Tensor, u: Tensor, distance: np.ndarray) -> tuple[float, Tensor]:
    """A(u), and its gradient by u."""
    value, slope = 0.0, torch.zeros_like(u)
    for l in distance:
        back, ahead = ((theta + sign * l * u).to(theta.dtype) for sign in (-1, 1))
        value += (ev.loss(back) - ev.loss(ahead)).item() / l
        slope -= (ev.gradient(back) + ev.gradient(ahead)).double()
    return value, slope


def _unit(vector: Tensor) -> Tensor:
    norm = vector.double().norm()
    if not norm > 0:
        raise InputError("a direction is zero; expected a vector with a length")
    return vector.double() / norm


def _batch_means_error(coordinates: np.ndarray) -> np.ndarray:
    """(t, k) -> (k,), the standard error of the mean over t of correlated numbers."""
    number = max(2, int(np.sqrt(len(coordinates))))
    means = np.array([part.mean(0) for part in np.array_split(coordinates, number)])
    return means.std(axis=0, ddof=1) / np.sqrt(number)
