"""One check a run of the derivatives on all the data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_out_of_memory
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.loss import fallbacks
from hessian_spectrum.loss.batching import cast, leading_size
from hessian_spectrum.loss.difference_arithmetic import DifferenceArithmetic
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.gradient_check import Slope, displacement, is_wrong
from hessian_spectrum.loss.minibatch_loss import Part
from hessian_spectrum.loss.verification import SECOND_DERIVATIVES
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.operators.curvature_products import HESSIAN
from hessian_spectrum.operators.differences import Difference, misfit, steps
from hessian_spectrum.operators.not_finite import require_finite_product
from hessian_spectrum.operators.product_modes import reverse

# A GPU of these compute capabilities has half as many units for float64 as for float32.
DOUBLES = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))


def check_on_all_data(operator: Curvature) -> None:
    """Compare gradients with losses, and H u with gradients, minibatch by minibatch.

    Along one random u; once for each evaluator and theta. In float64 where model and device can. A
    part of the data that derivatives leave out, as by a branch that detaches, is found wherever it
    is; so is a second derivative that is not finite. Parameters whose gradient is exactly zero on
    all the data are named in a warning, and in the evaluator's ``without_gradient``.

    Raises:
        InputError: on every rank, the number of the minibatch and what differs on one.

    Cost: one pass of two gradients and, for a Hessian, of a product by reverse over reverse; three
    small exchanges. Called by every rank. A few minibatches have kinks between the two ends and
    take two gradients more.
    """
    evaluator = operator.evaluator
    if evaluator.verification.on_all_data:
        return
    evaluator.verification.on_all_data = True
    arithmetic = _on_device(evaluator)
    check = _Check(operator, arithmetic)
    together(evaluator.world, check.run)
    _name_zeros(evaluator, check.moved)
    if operator.form is HESSIAN and SECOND_DERIVATIVES in evaluator.verification.unverified:
        # The samples have left it open.
        if any(evaluator.world.gather_objects(check.has_concluded)):
            del evaluator.verification.unverified[SECOND_DERIVATIVES]


def _on_device(evaluator: Evaluator) -> DifferenceArithmetic:
    """float64 where the samples could, and the device is not many times slower in it."""
    arithmetic, device = evaluator.verification.arithmetic, evaluator.device
    if evaluator.dtype == torch.float64 or device.type == "cpu":
        return arithmetic
    if device.type == "cuda" and torch.cuda.get_device_capability(device) in DOUBLES:
        return arithmetic
    eps = max(arithmetic.eps, torch.finfo(evaluator.dtype).eps)
    return DifferenceArithmetic(
        evaluator.dtype, eps, arithmetic.why or f"{device} is slow in float64"
    )


class _Check:
    """The check of one rank's share."""

    def __init__(self, operator: Curvature, arithmetic: DifferenceArithmetic):
        self.operator, self.arithmetic = operator, arithmetic
        self.evaluator = operator.evaluator
        self.theta = operator.theta.to(arithmetic.dtype)
        # A collective: not inside of ``run``, which may fail on one rank.
        statistics = self.evaluator.statistics(operator.theta)
        self.constants = self.evaluator.function.constants(arithmetic.dtype, statistics)
        self.u = displacement(self.evaluator.function, self.theta)
        self.has_concluded = False  # about second derivatives
        self.moved = torch.zeros(len(self.theta), dtype=torch.bool, device=self.theta.device)

    def run(self) -> None:
        """One pass over this rank's data.

        Raises:
            InputError: which samples have wrong derivatives.
        """
        size = self._size()
        while True:
            try:
                return self._run(size)
            except RuntimeError as failed:
                if not is_out_of_memory(failed) or self.evaluator.is_whole or size == 1:
                    raise
            size = math.ceil((size or self._largest()) / 2)

    def _run(self, size: int | None) -> None:
        evaluator, dtype = self.evaluator, self.arithmetic.dtype
        evaluator.counts.checks += 1
        first = 0
        with evaluator.evaluation_mode():
            for whole in evaluator.batches:
                for batch in evaluator.function.pieces(whole, size):
                    if evaluator.function.weight(batch):
                        self._part(evaluator.part(cast(batch, dtype), self.constants), first)
                    first += leading_size(batch)

    def _size(self) -> int | None:
        if self.arithmetic.dtype == self.evaluator.dtype:
            return self.operator.plan.batch_size
        return self.operator.size_in_float64

    def _largest(self) -> int:
        return max((leading_size(batch) for batch in self.evaluator.batches), default=1)

    def _part(self, part: Part, first: int) -> None:
        """Compare derivatives of a part of L, whose samples have the numbers ``first``, ..."""
        product = None
        if self.operator.form is HESSIAN:
            product = reverse(part, self.theta)(self.u[None])[0]
            require_finite_product(
                self.evaluator.layout, part, self.theta, self.u, product, self._named(first)
            )
            if product.any():
                self.evaluator.verification.curved = self.evaluator.batches, self.operator.theta
        slopes: list[Slope] = []
        for step in steps(self.arithmetic):
            slope = Slope([part], self.theta, self.u, step)
            slopes.append(slope)
            self.moved |= slope.ahead.bool() | slope.behind.bool()
            fits = product is None or misfit(product, [_of(slope)], self.arithmetic) == 0.0
            if fits and slope.fits(self.arithmetic):
                self.has_concluded = True
                return
        last = first + leading_size(part.batch) - 1
        if is_wrong(slopes, self.arithmetic):
            raise InputError(
                "the gradient that autograd forms is not the derivative of the loss of samples "
                f"{first} to {last}{self._of_rank}: along a random direction their part rises by "
                f"{slopes[0].rate:.6g}, the gradient says {slopes[0].slope:.6g}. Do they take a "
                "branch that detaches something, or makes it a plain number?"
            )
        if product is None:
            return
        wrong = misfit(product, map(_of, slopes), self.arithmetic)
        if wrong:
            raise InputError(
                f"Hessian products would be wrong: for samples {first} to {last}{self._of_rank} "
                f"H u differs from differences of the gradient by {wrong:.0%}; do they take a "
                "branch with a custom autograd.Function that is once_differentiable, or whose "
                "backward detaches what it uses?"
            )
        self.has_concluded |= wrong == 0.0

    def _named(self, first: int) -> Callable[[int], str]:
        return lambda index: f"sample {first + index}{self._of_rank}"

    @property
    def _of_rank(self) -> str:
        world = self.evaluator.world
        return f" of rank {world.rank}" if world.size > 1 else ""


def _of(slope: Slope) -> Difference:
    return Difference(slope.derivative, slope.step, slope.gradient_norm)


def _name_zeros(evaluator: Evaluator, moved: Tensor) -> None:
    """Warn of parameters whose gradient is exactly zero on all ranks. One small reduction."""
    parts = evaluator.layout.unflatten(moved)
    some = torch.stack([part.any() for part in parts.values()]).double()
    everywhere = evaluator.world.sum(some)
    names = [name for name, count in zip(parts, everywhere.tolist()) if not count]
    evaluator.verification.without_gradient = tuple(names)
    if names and evaluator.world.rank == 0:
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        fallbacks.say_once(
            (
                f"the gradient of {', '.join(names[:6])}{more} is exactly zero on all the data: "
                "they are unused, detached, or merged into other parameters; their rows of the "
                "Hessian are zero",
            )
        )
