"""Choose how an operator's products are formed, where its user did not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TypeVar, cast

from torch import Tensor

from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.operators.run_check import check_on_all_data
from hessian_spectrum.operators.transforms import Deflated, Preconditioned, Restricted, Shifted
from hessian_spectrum.planning import product_planner

TRANSFORMS = (Restricted, Shifted, Deflated, Preconditioned)
OperatorT = TypeVar("OperatorT", bound=SymmetricOperator)
CurvatureAt = Callable[[Evaluator, Tensor], Curvature]


def planned(operator: OperatorT, num_vectors: int, num_steps: int, *, kept: int) -> OperatorT:
    """The same matrix, its products formed in the fastest way that fits the memory.

    As the command line plans (``product_planner.plan``): short runs take a default, long ones are
    calibrated on one minibatch. Only a ``Curvature`` that was made without ``plan=`` is planned,
    also inside ``Restricted``, ``Shifted``, ``Deflated`` and ``Preconditioned``; any other operator
    is returned as it is. The user's operator is not changed: what the plan keeps between products
    is freed with the returned one.

    Args:
        num_vectors: how many are multiplied together in a step.
        num_steps: block products that are expected.
        kept: vectors of ``operator``'s size that the algorithm holds on the device.

    Raises:
        InputError: the memory is too small, or no way to form products works for the model.

    Cost: once for each evaluator ``check_on_all_data``, two gradients and a product; a few products
    on one minibatch of rank 0, up to some fifty where the run is long; three small exchanges.
    Called by every rank, with the same sizes.
    """
    if isinstance(operator, TRANSFORMS):
        # Vectors of a block are shorter than those of its base.
        kept = math.ceil(kept * operator.layout.chunk / operator.base.layout.chunk)
        base = planned(operator.base, num_vectors, num_steps, kept=kept)
        if base is operator.base:
            return operator
        other = copy.copy(operator)
        other.base = base
        return other
    if not isinstance(operator, Curvature):
        return operator
    check_on_all_data(operator)
    if operator.is_planned:
        return operator
    return cast(OperatorT, _planned(operator, num_vectors, num_steps, kept))


def _planned(operator: Curvature, num_vectors: int, num_steps: int, kept: int) -> Curvature:
    estimate = product_planner.plan(
        operator.evaluator,
        operator.theta,
        num_vectors,
        num_steps,
        form=operator.form,
        kept=kept,
        place="device",
    )
    return operator.planned(estimate.plan, estimate.first)


def planned_once(make: CurvatureAt, num_vectors: int, num_steps: int, *, kept: int) -> CurvatureAt:
    """``make(evaluator, theta)`` with one plan for all points: that of the first one.

    Args:
        num_vectors, num_steps, kept: as for ``planned``, at each point.
    """
    plan: ProductPlan | None = None

    def made(evaluator: Evaluator, theta: Tensor) -> Curvature:
        nonlocal plan
        operator = make(evaluator, theta)
        check_on_all_data(operator)
        if operator.is_planned:
            return operator
        if plan is not None:
            return operator.planned(plan)
        operator = _planned(operator, num_vectors, num_steps, kept)
        plan = operator.plan
        return operator

    return made
