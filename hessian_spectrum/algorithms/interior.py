"""Eigenpairs inside the spectrum, nearest to a shift, by solutions with the shifted matrix."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms.eigenpairs import EXPECTED_STEPS, eigenpairs
from hessian_spectrum.algorithms.minres import WORKING_VECTORS, solve
from hessian_spectrum.algorithms.residual_check import arithmetic_error
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.in_range import InRange
from hessian_spectrum.operators.same_call import require_same_computation
from hessian_spectrum.planning.planned_operator import planned
from hessian_spectrum.spectral.eigenpairs import EigenPairs

NORM_TOL = 1e-2  # relative error of |lambda|max, which only scales the tolerance
SHARPER = 5  # the tolerance over that for pairs of the inverse, and that over the solutions'


class ShiftInverted(SymmetricOperator):
    """(A - shift I)^-1 by MINRES: its largest eigenvalues belong to A's nearest to the shift.

    Args:
        tol: |b - (A - shift I) x| / |b| of each solution.
        max_steps: of MINRES, for each.

    Attributes:
        worst: the largest relative residual of a solution so far.
    """

    def __init__(self, base: SymmetricOperator, shift: float, tol: float, max_steps: int):
        self.base, self.layout, self.dtype = base, base.layout, base.dtype
        self.shift, self.tol, self.max_steps = shift, tol, max_steps
        self.worst = 0.0

    def products(self, vectors: Tensor) -> Tensor:
        return torch.cat([self._solution(row) for row in self.layout.gather(vectors)])

    def _solution(self, row: Tensor) -> Tensor:
        found = solve(self.base, row, -self.shift, tol=self.tol, max_steps=self.max_steps)
        self.worst = max(self.worst, found.residual)
        return self.layout.local(found.x[None])


def eigenpairs_near(
    operator: SymmetricOperator,
    shift: float,
    k: int = 1,
    tol: float = 1e-6,
    *,
    seed: int = 0,
    max_solves: int | None = None,
    max_steps: int | None = None,
) -> EigenPairs:
    """The k eigenpairs nearest to ``shift``: those of (A - shift I)^-1 that are largest in size.

    Each of its products is a MINRES solution. An error of relative size e in them leaves an error
    e |lambda - shift| in A v - lambda v: close eigenvalues are found to more digits than e.

    Args:
        shift: no eigenvalue; the shifted matrix is solved with.
        tol: a pair has converged where |A v - lambda v| is at most tol times |lambda|max.
        max_solves: default 20, and 10 for each pair.
        max_steps: products for one solution. Default: five times the operator's size.

    Returns:
        Pairs in ascending order; values are Rayleigh quotients, residuals |A v - lambda v| by a
        product each, which includes the error of solutions that did not reach their tolerance. Of
        an operator in float32 these products are formed in float64, or, where it has none, their
        rounding error is measured and added.

    Cost: some ten solutions for each pair, each of as many products as the spread of the spectrum
    over the distance of ``shift`` from the nearest eigenvalue, at most.
    """
    require_same_computation(
        operator,
        "eigenpairs_near",
        shift=shift,
        k=k,
        tol=tol,
        seed=seed,
        max_solves=max_solves,
        max_steps=max_steps,
    )
    if not isinstance(shift, (int, float)) or not math.isfinite(shift):
        raise InputError(f"shift={shift}: expected a finite number")
    most = max_solves or 20 + 10 * k
    operator = planned(operator, 1, EXPECTED_STEPS, kept=most + WORKING_VECTORS)
    # Its first product, in the run that follows, decides its unit.
    operator = InRange(operator)
    norm = np.abs(
        eigenpairs(
            operator, 1, "magnitude", NORM_TOL, seed=seed, copies=False, vectors=False
        ).values
    ).max()
    if norm == 0:
        raise InputError("the operator is zero: it has no eigenvalue inside its spectrum")
    # A residual of the inverse, relative to its largest eigenvalue, is one of A times
    # |A - shift| |lambda - shift|, which differs between the pairs.
    unit = operator.unit
    sharper, least = tol / SHARPER, 10 * torch.finfo(operator.dtype).eps
    inverse = ShiftInverted(
        operator, shift / unit, max(sharper / SHARPER, least), max_steps or 5 * operator.n
    )
    found = eigenpairs(inverse, k, "magnitude", max(sharper, least), seed=seed, max_products=most)
    vectors = np.asarray(found.vectors)
    rows = torch.from_numpy(vectors).to(operator.device)
    values, residuals = _rayleigh_quotients(operator, rows, seed)
    order = np.argsort(values)
    return EigenPairs(
        values[order] * unit,
        residuals[order] * unit,
        residuals[order] <= tol * norm,
        vectors[order],
    )


def _rayleigh_quotients(
    operator: SymmetricOperator, rows: Tensor, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rho = v A v^T, |v A - rho v|) of whole rows v, (k, n)."""
    exact = operator.in_float64()
    if exact is not operator:
        operator.forget()  # there may be no room for both
    v = rows.double()
    v = v / v.norm(dim=1, keepdim=True)
    images = (exact @ v.T).T.double()
    values = (v * images).sum(1)
    residuals = (images - values[:, None] * v).norm(dim=1).cpu().numpy()
    if exact.dtype != torch.float64:
        residuals += arithmetic_error(exact, exact.layout.local(rows.to(exact.dtype)), seed)
    return values.cpu().numpy(), residuals
