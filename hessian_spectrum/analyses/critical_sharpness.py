"""How sharp the loss is along a direction, by forward passes alone."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.analyses.critical_step import PRECISION, critical_step
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.sharded.evaluator import ShardedEvaluator


class CriticalSharpness(NamedTuple):
    """2 / eta_c, in units of eigenvalues; eta_c, the critical step; evaluations of the loss."""

    sharpness: float
    step: float
    evaluations: int


def critical_sharpness(
    evaluator: Evaluator | ShardedEvaluator,
    theta: Tensor | None = None,
    direction: Tensor | None = None,
    *,
    first_step: float = 1.0,
    precision: float = PRECISION,
) -> CriticalSharpness:
    """2 / eta_c for the smallest eta_c at which the loss of theta - eta direction is above that of
    theta (Kalra et al. 2026, arXiv 2601.16979).

    For a quadratic loss and its gradient g as the direction it is g^T H g / |g|^2, at most the
    largest eigenvalue, and that eigenvalue where g is its eigenvector. It needs no second
    derivative, no Krylov vector, and the memory of a forward pass: what remains of a model for
    which no product can be formed.

    Args:
        evaluator: of a whole or of a sharded model.
        theta: (n,), of a sharded model this rank's entries; default: the model's parameters.
        direction: as theta; default: the gradient, for one backward pass.
        first_step: a step to begin at, such as one that was found before.
        precision: relative, of the step.

    Returns:
        Sharpness inf where the loss rises from the start on; 0.0 where it does not rise within
        2^40 times ``first_step``.

    Raises:
        InputError: the direction is zero on all ranks, or a number is of no use.

    Cost: some ten to twenty evaluations of the loss.
    """
    if not first_step > 0 or not 0 < precision < 1:
        raise InputError(
            f"first_step={first_step}, precision={precision}: expected a step above 0, and a "
            "precision between 0 and 1"
        )
    point = evaluator.checked(theta)
    way = evaluator.gradient(point) if direction is None else evaluator.checked(direction)
    length = float((way.double() ** 2).sum())
    if isinstance(evaluator, ShardedEvaluator):
        length = sum(evaluator.world.gather_objects(length))
    if not length > 0:
        raise InputError("the direction is zero: nothing is changed along it")
    start = evaluator.loss(point).item()

    def rise(step: float) -> float:
        try:
            return evaluator.loss(point - step * way).item() - start
        except FloatingPointError:
            return float("inf")

    step, evaluations = critical_step(rise, first_step, precision)
    sharpness = float("inf") if step == 0 else 2 / step
    return CriticalSharpness(sharpness, step, evaluations + 1)
