"""The largest eigenvalue, or the smallest and the largest, from one Krylov space started from the
eigenvectors of a nearby matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.krylov import block_lanczos
from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.krylov.dense_eigen import eigh
from hessian_spectrum.krylov.state import Array
from hessian_spectrum.operators.base import SymmetricOperator

# Length of the random part of a warm start, beside vectors of length 1: it has a component along
# eigenvectors that are orthogonal to these.
RANDOM_SHARE = 0.1
INNER_WEIGHT = 3.0  # in a warm start, of the end nearer to 0, which converges more slowly
STEPS = 80  # before a space is restarted from its two Ritz vectors


@dataclass(frozen=True)
class Extremes:
    """The ends of a spectrum, as Ritz pairs of a space that has grown to them.

    An eigenvalue lies within ``residuals`` of each value. That none lies further out holds unless
    the random part of the start is nearly orthogonal to its eigenvector.
    """

    values: Array  # (2,), smallest, largest; or (1,), the largest
    residuals: Array  # (2,) or (1,), |A v - lambda v|, in units of the eigenvalues
    vectors: Tensor  # (2, n_local) or (1, n_local), unit norm
    products: int
    converged: bool

    @property
    def combined(self) -> Tensor:
        """(1, n_local), a start for all of them."""
        weights = torch.ones(
            len(self.values), 1, dtype=self.vectors.dtype, device=self.vectors.device
        )
        if len(weights) == 2:
            weights[int(np.abs(self.values).argmin())] = INNER_WEIGHT
        return (weights * self.vectors).sum(0, keepdim=True)


def extremes(
    operator: SymmetricOperator,
    warm: Extremes | None = None,
    *,
    tol: float = 1e-5,
    max_products: int = 500,
    max_steps: int = STEPS,
    seed: int = 0,
    largest_only: bool = False,
) -> Extremes:
    """Lanczos from one vector until both ends have converged, or the upper one.

    The start is one vector, the sum of the eigenvectors where they are known: a block of two would
    reach half the degree with the same number of products. Tried on maps, and no better: other
    weights of the two or of the random part; more Ritz vectors of the neighbour; extrapolation
    over two or three neighbours, of eigenvectors or of the matrices' low-rank parts; Davidson's
    method from the two vectors, plain or preconditioned by the neighbour's Ritz pairs.

    Args:
        warm: the result for a nearby matrix; None: a random start.
        tol: an end has converged where its residual is at most ``tol`` times the larger |value|, or
            at most what rounding allows.
        max_products: an end that has not converged by then is returned as it is.
        max_steps: products before a restart; memory is (max_steps + 1) n_local entries.
        largest_only: look for the largest eigenvalue alone; its scale is that of both.

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
            if largest_only:
                values, coordinates, residuals = values[1:], coordinates[:, 1:], residuals[1:]
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
    values, s = eigh(space.t)
    s = s[:, [0, -1]]
    out = space.off[-1]
    residuals = np.linalg.norm(out.T @ s[-len(out) :], axis=0) if out.size else np.zeros(2)
    return values[[0, -1]], s, residuals
