"""What is recorded of one step: the quantities by name, and the ends of the spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessian_spectrum.analyses.critical_step import critical_step
from hessian_spectrum.distributed.arrays import length
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.curvature import Hessian
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.operators.transforms import Preconditioned, Shifted
from hessian_spectrum.planning import product_planner
from hessian_spectrum.tracking.sharpness import Ends, EndsFinder, SpareTime, ends
from hessian_spectrum.tracking.stability import Stability

EXPECTED_PRODUCTS = 20  # of a record, for a plan
STEPS_HELD = 81  # Krylov vectors
# Tolerance of the preconditioned matrix over that of the Hessian: its eigenvalues change more from
# record to record, and weights without a gradient are eigenvectors apart from all others. With 1
# the largest was missed by 5 % on digits, whose corner pixels are always 0.
SEEN_TOL = 0.1


@dataclass(frozen=True)
class Step:
    """An optimizer's step that was made."""

    theta: Tensor  # (n,), before it
    update: Tensor  # (n,), theta afterwards minus theta
    gradient: Tensor  # (n,), of the minibatches
    cosine: float  # of it and the gradient of the step before; NaN where that is not known
    rule: Stability


class Recorder:
    """Evaluates steps of one training; what it found at one record starts the next.

    Args:
        largest, smallest: eigenvalues of each end at least.
        above: and all of the upper end above this over the learning rate; None: no more.
        relative: other evaluators by name, for relative critical sharpness.
        tol, max_products: of one search of eigenvalues.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        largest: int,
        smallest: int,
        above: float | None,
        relative: Mapping[str, Evaluator],
        tol: float,
        max_products: int,
        seed: int,
    ):
        self.evaluator, self.relative = evaluator, relative
        self.largest, self.smallest, self.above = largest, smallest, above
        self._finder = EndsFinder(tol, max_products, seed)
        self._seen_finder = EndsFinder(SEEN_TOL * tol, max_products, seed)
        self._plan: ProductPlan | None = None
        self._critical: dict[str, float] = {}  # steps, where the search for the next one begins
        self._start: Tensor | None = None  # theta before the first step

    def begin(self) -> None:
        """Before the first step of a training: distances are measured from here."""
        if self._start is None:
            self._start = self.evaluator.theta

    def values(self, step: Step, spare: SpareTime) -> tuple[dict[str, float], Ends]:
        """The quantities by name, NaN where they are not known, and the eigenpairs found.

        Args:
            spare: for eigenvalues above the edge beyond ``largest``.
        """
        ev, theta, rule = self.evaluator, step.theta, step.rule
        assert self._start is not None  # ``begin`` sets it
        before = ev.counts.products
        operator = self.operator(theta)
        norm = length(step.gradient)
        values = {
            "loss": ev.loss(theta[None]).item(),  # NaN and infinities are recorded
            "gradient_norm": ev.gradient_norm(theta),
            "minibatch_gradient_norm": norm,
            "lr": rule.lr,
            "step_length": length(step.update),
            "distance": length(theta - self._start),
            "cosine": step.cosine,
        }
        above = math.inf if self.above is None or not rule.lr else self.above / rule.lr
        found = Ends.unknown(self.smallest, self.largest)
        if math.isfinite(values["loss"]):
            # A product that is not finite is an outcome of training, like a loss that is not.
            with suppress(FloatingPointError):
                found = ends(self._finder, operator, self.smallest, self.largest, above, spare)
                values |= self._seen(operator, rule, found)
                values["captured"] = _captured(found, step.gradient)
            values |= self._critical_sharpness(theta, step.update, rule.lr, values["loss"])
        values |= _named(found, above, ev.n)
        values["threshold"] = math.nan if rule.threshold is None else rule.threshold
        values["products"] = ev.counts.products - before
        operator.forget()
        return values, found

    def operator(self, theta: Tensor) -> Hessian:
        """The Hessian there, by one plan for all records: the same bits after a restart."""
        operator = Hessian(self.evaluator, theta)
        if self._plan is None:
            self._plan = product_planner.plan(
                self.evaluator,
                theta,
                1,
                EXPECTED_PRODUCTS,
                mode="reverse",  # a recording does not pay for so few products
                kept=STEPS_HELD,
                place="device",
            ).plan
        return operator.planned(self._plan)

    def _seen(self, operator: SymmetricOperator, rule: Stability, found: Ends) -> dict[str, float]:
        """The largest eigenvalue of the matrix that the optimizer sees."""
        if rule.threshold is None:
            return {}
        if rule.preconditioner is not None:
            base = Shifted(operator, rule.shift) if rule.shift else operator
            seen = Preconditioned(base, rule.preconditioner.to(operator.device))
            top = ends(self._seen_finder, seen, 0, 1)
            return {
                "preconditioned": float(top.values[-1]),
                "preconditioned_error": float(top.residuals[-1]),
            }
        return {
            "preconditioned": float(found.values[-1]) + rule.shift,
            "preconditioned_error": float(found.residuals[-1]),
        }

    def _critical_sharpness(
        self, theta: Tensor, update: Tensor, lr: float, loss: float
    ) -> dict[str, float]:
        """2 / eta on this loss and on the relative ones."""
        found = {}
        for name, ev in (("", self.evaluator), *self.relative.items()):
            base = loss if not name else ev.loss(theta).item()

            def rise(step: float, ev: Evaluator = ev, base: float = base) -> float:
                return ev.loss((theta + step * update)[None]).item() - base

            first = self._critical.get(name, 1.0)
            step = critical_step(rise, first)[0] if update.any() else math.nan
            if 0 < step < math.inf:
                self._critical[name] = step
            key = f"critical_{name}" if name else "critical"
            # A loss that rises at once, or never, has no critical step.
            found[key] = 2 / (step * lr) if 0 < step < math.inf and lr else math.nan
        return found

    def state_dict(self) -> dict[str, Any]:
        finders = {"own": self._finder, "seen": self._seen_finder}
        return {
            "start": self._start,
            "critical": dict(self._critical),
            "finders": {name: finder.state_dict() for name, finder in finders.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._start = None if state["start"] is None else state["start"].to(device)
        self._critical = dict(state["critical"])
        self._finder.load_state_dict(state["finders"]["own"], device)
        self._seen_finder.load_state_dict(state["finders"]["seen"], device)


def _named(found: Ends, above: float, n: int) -> dict[str, float]:
    values = {
        "lambda_max": float(found.values[-1]),
        "lambda_max_error": float(found.residuals[-1]),
        "num_above": math.nan,
    }
    is_whole = len(found.values) == n
    if found.is_known and math.isfinite(above) and (found.upper.min() <= above or is_whole):
        values["num_above"] = float((found.upper > above).sum())
    if found.num_lower:
        values["lambda_min"] = float(found.values[0])
        values["lambda_min_error"] = float(found.residuals[0])
    return values


def _captured(found: Ends, gradient: Tensor) -> float:
    """The share of |g|^2 in the span of the upper eigenvectors, which are orthonormal."""
    square = gradient.square().sum().item()
    if not 0 < square < math.inf:
        return math.nan
    upper = found.vectors[found.num_lower :].to(gradient)
    return float((upper @ gradient).square().sum().item() / square)
