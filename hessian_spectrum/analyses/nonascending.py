"""From a point to lower loss along a path on which the loss never rises, beyond its rounding."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.analyses.critical import whole_spectrum
from hessian_spectrum.distributed.agreement import require_same_call
from hessian_spectrum.distributed.arrays import length
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.curvature import Hessian

Array = NDArray[np.float64]

FALL = 1e-3  # of the loss: what is lower
MOVES = 100
ROUNDING = 64.0  # times eps and the loss
STEPS = 2.0 ** np.arange(-10, 3)  # lengths that are tried, in units of the start's size
SAMPLES = 33  # of each segment, where it is checked
COMBINATIONS = 8  # random null directions that are tried, beside sparse ones
ZERO = 1e-9  # entries of sparse null vectors that are smaller are 0


@dataclass(frozen=True, eq=False)
class NonascendingPath:
    """A polygon from a point, and the loss along it."""

    points: Tensor  # (m, n), float64: its corners, the start first
    loss: Array  # (m,), at the corners
    rise: float  # the most by which the loss, sampled on all segments, exceeds a value before
    rounding: float  # of the loss: a rise of no more is none
    outcome: str  # "lower", or "no way": none of the directions that were tried led on

    @property
    def is_lower(self) -> bool:
        """Does it lead to lower loss without a rise?"""
        return self.outcome == "lower" and self.rise <= self.rounding

    def __str__(self) -> str:
        led = "lower loss" if self.outcome == "lower" else "no lower loss that was found"
        return (
            f"{len(self.points) - 1} straight moves to {led}: {self.loss[0]:.6g} to "
            f"{self.loss[-1]:.6g}, the largest rise on the way {self.rise:.2g} (rounding "
            f"{self.rounding:.2g})"
        )


def nonascending_path(
    ev: Evaluator,
    theta: Tensor | None = None,
    *,
    fall: float = FALL,
    max_moves: int = MOVES,
    seed: int = 0,
) -> NonascendingPath:
    """Straight moves from theta to a loss lower by ``fall``, the loss never rising on the way.

    A point from which there is such a path lies in no regional local minimum, and where the path
    is level at first the point may be a local minimum in the usual sense, a plain of equal loss
    around it. (Hamey 1998, "XOR has no local minima", calls the former regional.)

    A move goes along the direction on which the loss falls most: against the gradient, along
    eigenvectors of negative curvature, or along null directions, where terms of higher order may
    fall. Where it falls on none of them, the move is along a null direction on which it stays level
    to rounding, chosen at random; sparse ones are among them, in which a parameter that has no
    effect moves alone.

    Args:
        theta: shape (n,), the same on every rank; default: the model's own parameters.
        fall: of the loss at theta, the share by which the end is lower.
        max_moves: at most so many.
        seed: of the random null directions.

    Returns:
        The path, also where the moves end higher than asked: ``is_lower`` says whether it leads to
        lower loss, as far as samples of 33 points on each segment show: rises that are narrower
        than an eighth of max(1, the root mean square of theta) may be missed. "no way" is no
        proof that there is none.

    Raises:
        InputError: the evaluator is of float32; an argument is of no use, or differs between ranks.

    Cost: for each move n Hessian products, n^2 memory, and losses at 13 points on each of at most
    4 n + 18 half lines; 33 losses for each segment.
    """
    require_whole(1, max_moves=max_moves)
    if not 0 < fall < 1:
        raise InputError(f"fall={fall}: expected a share of the loss, between 0 and 1")
    if ev.dtype != torch.float64:
        raise InputError(
            f"an evaluator of {ev.dtype}: rises are told from rounding in float64; make it with "
            "dtype=torch.float64"
        )
    theta = ev.checked(theta)
    given = {"theta": theta, "fall": fall, "max_moves": max_moves, "seed": seed}
    require_same_call(ev.world, "nonascending_path", **given)
    rng, corners = np.random.default_rng(seed), [theta]
    losses = [ev.loss(theta).item()]
    rounding = ROUNDING * torch.finfo(ev.dtype).eps * abs(losses[0])
    # Of the start's size on all the way: rises that are wider than an eighth of it are seen.
    steps = STEPS * max(1.0, length(theta) / ev.n**0.5)
    goal = losses[0] - fall * abs(losses[0])
    while not _is_lower(losses, goal, rounding) and len(corners) <= max_moves:
        move = _move(ev, corners[-1], losses[-1], steps, rounding, rng)
        if move is None:
            break
        corners.append(corners[-1] + move)
        losses.append(ev.loss(corners[-1]).item())
    points = torch.stack(corners)
    outcome = "lower" if _is_lower(losses, goal, rounding) else "no way"
    return NonascendingPath(points, np.array(losses), _rise(ev, points), rounding, outcome)


def _is_lower(losses: list[float], goal: float, rounding: float) -> bool:
    return losses[-1] <= goal and losses[-1] < losses[0] - rounding


def _move(
    ev: Evaluator,
    theta: Tensor,
    loss: float,
    steps: Array,
    rounding: float,
    rng: np.random.Generator,
) -> Tensor | None:
    """The step along which the loss falls most, or, at random, one on which it is level."""
    gradient = ev.gradient(theta)
    spectrum = whole_spectrum(Hessian(ev, theta))
    down = spectrum.vectors[spectrum.values < -spectrum.floor]
    null = spectrum.vectors[np.abs(spectrum.values) <= spectrum.floor]
    falling = [gradient.cpu().numpy()[None], down]
    level = _null_directions(null, rng)
    rows = np.concatenate([*falling, level])
    rows = np.concatenate([-rows, rows])
    lengths = np.linalg.norm(rows, axis=1)
    is_level = np.tile(np.arange(len(rows) // 2) >= 1 + len(down), 2)[lengths > 0]
    rows = rows[lengths > 0] / lengths[lengths > 0, None]
    if not len(rows):
        return None
    directions = torch.from_numpy(rows).to(theta)
    along = np.array(
        [_losses(ev, theta + torch.from_numpy(steps).to(theta)[:, None] * u) for u in directions]
    )  # (rows, steps)
    before = np.minimum.accumulate(np.column_stack([np.full(len(rows), loss), along]), axis=1)
    # Up to the first rise.
    allowed = np.logical_and.accumulate(along <= before[:, :-1] + rounding, axis=1)
    reached = np.where(allowed, along, np.inf)
    order = np.argsort(reached.min(axis=1))
    for i in order[reached[order].min(axis=1) < loss - rounding]:
        found = _checked(ev, theta, directions[i], steps[: reached[i].argmin() + 1], rounding)
        if found is not None and ev.loss(theta + found) < loss - rounding:
            return found
    for i in rng.permutation(np.flatnonzero(is_level & allowed[:, 0])):
        found = _checked(ev, theta, directions[i], steps[: allowed[i].sum()], rounding)
        # Moves much shorter than the parameters lead nowhere.
        if found is not None and found.norm() > steps[len(steps) // 2]:
            return found * float(rng.uniform(0.3, 1.0))
    return None


def _checked(
    ev: Evaluator, theta: Tensor, direction: Tensor, steps: Array, rounding: float
) -> Tensor | None:
    """The longest of these steps on which the loss, sampled densely, never rises."""
    for step in steps[::-1]:
        if _rise(ev, torch.stack([theta, theta + float(step) * direction])) <= rounding / 2:
            return float(step) * direction
    return None


def _rise(ev: Evaluator, points: Tensor) -> float:
    """The most by which the loss on the polygon exceeds a value before, at SAMPLES a segment."""
    t = torch.linspace(0, 1, SAMPLES).to(points)[:, None]
    segments = [_losses(ev, a + t * (b - a)) for a, b in pairwise(points)]
    if not segments:
        return 0.0
    along = np.concatenate(segments)
    return float((along - np.minimum.accumulate(along)).max())


def _losses(ev: Evaluator, points: Tensor) -> Array:
    """(p,), infinite where the loss is not finite."""
    found: Array = ev.loss(points).cpu().numpy()
    return np.where(np.isfinite(found), found, np.inf)


def _null_directions(null: Array, rng: np.random.Generator) -> Array:
    """Sparse vectors that span the null space, and random ones in it."""
    if not len(null):
        return null
    mixed = rng.standard_normal((COMBINATIONS, len(null))) @ null
    return np.concatenate([_sparse(null), mixed])


def _sparse(rows: Array) -> Array:
    """The reduced row echelon form of independent rows, with the largest pivots."""
    found = rows.copy()
    for i in range(len(found)):
        row, column = divmod(int(np.abs(found[i:]).argmax()), found.shape[1])
        found[[i, i + row]] = found[[i + row, i]]
        found[i] /= found[i, column]
        others = np.arange(len(found)) != i
        found[others] -= np.outer(found[others, column], found[i])
    found[np.abs(found) < ZERO] = 0.0
    return found
