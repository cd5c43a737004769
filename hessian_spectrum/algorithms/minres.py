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
from hessian_spectrum.distributed.arrays import as_tensor, length
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
    b = as_tensor(b)
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
    size = _power_of_two(b.double().abs().max().item())
    right = b.double() / size
    products = _Products(operator, damping)
    found, error = np.zeros(n), None
    if world.rank == 0:
        try:
            found = _refined(products, right.cpu().numpy(), tol, steps)
        except Exception as failed:
            error = failed
        finally:
            products.end()
    else:
        error = products.follow()
    world.raise_together(error)
    own = products.unit if world.rank == 0 else 0.0
    unit = world.sum(torch.tensor([own], dtype=torch.float64, device=world.device))
    y = world.sum(torch.from_numpy(found).to(operator.device)).to(operator.dtype)
    residual, more = _residual(operator, y, right.to(y.device), damping, unit.item())
    residual /= length(right)
    # In Python's numbers: the quotient of the two may be what overflows in float32.
    x = (y.double() * (size / unit.item())).to(operator.dtype)
    return Solution(x, residual, residual <= tol, products.count + more)


def _residual(
    operator: SymmetricOperator, y: Tensor, right: Tensor, damping: float, unit: float
) -> tuple[float, int]:
    """|right - (A + damping I) y / unit|, and the products that it took."""
    exact, doubled = operator.in_float64(), y.double()
    image = (exact @ y.to(exact.dtype)).double() / unit + damping / unit * doubled
    misfit = (right - image).norm().item()
    if exact is not operator or operator.dtype == torch.float64 or not y.any():
        return misfit, 1
    length = doubled.norm()
    row = operator.layout.local((doubled / length).to(operator.dtype)[None]).contiguous()
    rounding = arithmetic_error(operator, row, seed=0) * (length.item() / unit)
    return misfit + rounding, 1 + 2 * NUM_COMBINATIONS


def _refined(products: _Products, right: np.ndarray, tol: float, max_steps: int) -> np.ndarray:
    """y with (A + damping I) y / unit = right.

    MINRES, restarted for the residual: SciPy's stops by |r| / (|A| |x|), not by |r| / |b|.
    """
    matrix = LinearOperator((len(right),) * 2, matvec=products.lead, dtype=np.float64)
    y, r, rtol = np.zeros_like(right), right, tol / 10
    while np.linalg.norm(r) > tol * np.linalg.norm(right) and products.count < max_steps:
        before, steps = np.linalg.norm(r), max_steps - products.count
        y = y + minres(matrix, r, rtol=rtol, maxiter=steps)[0]
        r = right - products.lead(y)
        if rtol <= LEAST_RTOL and not np.linalg.norm(r) < before / 2:  # the products' rounding
            break
        rtol = max(rtol / 100, LEAST_RTOL)
    return y


def _power_of_two(size: float) -> float:
    return math.ldexp(1.0, math.frexp(size)[1]) if size else 1.0


class _Products:
    """Products that rank 0 requests: it alone iterates, so that all ranks form the same ones.

    Attributes:
        unit: a power of two, the size of the first product. MINRES squares what it is given, which
            no number may hold for matrices of size 1e160 or 1e-160.
    """

    def __init__(self, operator: SymmetricOperator, damping: float):
        self.operator, self.damping, self.count = operator, damping, 0
        self.unit = 0.0  # not known yet

    def lead(self, v: np.ndarray) -> np.ndarray:
        """(A + damping I) v / unit."""
        v = np.ascontiguousarray(v.reshape(-1))
        product = self._product(torch.from_numpy(v))
        if not product.isfinite().all():
            raise FloatingPointError("a product with the operator is not finite")
        image = product.double().cpu().numpy() + self.damping * v
        self.unit = self.unit or _power_of_two(float(np.abs(image).max()))
        return image / self.unit

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
