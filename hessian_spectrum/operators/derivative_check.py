"""Checks that the derivatives which autograd forms are those of the loss.

torch silently returns zeros for the part of a Hessian behind a custom function whose backward is
marked ``once_differentiable`` or detaches what it saves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_out_of_memory
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.gradient import gradient
from hessian_spectrum.loss.minibatch_loss import Part
from hessian_spectrum.operators.curvature_products import push
from hessian_spectrum.operators.product_modes import reverse

SAMPLES = 8
STEPS = (1e-6, 1e-7)  # relative to |theta|: in float64 both truncation and rounding are small
AGREEMENT = 1e-3  # of the two differences; the product may differ by ten times this


def check_second_derivatives(evaluator: Evaluator, theta: Tensor) -> None:
    """Compare H u with central differences of the gradient, for one random direction u.

    In float64, on a few samples, once for each evaluator. The check is skipped where differences of
    two step sizes disagree, as at a kink (a ReLU at exactly zero).

    Raises:
        InputError: on every rank, if H u is not the derivative of the gradient on one.

    Cost: four gradients and a product of eight samples.
    """
    if evaluator.second_derivatives_checked:
        return
    statistics = evaluator.statistics(theta)

    def compare(samples: int | None) -> None:
        with evaluator.evaluation_mode():
            _compare_products(evaluator, theta, statistics, samples)

    together(evaluator.world, lambda: on_few_samples(evaluator, compare))
    evaluator.second_derivatives_checked = True


def on_few_samples(evaluator: Evaluator, check: Callable[[int | None], None]) -> None:
    """Call ``check`` with a few samples, and with fewer where these run out of memory.

    Args:
        check: takes the number of samples; None where minibatches are never cut.
    """
    samples = None if evaluator.is_whole else SAMPLES
    while True:
        try:
            return check(samples)
        except RuntimeError as failed:
            if not is_out_of_memory(failed) or samples is None or samples == 1:
                raise
        samples //= 2  # here the error, whose traceback holds tensors, is gone


def _compare_products(
    evaluator: Evaluator, theta: Tensor, statistics: dict[str, Tensor], samples: int | None
) -> None:
    loss = _float64_part(evaluator, statistics, samples)
    if loss is None:
        return
    theta = theta.double()
    u = _direction(theta)
    try:
        differences = [_central_difference(loss, theta, u, step) for step in STEPS]
    except RuntimeError as failed:  # a model for one dtype only
        if is_out_of_memory(failed):
            raise
        return
    size = differences[1].norm()
    # A NaN, or a kink: no conclusion.
    if not (differences[0] - differences[1]).norm() <= AGREEMENT * size:
        return
    try:
        product = reverse(loss, theta)(u[None])[0]
    except (RuntimeError, NotImplementedError) as failed:
        if is_out_of_memory(failed):
            raise
        raise InputError(
            f"the model's second derivatives cannot be formed ({' '.join(str(failed).split())}); "
            "replace the operation that has none, such as a custom autograd.Function without "
            "double backward or a fused kernel"
        ) from failed
    difference = (product - differences[1]).norm()
    if difference <= 10 * AGREEMENT * size:
        return
    wrong = (difference / size).item()
    raise InputError(
        f"Hessian products would be wrong: H u differs from differences of the gradient by "
        f"{wrong:.0%}; is there a custom autograd.Function that is once_differentiable, or whose "
        "backward detaches what it uses, or weight_norm? Use differentiable operations"
    )


def check_jacobian(evaluator: Evaluator, theta: Tensor, of: str) -> None:
    """Compare J u, formed by reverse mode twice, with central differences of what J is of.

    Products with the Gauss-Newton matrix and the covariance of gradients need no second
    derivatives, but a backward that autograd cannot differentiate makes J u wrong, or zero.

    Args:
        of: "outputs" or "samples", the part's function.

    Raises:
        InputError: on every rank, if J u is not the derivative on one.

    Cost: four evaluations and a product of eight samples.
    """
    statistics = evaluator.statistics(theta)

    def compare(samples: int | None) -> None:
        with evaluator.evaluation_mode():
            _compare_jacobian(evaluator, theta.double(), statistics, of, samples)

    together(evaluator.world, lambda: on_few_samples(evaluator, compare))


def _compare_jacobian(
    evaluator: Evaluator,
    theta: Tensor,
    statistics: dict[str, Tensor],
    of: str,
    samples: int | None,
) -> None:
    part = _float64_part(evaluator, statistics, samples)
    if part is None:
        return
    u = _direction(theta)
    function = getattr(part, of)
    try:
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            value = function(leaf)
        if not value.requires_grad:
            return
        product = push(value, leaf)(u)
        steps = [step * max(theta.norm().item(), 1.0) for step in STEPS]
        with torch.no_grad():
            differences = [
                (function(theta + h * u) - function(theta - h * u)) / (2 * h) for h in steps
            ]
    except RuntimeError as failed:  # a model for one dtype only, or without this derivative
        if is_out_of_memory(failed):
            raise
        return
    size = differences[1].norm()
    if not (differences[0] - differences[1]).norm() <= AGREEMENT * size:
        return
    wrong = ((product - differences[1]).norm() / size).item() if size else 0.0
    if wrong <= 10 * AGREEMENT:
        return
    raise InputError(
        f"products would be wrong: J u, J the Jacobian of the {of}, differs from their differences "
        f"by {wrong:.0%}; is there a custom autograd.Function whose backward leaves torch or "
        "detaches what it is given? Write it with differentiable operations"
    )


def _direction(theta: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(len(theta), generator=generator, dtype=torch.float64).to(theta.device)
    return u / u.norm()


def _central_difference(loss: Callable, theta: Tensor, u: Tensor, step: float) -> Tensor:
    h = step * max(theta.norm().item(), 1.0)
    return (gradient(loss, theta + h * u) - gradient(loss, theta - h * u)) / (2 * h)


def _float64_part(
    evaluator: Evaluator, statistics: dict[str, Tensor], samples: int | None
) -> Part | None:
    """The part of the loss of the first few samples, in float64; None if this rank has none."""
    return next(evaluator.parts(statistics, samples, torch.float64), None)
