"""Is the gradient that autograd forms the derivative of the loss that is evaluated?

It is not where something is detached, cached or a plain number, and where a hook or an option
changes gradients only. Second derivatives are then wrong without any sign of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.arrays import length
from hessian_spectrum.loss.batching import cast
from hessian_spectrum.loss.difference_arithmetic import DifferenceArithmetic
from hessian_spectrum.loss.functional import LossFunction
from hessian_spectrum.loss.own_weights import MOVE, require_own_weights
from hessian_spectrum.loss.samples import Piece, on_fewer_if_needed

TOLERANCE = 1e-4  # of a slope, in float64; in lower arithmetic COARSE
COARSE = 1e-2
CLEAR = 0.1  # rounding over slope, from which on a slope says nothing
SAME = 0.3  # all steps find the same misfit, to this: then it is no rounding, and no curvature

Sampled = Callable[[Tensor], Tensor]


def check_gradient(
    function: LossFunction, pieces: tuple[Piece, ...], arithmetic: DifferenceArithmetic
) -> str | None:
    """Compare slopes of the loss of a few samples with their gradient. In ``evaluation_mode``.

    First with the model's own parameters moved, without functional_call; then
    (L(theta + h u) - L(theta - h u)) / 2h with u^T (g(theta + h u) + g(theta - h u)) / 2 for one
    random u. The two-sided mean is exact for kinks at theta, too.

    Returns:
        Why nothing could be concluded, or None.

    Raises:
        InputError: the gradient is not that of the loss.

    Cost: two gradients and two evaluations of ``samples.ROWS`` samples, in float64 where the model
    can; a second time where the first step leaves it open.
    """
    if not pieces:  # this rank has no data
        return None
    return on_fewer_if_needed(function, pieces, lambda some: _check(function, some, arithmetic))


def _check(
    function: LossFunction, pieces: tuple[Piece, ...], arithmetic: DifferenceArithmetic
) -> str | None:
    move = MOVE * displacement(function, function.theta)
    held = require_own_weights(function, pieces, move)
    theta = function.theta.to(arithmetic.dtype)
    losses = _losses(function, pieces, arithmetic.dtype)
    away = move.to(theta)
    # Elsewhere too: at a minimum slopes are nothing but rounding.
    attempts = [(0, theta), (0, theta + away), (1, theta + away), (2, theta)]
    for number, (seed, at) in enumerate(attempts):
        u = displacement(function, theta, seed)
        slopes = []
        for step in arithmetic.steps:
            slopes.append(Slope(losses, at, u, step))
            if not number and len(slopes) == 1:
                _require_dependence(losses, theta, away, slopes[0])
            if slopes[-1].fits(arithmetic) and slopes[-1].is_clear(arithmetic):
                return held
        if is_wrong(slopes, arithmetic):
            # Of millions of units so many switch between the two ends that both steps may find
            # the same misfit by chance. It falls with the step, that of a wrong gradient does not.
            slopes += [Slope(losses, at, u, step) for step in arithmetic.finer_steps]
            if any(s.fits(arithmetic) and s.is_clear(arithmetic) for s in slopes):
                return held
            if is_wrong(slopes, arithmetic):
                break
    else:
        if slopes[-1].is_zero and not slopes[-1].rate:
            return held if not slopes[-1].size else "the gradient is exactly zero"
        return arithmetic.why or "differences of the loss with two steps disagree (a kink, a NaN?)"
    raise InputError(
        "the gradient that autograd forms is not the derivative of the loss: along a random "
        f"direction the loss rises by {slopes[1].rate:.6g}, the gradient says {slopes[1].slope:.6g}"
        f"{_concerned(function, losses, theta, arithmetic)}. Is something detached or made a plain "
        "number (.detach(), .data, .item(), torch.no_grad), computed once and kept, or does a "
        "hook, padding_idx, a straight-through or once_differentiable function change gradients "
        "only? Second derivatives of it would be wrong"
    )


class Slope:
    """The slope of a loss along u, from its values and from its gradients, at theta +- h u."""

    def __init__(self, losses: list[Sampled], theta: Tensor, u: Tensor, step: float):
        self.u, self.step = u, step
        ahead, behind = (_value_and_gradient(losses, theta + h * u) for h in (step, -step))
        self.ahead, self.behind = ahead[1], behind[1]  # gradients, (n,)
        self.size = max(abs(ahead[0]), abs(behind[0]))  # of the values
        mean = (self.ahead.double() + self.behind.double()) / 2
        self.gradient_norm = length(mean)
        self.rate = (ahead[0] - behind[0]) / (2 * step)
        self.slope = (mean @ u.double()).item()
        self.typical = length(mean * u.double())  # of slopes along random directions

    @property
    def is_zero(self) -> bool:
        return not (self.ahead.any() or self.behind.any())

    @property
    def derivative(self) -> Tensor:
        """Of the gradient along u, shape (n,)."""
        return (self.ahead - self.behind) / (2 * self.step)

    @property
    def misfit(self) -> float:
        return abs(self.rate - self.slope)

    @property
    def scale(self) -> float:
        return max(abs(self.rate), abs(self.slope), self.typical)

    def rounding(self, arithmetic: DifferenceArithmetic) -> float:
        """Of ``rate``."""
        return 10 * arithmetic.eps * self.size / self.step

    def tolerance(self, arithmetic: DifferenceArithmetic) -> float:
        relative = TOLERANCE if arithmetic.is_double else COARSE
        return relative * self.scale + self.rounding(arithmetic)

    def is_clear(self, arithmetic: DifferenceArithmetic) -> bool:
        """Is the slope more than rounding?"""
        return self.rounding(arithmetic) <= CLEAR * self.scale

    def fits(self, arithmetic: DifferenceArithmetic) -> bool:
        return self.misfit <= self.tolerance(arithmetic)


def is_wrong(slopes: list[Slope], arithmetic: DifferenceArithmetic) -> bool:
    """Do the slopes of all steps that are clear, the first two at least, find the same misfit?"""
    told = [s for i, s in enumerate(slopes) if i < 2 or s.is_clear(arithmetic)]
    misfits = [slope.misfit for slope in told]
    return max(misfits) - min(misfits) <= SAME * max(misfits) and all(
        slope.misfit > 3 * slope.tolerance(arithmetic) for slope in told
    )


def _require_dependence(losses: list[Sampled], theta: Tensor, move: Tensor, slope: Slope) -> None:
    """InputError if the gradient is zero and the loss the same at other parameters, but not 0."""
    if not slope.is_zero:
        return
    with torch.no_grad():
        here, there = (sum(loss(at).item() for loss in losses) for at in (theta, theta + move))
    if here and here == there:
        raise InputError(
            f"the loss does not depend on the parameters: it is {here:.9g} at these and at others, "
            "and the gradient is exactly zero. Are the model's outputs kept from an earlier "
            "evaluation, detached, or rounded (argmax, sign)? Or do parameters= choose none that "
            "the model uses?"
        )


def _losses(function: LossFunction, pieces: tuple[Piece, ...], dtype: torch.dtype) -> list[Sampled]:
    """theta -> each piece's share of the mean loss of the samples."""
    constants = function.constants(dtype)
    total = sum(function.weight(piece.batch) for piece in pieces)

    def of(piece: Piece) -> Sampled:
        batch, share = cast(piece.batch, dtype), function.scale(piece.batch) / total
        return lambda theta: function.loss(theta, batch, constants) * share

    return [of(piece) for piece in pieces]


def _value_and_gradient(losses: list[Sampled], theta: Tensor) -> tuple[float, Tensor]:
    value, total = 0.0, torch.zeros_like(theta)
    for loss in losses:
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            found = loss(leaf)
        value += found.item()
        if found.requires_grad:
            total += torch.autograd.grad(found, leaf, materialize_grads=True)[0]
    return value, total


def displacement(function: LossFunction, theta: Tensor, seed: int = 0) -> Tensor:
    """A random u, shape (n,), the same everywhere: each parameter tensor by its own size.

    The root mean square of a tensor's entries of u is that of its entries of theta, and that of
    all theta where the tensor is zero. Rows that are constants in derivatives (``padding_idx``)
    are zero: the loss changes with them, but its gradient does not say so.
    """
    layout = function.layout
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(len(theta), generator=generator, dtype=torch.float64).to(theta.device)
    rms = theta.double().square().mean().sqrt().item() or 1.0
    for part, own in zip(u.split(layout.sizes), theta.double().split(layout.sizes)):
        part *= (own.square().mean().sqrt().item() if own.numel() else 0.0) or rms
    parts = layout.unflatten(u)
    for name, rows in function.constant_rows.items():
        if name in parts:  # else it is not among the chosen parameters
            parts[name][rows] = 0
    return u.to(theta.dtype)


def _concerned(
    function: LossFunction, losses: list[Sampled], theta: Tensor, arithmetic: DifferenceArithmetic
) -> str:
    """In words, the parameters along which the slopes differ."""
    u = displacement(function, theta)
    names = []
    for index, name in enumerate(function.layout.names):
        parts = [t if i == index else 0 * t for i, t in enumerate(u.split(function.layout.sizes))]
        slope = Slope(losses, theta, torch.cat(parts), arithmetic.steps[1])
        if slope.misfit > 3 * slope.tolerance(arithmetic):
            names.append(name)
    if not names:
        return ""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f" (parameters {', '.join(names[:4])}{more})"
