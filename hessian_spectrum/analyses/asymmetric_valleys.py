"""Asymmetric valleys: is the loss steep on one side of a solution and flat on the other?

He, Huang & Yuan, NeurIPS 2019. Slopes are derivatives of the loss along a line, from its gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.distributed.agreement import require_same_call
from hessian_spectrum.landscape import directions as along
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.directions import Directions
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.paths import Numbers
from hessian_spectrum.landscape.results import Asymmetry, AveragingBias
from hessian_spectrum.landscape.tasks import described
from hessian_spectrum.loss.evaluator import Evaluator

FEWEST_BATCHES = 4  # of a standard error
LEAST_MEMORIES = 10  # lengths of SGD's memory in a series whose standard error can be told


def slopes(
    ev: Evaluator, points: Points, direction: Tensor, start: int = 0, stop: int | None = None
) -> np.ndarray:
    """<grad L(theta_i), u> at points start, ..., stop - 1; (stop - start,), NaN where it overflows.

    A pure function of the range.

    Args:
        direction: u, (n,), of unit length.

    Cost: a gradient for each point.
    """
    stop = len(points) if stop is None else stop
    u = ev.checked(direction).double()
    points = points.to(ev.device, ev.dtype)
    rows = points.rows(start, stop)
    return np.array([(ev.gradient(theta).double() @ u).item() for theta in rows])


def asymmetry(
    ev: Evaluator,
    directions: Directions | Tensor,
    distance: Numbers,
) -> Asymmetry:
    """Slopes of the loss at w + l u and w - l u, away from w, for unit vectors u.

    Args:
        directions: u with their origin w, of any length above 0; or vectors (k, n) from the
            model's own parameters. They are normalized to unit length.
        distance: l > 0, ascending, in units of theta.

    Returns:
        Slopes d L(w + l u) / d l and d L(w - l u) / d l, each (k, distances), in units of the
        loss per unit of theta; NaN where the gradient overflows.

    Raises:
        InputError: a direction is zero, or a distance is not above 0.

    Cost: two gradients for each direction and distance.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> found = hs.asymmetry(ev, torch.eye(ev.n)[:2], distance=[0.1, 0.2])
        >>> found.forward.shape, found.is_asymmetric(r=0.3, p=0.1, c=2.0, zeta=0.05).shape
        ((2, 2), (2,))
    """
    if not isinstance(directions, Directions):
        directions = along.of_vectors(ev, directions)
    lengths = _lengths(distance)
    w, vectors = directions.origin, directions.vectors
    require_same_call(ev.world, "asymmetry", origin=w, vectors=vectors, distance=lengths)
    forward: list[np.ndarray] = []
    backward: list[np.ndarray] = []
    for vector in directions.vectors:
        u = _unit(vector)
        for sign, found in ((1, forward), (-1, backward)):
            points = Points.around(directions.origin, u[None], sign * lengths[:, None])
            found.append(sign * slopes(ev, points, u))
    return Asymmetry(
        lengths,
        np.array(forward),
        np.array(backward),
        described(ev, directions=list(directions.recipes)),
    )


def find_asymmetric(
    ev: Evaluator,
    theta: Tensor | None = None,
    *,
    distance: Numbers,
    num_steps: int = 20,
    angle: float = 0.3,
    seed: int = 0,
    start: Tensor | None = None,
) -> Directions:
    """A unit direction u along which the loss is flat or falls, while it rises along -u.

    Maximizes A(u) = sum over l of (L(w - l u) - L(w + l u)) / l on the unit sphere: each step
    rotates u by ``angle`` towards the projected gradient, and halves the angle if A did not grow.
    Random directions in many dimensions are nearly symmetric, hence the search.

    Args:
        theta: w, (n,); default: the model's own parameters.
        distance: l > 0, ascending, in units of theta.
        angle: of the first step, in radians.
        seed: of the initial direction.
        start: (n,), the initial direction; default: a Gaussian direction from (seed, 0).

    Returns:
        One direction. Its recipe has the seed, and A "before" and "after" the search.

    Raises:
        InputError: the initial direction is zero, or a distance is not above 0.

    Cost: two losses and two gradients for each step and l.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> found = hs.find_asymmetric(ev, distance=[0.1, 0.2], num_steps=3)
        >>> bool(found.recipes[0]["after"] >= found.recipes[0]["before"])
        True
    """
    theta = ev.checked(theta)
    lengths = _lengths(distance)
    require_whole(0, num_steps=num_steps)
    require_same_call(
        ev.world,
        "find_asymmetric",
        theta=theta,
        distance=lengths,
        num_steps=num_steps,
        angle=angle,
        seed=seed,
        start=start,
    )
    first = along.random(ev, theta, 1, seed=seed, normalize="none", ignore=()).vectors[0]
    u = _unit(first if start is None else ev.checked(start))
    value, slope = _asymmetry_and_slope(ev, theta, u, lengths)
    before, turns = value, 0
    for _ in range(num_steps):
        across = slope - (slope @ u) * u
        if not across.norm() > 0:
            break
        turned = np.cos(angle) * u + np.sin(angle) * across / across.norm()
        turned = turned / turned.norm()
        tried = _asymmetry_and_slope(ev, theta, turned, lengths)
        if tried[0] > value:
            u, (value, slope), turns = turned, tried, turns + 1
        else:
            angle /= 2
    recipe = {
        "kind": "asymmetric",
        "seed": seed,
        "distance": lengths.tolist(),
        "num_turns": turns,
        "before": before,
        "after": value,
    }
    return Directions(theta, u[None].to(theta), (recipe,))


def averaging_bias(
    ev: Evaluator,
    iterates: Tensor | Sequence[Tensor],
    minimum: Tensor,
    directions: Directions | Tensor,
) -> AveragingBias:
    """Coordinates of SGD's iterates and of their average relative to a minimum.

    In an asymmetric valley the iterates spend more time on the flat side, so that their average
    (SWA) is biased towards it (He, Huang & Yuan, NeurIPS 2019). The iterates are correlated, so
    the standard error of their mean is that of batch means, of sqrt(t) batches or fewer. Where t
    is less than ten times SGD's memory, a warning says that it may be much too small.

    Args:
        iterates: (t, n), of SGD at a constant learning rate, in their order; four or more.
        minimum: w*, (n,).
        directions: (k, n), normalized to unit length.

    Returns:
        Coordinates <w(t) - w*, u_j>, (t, k), in units of theta, and the losses of the iterates,
        of their average and of the minimum.

    Raises:
        InputError: fewer than four iterates, or a zero direction.

    Cost: t + 2 losses.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> iterates = ev.theta + 0.1 * torch.randn(16, ev.n)
        >>> found = hs.averaging_bias(ev, iterates, ev.theta, torch.eye(ev.n)[:1])
        >>> found.coordinates.shape, found.bias.shape, found.standard_error.shape
        ((16, 1), (1,), (1,))
    """
    if len(iterates) < 4:
        raise InputError(f"{len(iterates)} iterates; expected 4 or more for a standard error")
    rows = torch.stack([ev.given(row, "an iterate") for row in iterates])
    if not isinstance(directions, Directions):
        directions = along.of_vectors(ev, directions)
    units = torch.stack([_unit(v) for v in directions.vectors])
    star = ev.given(minimum, "minimum")
    require_same_call(ev.world, "averaging_bias", iterates=rows, minimum=star, directions=units)
    coordinates = ((rows - star).double() @ units.T).cpu().numpy()
    memory = _memory(coordinates)
    if len(coordinates) < LEAST_MEMORIES * memory:
        logging.getLogger("hessian_spectrum").warning(
            "%d iterates, of which about %.0f count as one: the standard error of the bias may be "
            "much too small; take more of them, or farther apart",
            *(len(coordinates), memory),
        )
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


def _lengths(distance: Numbers) -> np.ndarray:
    found = None
    if np.ndim(distance):
        found = paths.coordinates(distance, 0.0, 1.0, "distance")
    if found is None or found[0] <= 0:
        raise InputError(f"distance={distance!r}: expected a sequence of lengths above 0")
    return found


def _asymmetry_and_slope(
    ev: Evaluator, theta: Tensor, u: Tensor, distance: np.ndarray
) -> tuple[float, Tensor]:
    """A(u), and its gradient by u, (n,)."""
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
    """(t, k) -> (k,), the standard error of the mean over t of correlated numbers.

    The largest of those by about sqrt(t) batches, half as many, and so on to four: batches shorter
    than the memory of the series are correlated as well, and their error is too small.
    """
    number = max(2, int(np.sqrt(len(coordinates))))
    found = [_error_of_batches(coordinates, number)]
    while number >= 2 * FEWEST_BATCHES:
        number //= 2
        found.append(_error_of_batches(coordinates, number))
    return np.max(found, axis=0)


def _error_of_batches(coordinates: np.ndarray, number: int) -> np.ndarray:
    means = np.array([part.mean(0) for part in np.array_split(coordinates, number)])
    return means.std(axis=0, ddof=1) / np.sqrt(number)


def _memory(coordinates: np.ndarray) -> float:
    """Iterates that count as one, of the direction with the most: (1 + r) / (1 - r) of an AR(1).

    r is the correlation of consecutive iterates.
    """
    centred = coordinates - coordinates.mean(0)
    squares = (centred * centred).sum(0)
    moves = squares > 0
    if not moves.any():
        return 1.0
    r = (centred[1:] * centred[:-1]).sum(0)[moves] / squares[moves]
    return float(((1 + r) / (1 - r)).max())
