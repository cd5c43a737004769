"""Critical points of the loss, by damped Newton-Krylov steps from a start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse.linalg import lsmr
from torch import Tensor

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.analyses import critical
from hessian_spectrum.distributed.arrays import length
from hessian_spectrum.landscape.results.critical_points import CriticalPoint
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.curvature import Hessian
from hessian_spectrum.operators.same_call import require_same_computation

Array = NDArray[np.float64]
Wanted = Literal["any", "minimum", "saddle"]

TOL = 1e-10
MAX_STEPS = 200
ATTEMPTS = 5
DESCENT_STEPS = 500  # of the trust region on the loss, before Newton steps on its gradient
DESCENT_TOL = 1e-6  # |gradient| over that of the start where these begin
NEAR = 1e-9  # |gradient| over |lambda|max and the parameters' size: no farther than classify asks
# |g| is stationary where |H g| / |g|^2, its relative change by a unit step, times the parameters'
# size, is so small; where no step lowers it any more, its root is enough.
STAGNATION = 1e-7
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e-10, 1e10  # over |lambda|max
LEAST_RATIO = 1e-4  # of the fall of |g| to the predicted one
LSMR_TOL = 1e-12
TINY = 1e-300  # no fall is predicted
SHIFTS = {"minimum": 1e-2, "saddle": 0.3}  # of a new attempt's start, over the parameters' size

OUTCOMES = {
    "found": "found",
    "other kind": "a critical point of another kind",
    "undecided": "a critical point at which no negative curvature is certified",
    "stagnation": "H g = 0 at a gradient that is not 0: a stationary point of |g|^2 alone",
    "steps": "max_steps were not enough, or there is no critical point this way",
    "not finite": "the loss or its derivatives are not finite this way",
}


@dataclass(frozen=True)
class FoundPoint:
    """Where a search for a critical point has ended, and what is there."""

    theta: Tensor  # (n,), float64
    point: CriticalPoint  # what it is, as ``classify`` says
    outcome: str  # a key of OUTCOMES
    distance: float  # |theta - start|
    steps: int  # Newton steps of all attempts
    attempts: int

    @property
    def converged(self) -> bool:
        """Is it a critical point of the kind that was wanted, to the tolerance?"""
        return self.outcome == "found"

    def __str__(self) -> str:
        return (
            f"{OUTCOMES[self.outcome].capitalize()}, after {self.steps} Newton steps, "
            f"{self.distance:.3g} from the start. {self.point}"
        )


def find_critical_point(
    ev: Evaluator,
    start: Tensor | None = None,
    kind: Wanted = "any",
    *,
    tol: float = TOL,
    max_steps: int = MAX_STEPS,
    attempts: int = ATTEMPTS,
    seed: int = 0,
) -> FoundPoint:
    """A critical point near a start, to a gradient norm of ``tol``, by damped Newton steps.

    Steps d minimize |H d + g|^2 + mu |d|^2 (Levenberg-Marquardt on the gradient; exactly up to
    300 parameters, by LSMR with Hessian products otherwise). They are accepted where |g|
    falls, and mu follows the ratio of its fall to the predicted one, so that any kind of point
    attracts and convergence is superlinear. Where only |g|^2 is stationary, H g = 0 at g != 0, the
    outcome says so. Steps end where |g| <= tol and a critical point is within 1e-9 max(1, |theta|)
    as ``classify`` measures it: on a slope that only flattens out, as exp(-x), that is never.

    "minimum": first SciPy's ``trust-krylov`` on the loss, which leaves saddles. Where a saddle is
    found all the same, a new attempt begins beside it. A minimum that is not strict, as those of
    networks with more parameters than samples, has the outcome "undecided". "saddle": where a
    minimum or maximum is found, a new attempt begins at another random distance from the start.

    Args:
        start: shape (n,), the same on every rank; default: the model's own parameters.
        tol: largest |gradient|, in units of the loss over theta.
        max_steps: Newton steps of an attempt.
        attempts: at most so many, for a minimum or a saddle.
        seed: of the random shifts of further attempts.

    Returns:
        A FoundPoint, also where the search has failed: ``converged`` and ``outcome`` say so.

    Raises:
        InputError: the evaluator is of float32; an argument is of no use, or differs between ranks.

    Cost: a step takes two gradients, and n products up to 300 parameters; otherwise two products
    for each of LSMR's steps. Every rank of several iterates alike, on the same sums.
    """
    _check(ev, kind, tol, max_steps, attempts)
    theta = ev.checked(start)
    require_same_computation(
        Hessian(ev, theta),
        "find_critical_point",
        kind=kind,
        tol=tol,
        max_steps=max_steps,
        attempts=attempts,
        seed=seed,
    )
    rng, steps, attempt, begin = np.random.default_rng(seed), 0, 0, theta
    while True:
        attempt += 1
        end, outcome, taken = _attempt(ev, begin, kind, tol, max_steps)
        steps += taken
        point = critical.classify(ev, end)
        if outcome == "found" and kind != "any" and point.kind != kind:
            open_ = kind == "minimum" and point.kind == "undecided" and not point.negative
            outcome = "undecided" if open_ else "other kind"
        if kind == "any" or outcome in ("found", "undecided") or attempt >= attempts:
            break
        # A minimum is beside a saddle; a saddle is anywhere but where the minimum was.
        base = end if kind == "minimum" and outcome == "other kind" else theta
        shift = torch.from_numpy(rng.standard_normal(ev.n)).to(base) / ev.n**0.5
        begin = base + SHIFTS[kind] * attempt * _size(base) * shift
    distance = length(end - theta)
    return FoundPoint(end, point, outcome, distance, steps, attempt)


def _check(ev: Evaluator, kind: str, tol: float, max_steps: int, attempts: int) -> None:
    require_whole(1, max_steps=max_steps, attempts=attempts)
    if kind not in get_args(Wanted):
        raise InputError(f"kind={kind!r}: expected one of {', '.join(get_args(Wanted))}")
    if not math.isfinite(tol) or tol <= 0:
        raise InputError(f"tol={tol}: expected a finite number above 0")
    if ev.dtype != torch.float64:
        raise InputError(
            f"an evaluator of {ev.dtype}: a critical point is found in float64; make the evaluator "
            "with dtype=torch.float64"
        )


def _attempt(
    ev: Evaluator, theta: Tensor, kind: str, tol: float, max_steps: int
) -> tuple[Tensor, str, int]:
    """(theta, outcome, Newton steps)."""
    try:
        if kind == "minimum":
            theta = _descended(ev, theta)
        return _newton(ev, theta, tol, max_steps)
    except FloatingPointError:
        return theta, "not finite", 0


def _descended(ev: Evaluator, theta: Tensor) -> Tensor:
    """Where a trust region on the loss has come to, from theta."""
    unit = ev.gradient_norm(theta)
    if not unit:
        return theta

    def tensor(x: Array) -> Tensor:
        return torch.from_numpy(np.array(x, dtype=np.float64)).to(theta)

    def loss(x: Array) -> float:  # inf: the step is refused, and the region shrinks
        found = ev.loss(tensor(x)[None]).item() / unit
        return found if math.isfinite(found) else math.inf

    def product(x: Array, v: Array) -> Array:
        return _numpy(Hessian(ev, tensor(x)) @ tensor(v)) / unit

    found = minimize(
        loss,
        _numpy(theta),
        jac=lambda x: _numpy(ev.gradient(tensor(x))) / unit,
        hessp=product,
        method="trust-krylov",
        options={"gtol": DESCENT_TOL, "maxiter": DESCENT_STEPS},
    )
    return tensor(found.x)


def _newton(ev: Evaluator, theta: Tensor, tol: float, max_steps: int) -> tuple[Tensor, str, int]:
    """(theta, outcome, steps) of Levenberg-Marquardt steps on the gradient."""
    gradient, damping = _numpy(ev.gradient(theta)), FIRST_DAMPING
    for step in range(max_steps):
        norm, linear = float(np.linalg.norm(gradient)), _Linear(ev, theta)
        size = _size(theta)
        if norm <= min(tol, NEAR * linear.scale * size):
            return theta, "found", step
        change = float(np.linalg.norm(linear.product(gradient))) * size / norm**2
        if norm > tol and change <= STAGNATION:
            return theta, "stagnation", step
        while True:
            direction, predicted = linear.step(gradient, damping * linear.scale)
            moved = theta + torch.from_numpy(direction).to(theta)
            ahead = _finite_gradient(ev, moved)
            # The fall of |g|, over what the linear model says.
            ratio = (norm - np.linalg.norm(ahead)) / max(norm - predicted, TINY)
            if ratio > LEAST_RATIO:
                break
            damping *= 4
            if damping > MOST_DAMPING or not (moved != theta).any():
                return theta, _end(norm, tol, critical.TOL * linear.scale * size, change), step
        damping = max(damping / 5, LEAST_DAMPING) if ratio > 0.5 else damping
        theta, gradient = moved, ahead
    return theta, "steps", max_steps


def _end(norm: float, tol: float, near: float, change: float) -> str:
    """The outcome where no step lowers |g| any more: by its rounding, or as it is stationary."""
    if norm <= min(tol, near):
        return "found"
    return "stagnation" if change <= STAGNATION**0.5 else "steps"


class _Linear:
    """The gradient's linear model g + H d at theta."""

    def __init__(self, ev: Evaluator, theta: Tensor):
        self.matrix = critical.hessian(ev, theta)
        self.values = self.rows = None
        if ev.n <= critical.DENSE:
            whole = critical.whole_spectrum(self.matrix)
            self.values, self.rows = whole.values, whole.vectors
            self.scale = float(np.abs(whole.values).max())
        else:
            self.scale = critical.scale_of(self.matrix)

    def product(self, v: Array) -> Array:
        return _numpy(self.matrix @ torch.from_numpy(v).to(self.matrix.device))

    def step(self, gradient: Array, damping: float) -> tuple[Array, float]:
        """d that minimizes |H d + g|^2 + damping^2 |d|^2, and |H d + g|."""
        if self.values is not None and self.rows is not None:
            parts = self.rows @ gradient
            d = -(self.values * parts / (self.values**2 + damping**2)) @ self.rows
            left = parts * damping**2 / (self.values**2 + damping**2)
            return d, float(np.linalg.norm(left))
        d, *_ = lsmr(
            self.matrix.to_scipy(), -gradient, damp=damping, atol=LSMR_TOL, btol=LSMR_TOL, conlim=0
        )
        return d, float(np.linalg.norm(gradient + self.product(d)))


def _finite_gradient(ev: Evaluator, theta: Tensor) -> Array:
    """The gradient; infinite where it is not finite, so that the step is refused."""
    try:
        found = _numpy(ev.gradient(theta))
    except FloatingPointError:
        return np.full(ev.n, math.inf)
    return found if np.isfinite(found).all() else np.full(ev.n, math.inf)


def _size(theta: Tensor) -> float:
    return max(1.0, length(theta))


def _numpy(tensor: Tensor) -> Array:
    found: Array = tensor.detach().cpu().numpy()
    return found
