"""Damped linear systems (A + damping I) x = b, by SciPy's MINRES."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, minres
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms.residual_check import NUM_COMBINATIONS, arithmetic_error
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.same_call import require_same_computation
from hessian_spectrum.planning.planned_operator import planned

EXPECTED_STEPS = 100  # products that a plan is made for
WORKING_VECTORS = 16  # of the operator's dtype; SciPy's MINRES holds about eight in float64
LEAST_RTOL = 1e-15  # relative tolerance below which MINRES is not asked to go


@dataclass(frozen=True)
class Solution:
    """An approximate solution of (A + damping I) x = b."""

    x: Tensor  # (n,), whole, the same on every rank
    # |b - (A + damping I) x| / |b|, with one more product: in float64 where the operator has such;
    # otherwise it includes the rounding of the product, as it was estimated
    residual: float
    converged: bool  # residual <= tol
    num_products: int


def solve(
    operator: SymmetricOperator,
    b: Tensor,
    damping: float = 0.0,
    *,
    tol: float = 1e-6,
    max_steps: int | None = None,
) -> Solution:
    """Solve (A + damping I) x = b by MINRES (Paige and Saunders 1975), A definite or not.

    Args:
        b: shape (n,), whole, the same on every rank.
        damping: added to every eigenvalue. A negative number shifts into the spectrum.
        tol: wanted |residual| / |b|; the rounding of the products limits what can be reached.
        max_steps: default 5 n, as SciPy's.

    Raises:
        InputError: b has another shape, is zero or not finite; an argument differs between ranks.
        FloatingPointError: a product is not finite.

    Cost: a product a step, and three each time that MINRES is started again. Rank 0 iterates in
    float64; each product is one broadcast of n entries and the operator's own exchange.
    """
    world, n = operator.layout.world, operator.n
    b = torch.as_tensor(b).detach()
    require_same_computation(operator, "solve", b=b, damping=damping, tol=tol, max_steps=max_steps)
    if tuple(b.shape) != (n,):
        raise InputError(f"b has shape {tuple(b.shape)}; expected ({n},)")
    if not b.isfinite().all() or not b.any():
        raise InputError("b must be finite and not zero")
    if not math.isfinite(damping) or not 0 < tol < 1:
        raise InputError(
            f"damping={damping}, tol={tol}: expected a finite number, and one in (0, 1)"
        )
    if max_steps is not None and (not isinstance(max_steps, int) or max_steps < 1):
        raise InputError(f"max_steps={max_steps}: expected a whole number, 1 or more")
    steps = max_steps or 5 * n
    # The solver's vectors are whole, on rank 0.
    operator = planned(operator, 1, min(EXPECTED_STEPS, steps), kept=WORKING_VECTORS * world.size)
    right = b.double().cpu().numpy()
    products = _Products(operator)
    found, error = np.zeros(n), None
    if world.rank == 0:
        try:
            found = _refined(products, right, damping, tol, steps)
        except Exception as failed:
            error = failed
        finally:
            products.end()
    else:
        error = products.follow()
    world.raise_together(error)
    x = world.sum(torch.from_numpy(found).to(operator.device))
    x, size = x.to(operator.dtype), b.double().norm().item()
    residual, more = _residual(operator, x, b.to(x.device).double(), damping)
    return Solution(x, residual / size, residual <= tol * size, products.count + more)


def _residual(
    operator: SymmetricOperator, x: Tensor, b: Tensor, damping: float
) -> tuple[float, int]:
    """|b - (A + damping I) x|, and the products that it took."""
    exact, doubled = operator.in_float64(), x.double()
    misfit = b - (exact @ x.to(exact.dtype)).double() - damping * doubled
    if exact is not operator or operator.dtype == torch.float64 or not x.any():
        return misfit.norm().item(), 1
    length = doubled.norm()
    row = operator.layout.local((doubled / length).to(operator.dtype)[None]).contiguous()
    rounding = arithmetic_error(operator, row, seed=0) * length.item()
    return misfit.norm().item() + rounding, 1 + 2 * NUM_COMBINATIONS


def _refined(
    products: _Products, right: np.ndarray, damping: float, tol: float, max_steps: int
) -> np.ndarray:
    """MINRES, restarted for the residual: SciPy's stops by |r| / (|A| |x|), not by |r| / |b|."""
    matrix = LinearOperator((len(right),) * 2, matvec=products.lead, dtype=np.float64)
    x, r, rtol = np.zeros_like(right), right, tol / 10
    while np.linalg.norm(r) > tol * np.linalg.norm(right) and products.count < max_steps:
        before, steps = np.linalg.norm(r), max_steps - products.count
        x = x + minres(matrix, r, rtol=rtol, shift=-damping, maxiter=steps)[0]
        r = right - products.lead(x) - damping * x
        if rtol <= LEAST_RTOL and not np.linalg.norm(r) < before / 2:  # the products' rounding
            break
        rtol = max(rtol / 100, LEAST_RTOL)
    return x


class _Products:
    """Products that rank 0 requests: it alone iterates, so that all ranks form the same ones."""

    def __init__(self, operator: SymmetricOperator):
        self.operator, self.count = operator, 0

    def lead(self, v: np.ndarray) -> np.ndarray:
        product = self._product(torch.from_numpy(np.ascontiguousarray(v.reshape(-1))))
        if not product.isfinite().all():
            raise FloatingPointError("a product with the operator is not finite")
        return product.double().cpu().numpy()

    def follow(self) -> Exception | None:
        """On the other ranks: take part until rank 0 ends. The error of a product, if any."""
        error = None
        while self._announced(True):
            try:
                self._product(torch.zeros(self.operator.n, dtype=torch.float64), announced=True)
            except Exception as failed:  # raised on rank 0 as well, which now ends
                error = failed
        return error

    def end(self) -> None:
        self._announced(False)

    def _product(self, v: Tensor, announced: bool = False) -> Tensor:
        if not announced:
            self._announced(True)
        self.count += 1
        operator = self.operator
        return operator @ operator.layout.world.sum(v.to(operator.device)).to(operator.dtype)

    def _announced(self, more: bool) -> bool:
        """Tell, or learn, whether rank 0 requests another product."""
        world = self.operator.layout.world
        wanted = float(more and world.rank == 0)
        return world.sum(torch.tensor([wanted], device=world.device)).item() > 0
