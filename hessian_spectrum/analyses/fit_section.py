"""A two-dimensional section of the loss that shows a given picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.func import vmap

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.distributed.agreement import require_same_call
from hessian_spectrum.landscape.results import Surface
from hessian_spectrum.landscape.tasks import described
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.minibatch_loss import Part

ADAM = (0.9, 0.999, 1e-8)
BLOCK = 64  # points whose losses are formed in one call


@dataclass(frozen=True)
class FittedSection:
    """An affine plane of parameters, and how well the loss on it follows a picture."""

    origin: Tensor  # (n,), the middle of the picture
    directions: Tensor  # (2, n): the point at (a, b) is origin + a d_0 + b d_1, each from -1 to 1
    surface: Surface  # values "loss", "picture" and, with other data, "test_loss"
    correlation: float  # Pearson's, of loss and picture over the grid
    test_correlation: float | None  # of the loss of other data
    history: list[float]  # the correlation before each step

    def __str__(self) -> str:
        other = self.test_correlation
        test = "" if other is None else f", {other:.4f} on other data"
        shape = " x ".join(map(str, self.surface.shape))
        return (
            f"correlation {self.correlation:.4f}{test}, {shape} points, {len(self.history)} steps"
        )


def fit_section(
    ev: Evaluator,
    picture: ArrayLike,
    *,
    test: Evaluator | None = None,
    num_steps: int = 300,
    lr: float = 0.02,
    seed: int = 0,
    block: int = BLOCK,
) -> FittedSection:
    """A plane of parameters on which the loss looks like a picture, to scale and shift.

    Skorokhodov & Burtsev (2019, arXiv:1910.03867) find such planes for any grey picture; Czarnecki
    et al. (2020, arXiv:1912.07559) prove that there are some for large enough networks. Adam
    maximizes the correlation of the loss with the picture over the grid, with the origin and both
    directions as unknowns, 3 n numbers. It begins at the model's parameters, and at Gaussian
    directions whose entries have the parameters' root mean square.

    Args:
        picture: shape (rows, columns), both at least 2; large where the loss is to be large.
        test: the same model on other data, evaluated on the plane at the end.
        num_steps: of Adam.
        lr: its learning rate, in units of theta.
        seed: of the first directions.
        block: points whose losses are formed in one call, and kept in memory with their graph.

    Raises:
        InputError: a picture that is constant or not finite; an argument out of its range, or one
            that differs between ranks.
        FloatingPointError: a loss on the grid is not finite; use a smaller ``lr``.
        RuntimeError: the model has an operation that ``torch.func.vmap`` does not support.

    Cost: a step takes the losses of all grid points, then their gradients in one weighted sum:
    rows x columns forward passes twice and backward passes once; memory for ``block`` points.
    """
    grid = np.asarray(picture, dtype=np.float64)
    _check(grid, num_steps, lr, block)
    require_same_call(
        ev.world, "fit_section", picture=grid, num_steps=num_steps, lr=lr, seed=seed, block=block
    )
    a, b = (np.linspace(-1, 1, size) for size in grid.shape)
    weights = np.stack([np.ones(grid.shape), *np.meshgrid(a, b, indexing="ij")]).reshape(3, -1)
    along = torch.from_numpy(weights.T).to(ev.device, ev.dtype)  # (points, 3)
    wanted = _standardized(torch.from_numpy(grid).flatten())
    plane = _start(ev, seed)
    mean, square, history = torch.zeros_like(plane), torch.zeros_like(plane), []
    for step in range(1, num_steps + 1):
        with _parts(ev) as parts:
            losses = _losses(ev, parts, along @ plane, block)
            found, slope = _correlation(losses, wanted)
            history.append(found)
            gradient = _pulled_back(ev, parts, along, plane, slope, block)
        mean = ADAM[0] * mean + (1 - ADAM[0]) * gradient
        square = ADAM[1] * square + (1 - ADAM[1]) * gradient.square()
        root = (square / (1 - ADAM[1] ** step)).sqrt() + ADAM[2] * _size(square)
        plane = plane - lr * (mean / (1 - ADAM[0] ** step)) / root

    def values(of: Evaluator) -> Tensor:
        with _parts(of) as parts:
            return _losses(of, parts, along @ plane, block)

    by_name, scores = {"picture": grid}, []
    for name, of in (("loss", ev), ("test_loss", test)):
        if of is not None:
            losses = values(of)
            by_name[name] = losses.numpy().reshape(grid.shape)
            scores.append(_correlation(losses, wanted)[0])
    surface = Surface(a, b, by_name, described(ev, num_steps=num_steps))
    other = scores[1] if test is not None else None
    return FittedSection(plane[0], plane[1:], surface, scores[0], other, history)


def _check(grid: np.ndarray, num_steps: int, lr: float, block: int) -> None:
    require_whole(0, num_steps=num_steps)
    require_whole(1, block=block)
    if not math.isfinite(lr) or lr <= 0:
        raise InputError(f"lr={lr!r}: expected a finite number above 0")
    if grid.ndim != 2 or min(grid.shape) < 2 or not np.isfinite(grid).all() or not np.ptp(grid):
        raise InputError(
            f"a picture of shape {grid.shape}; expected finite numbers (rows, columns), at least "
            "2 x 2, that are not all equal"
        )


def _start(ev: Evaluator, seed: int) -> Tensor:
    """(3, n): the origin and two directions."""
    theta = ev.theta
    size = theta.double().square().mean().sqrt().item() or 1.0
    normal = np.random.default_rng(seed).standard_normal((2, len(theta)))
    return torch.stack([theta, *(size * torch.from_numpy(normal)).to(theta)])


def _size(square: Tensor) -> float:
    """Of the gradient's entries: Adam's epsilon is relative, so that scales change nothing."""
    return square.max().sqrt().item() or 1.0


@contextmanager
def _parts(ev: Evaluator) -> Iterator[list[Part]]:
    """All minibatches of this rank, in evaluation mode."""
    if ev.batch_norm == "recalibrate":
        raise InputError("batch_norm='recalibrate' has other statistics at each point; use eval")
    with ev.evaluation_mode():
        yield list(ev.parts(ev.statistics(ev.theta)))


def _losses(ev: Evaluator, parts: list[Part], points: Tensor, block: int) -> Tensor:
    """(p, n) -> (p,), float64 on the CPU, the sum over minibatches and ranks."""
    total = points.new_zeros(len(points), dtype=torch.float64)
    ev.counts.passes += 1
    for part in parts:
        total += torch.cat([vmap(part)(rows).detach().double() for rows in points.split(block)])
    total = ev.world.sum(total) + ev.weight_decay / 2 * points.double().square().sum(1)
    if not total.isfinite().all():
        raise FloatingPointError("a loss on the plane is not finite; use a smaller lr")
    return total.cpu()


def _pulled_back(
    ev: Evaluator, parts: list[Part], along: Tensor, plane: Tensor, slope: Tensor, block: int
) -> Tensor:
    """(3, n), the gradient in the plane of a function with the slope (p,) in the losses."""
    slope = slope.to(plane)
    total = torch.zeros_like(plane)
    ev.counts.passes += 1
    for rows, each in zip(along.split(block), slope.split(block)):
        points = rows @ plane
        for part in parts:
            leaf = points.detach().requires_grad_()
            (found,) = torch.autograd.grad(vmap(part)(leaf) @ each.to(leaf), leaf)
            total += rows.T @ found
    total = ev.world.sum(total)
    return total + ev.weight_decay * (along * slope[:, None]).T @ (along @ plane)


def _standardized(values: Tensor) -> Tensor:
    """Of mean 0 and norm 1."""
    centred = values - values.mean()
    return centred / centred.norm()


def _correlation(losses: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
    """The correlation r, and the slope of -r in the losses."""
    centred = losses - losses.mean()
    norm = centred.norm()
    if not norm:
        raise InputError("the loss is constant on the plane: does it depend on the parameters?")
    unit = centred / norm
    found = (unit @ wanted).item()
    return found, -(wanted - found * unit) / norm
