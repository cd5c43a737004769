"""Both ends of a spectrum from one Krylov space, which may start from what a neighbour found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.krylov import block_lanczos
from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.operators.base import SymmetricOperator

Array = NDArray[np.float64]

# Of a warm start, beside vectors of length 1: an eigenvector that they cannot see is seen by it.
RANDOM_SHARE = 0.1
SLOWER = 3.0  # weight of the end nearer to 0, which takes longer, in a warm start
STEPS = 80  # before a space is started again from its two Ritz vectors


@dataclass(frozen=True)
class Extremes:
    """The smallest and the largest eigenvalue, as Ritz pairs of a space that has grown to them.

    An eigenvalue lies within ``residuals`` of each value; that none lies outside of them is as sure
    as that the random part of the start has seen it.
    """

    values: Array  # (2,), smallest, largest
    residuals: Array  # (2,), |A v - lambda v|, in units of the eigenvalues
    vectors: Tensor  # (2, n_local), unit norm
    products: int
    converged: bool

    @property
    def combined(self) -> Tensor:
        """(1, n_local), a start for both."""
        weights = torch.ones(2, 1, dtype=self.vectors.dtype, device=self.vectors.device)
        weights[int(np.abs(self.values).argmin())] = SLOWER
        return (weights * self.vectors).sum(0, keepdim=True)


def extremes(
    operator: SymmetricOperator,
    warm: Extremes | None = None,
    *,
    tol: float = 1e-5,
    max_products: int = 500,
    max_steps: int = STEPS,
    seed: int = 0,
) -> Extremes:
    """Lanczos from one vector until both ends have converged.

    One vector, the sum of what is known of both ends: a block of two would reach half the degree
    with the same number of products. Tried on maps and found to be no better, or worse: other
    weights of the two, or of the random part; more Ritz vectors of the neighbour; extrapolation
    over two or three neighbours, of eigenvectors or of the matrices' low-rank parts; Davidson's
    method from the two vectors, plain or preconditioned by the neighbour's Ritz pairs.

    Args:
        warm: of a matrix nearby; None: a random start.
        tol: accepted are residuals of at most ``tol`` times the larger |value|; never less than
            rounding allows.
        max_products: what has not converged by then is returned as it is.
        max_steps: products before a restart; memory is (max_steps + 1) n_local entries.

    Raises:
        FloatingPointError: a product is not finite.

    Cost: one product, two passes of Gram-Schmidt and four small reductions a step.
    """
    if not 0 < tol < 1 or max_products < 1 or max_steps < 2:
        raise InputError(
            f"tol={tol}, max_products={max_products}, max_steps={max_steps}: expected a tolerance "
            "between 0 and 1, 1 or more products and 2 or more steps"
        )
    layout, n = operator.layout, operator.n
    start = gaussian_probes(layout, range(1), seed, operator.dtype, operator.device)
    if warm is not None:
        start = warm.combined + RANDOM_SHARE / n**0.5 * start
    floor = 10 * torch.finfo(operator.dtype).eps
    spent = 0
    while True:
        steps = min(max_steps, n, max_products - spent)
        space = block_lanczos.start(operator, start, steps)
        for _ in range(steps):
            space = space.step(operator)
            spent += 1
            values, coordinates, residuals = _ends(space)
            scale = np.abs(values).max()
            met = bool((residuals <= max(tol, floor) * scale).all())
            done = space.is_finished or (met and spent > 1)
            if done:
                break
        rows = torch.from_numpy(coordinates.T.copy()).to(space.basis) @ space.basis[: space.order]
        found = Extremes(values, np.maximum(residuals, floor * scale), rows, spent, done)
        if done or spent >= max_products:
            return found
        start = found.combined


def _ends(space: BlockSpace) -> tuple[Array, Array, Array]:
    """Ritz values (2,), their coordinates (order, 2) and residuals (2,)."""
    values, s = np.linalg.eigh(space.t)
    s = s[:, [0, -1]]
    out = space.off[-1]
    residuals = np.linalg.norm(out.T @ s[-len(out) :], axis=0) if out.size else np.zeros(2)
    return values[[0, -1]], s, residuals
