"""Block Gram-Schmidt: orthonormal rows, and the extension of a Krylov space, by two reductions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum.distributed.world import Flags, World
from hessian_spectrum.krylov import small_dense as algebra
from hessian_spectrum.krylov.small_dense import EPS, Array, product

# Normalizing a direction that is shorter than its row by this factor magnifies what rounding left
# along the basis, and along the other rows, by the inverse: it is orthogonalized once more.
LEAST_RATIO = 0.03


class Extension(NamedTuple):
    """A Q = along Q + out Q_next, for the block that was multiplied."""

    rows: Tensor  # (k', n_local), Q_next
    along: Array  # (k, r)
    out: Array  # (k, k')
    scale: float  # the largest |A q| so far


def orthonormal(rows: Tensor, world: World, most: int) -> tuple[Tensor, Array]:
    """Orthonormal Q, (k', n_local), and out, (k, k'), with rows = out Q.

    Up to ``most`` rows, without directions that are rounding. Two small reductions, or three.
    """
    gram = world.sum_together(algebra.gram(rows))[0].numpy()
    tolerance = 10 * torch.finfo(rows.dtype).eps * math.sqrt(gram.diagonal().max())
    rows, out, _ = orthonormalized(rows, rows[:0], gram, world, tolerance, most)
    return rows, out


def extension(
    aq: Tensor,
    basis: Tensor,
    world: World,
    scale: float,
    noise: float,
    most: int,
    flags: Flags | None = None,
    precise: bool = False,
) -> Extension | None:
    """Split A Q into coordinates along ``basis`` and new rows; None if it is not finite.

    Block classical Gram-Schmidt, twice: each projection travels with the Gram matrix of its rows,
    whose Cholesky factors make them orthonormal, as in [1]: BCGSI+P-2S of [2]. Gram matrices are
    float64, and shifted [3]. Where a direction is short, or the block loses rank, a third pass in
    the order of the singular values.

    Args:
        aq: A Q for the block that was multiplied, (k, n_local).
        basis: (r, n_local), orthonormal.
        scale: the largest |A q| before. Directions shorter than 10 eps times it, or than ``noise``
            times it, are left out.
        most: how many rows there may be.
        flags: what ranks tell each other, sent with the second reduction.
        precise: form inner products of float32 vectors in float64. Rounded to eps, they would show
            as an asymmetry of eps, which is that of products with an error of sqrt(n) eps.

    Cost: 8 k r n_local flops, and two reductions of k (r + k) float64 numbers, or three.

    References:
        [1] Yamamoto, Nakatsukasa, Yanagisawa & Fukaya, ETNA 44 (2015) 306-326.
        [2] Carson, Lund, Ma & Oktay, On the loss of orthogonality in low-synchronization variants
            of reorthogonalized block classical Gram-Schmidt (2024).
        [3] Fukaya, Kannan, Nakatsukasa, Yamamoto & Yanagisawa, SIAM J. Sci. Comput. 42 (2020).
    """
    along = algebra.inner(aq, basis) if precise else aq @ basis.T
    h, gram = (a.numpy() for a in world.sum_together(along, algebra.gram(aq)))
    # A NaN in one product makes the reduced coefficients NaN on every rank.
    if not (np.isfinite(h).all() and np.isfinite(gram).all()):
        return None
    scale = max(scale, math.sqrt(gram.diagonal().max()))
    tolerance = max(10 * torch.finfo(aq.dtype).eps, noise) * scale
    r = aq - torch.from_numpy(h).to(aq) @ basis
    gram = gram - product(h, h.T)  # of r; what is short drowns in rounding
    rows, out, c = orthonormalized(r, basis, gram, world, tolerance, most, flags, precise)
    return Extension(rows, h + c, out, scale)


def orthonormalized(
    rows: Tensor,
    basis: Tensor,
    gram: Array,
    world: World,
    tolerance: float,
    most: int,
    flags: Flags | None = None,
    precise: bool = False,
) -> tuple[Tensor, Array, Array]:
    """Orthonormal Q, (k', n_local), out (k, k') and c (k, r): rows = out Q + c basis.

    Directions of length ``tolerance`` or less are left out, and all but the ``most`` longest. One
    small reduction, or two.

    Args:
        gram: about that of the rows, of all ranks.
        basis: orthonormal; little of the rows lies along it.
    """
    eps = torch.finfo(rows.dtype).eps
    # The solver and the coefficients must agree on the factor: it is rounded as the rows are.
    first = _rounded(algebra.shifted_cholesky(gram, eps), rows.dtype)
    rows, c, gram = _projected(_solved(first, rows), basis, world, flags, precise)
    second, c = algebra.cholesky(gram), product(first, c)
    if second is not None and len(rows) <= most:
        out = product(first, second)
        if algebra.smallest(second) > LEAST_RATIO and algebra.smallest(out) > tolerance:
            return _solved(second, rows), out, c

    second = algebra.shifted_cholesky(gram, EPS)
    p, lengths, z = algebra.singular(product(first, second))
    rows = torch.from_numpy(z.T.copy()).to(rows) @ _solved(second, rows)
    # What lies along the basis now is what rounding left there before the rows were lengthened: of
    # what was given it is eps, as the products' own rounding, and not counted.
    rows, _, gram = _projected(rows, basis, world)
    out = p * lengths
    # The shift lengthened short directions: the measured length decides.
    real = lengths * np.sqrt(gram.diagonal().clip(min=0.0))
    kept, third = algebra.independent(gram, np.flatnonzero(real > tolerance), most)
    rows = rows[torch.from_numpy(kept).to(rows.device)]
    return _solved(third, rows), product(out[:, kept], third), c


def _projected(
    rows: Tensor,
    basis: Tensor,
    world: World,
    flags: Flags | None = None,
    precise: bool = False,
) -> tuple[Tensor, Array, Array]:
    """Rows without their part along the basis, its coordinates, and the Gram matrix of the rest."""
    answers = flags.answers() if flags else torch.empty(0)
    along = algebra.inner(rows, basis) if precise else rows @ basis.T
    sums, gram, counts = world.sum_together(along, algebra.gram(rows), answers)
    if flags:
        flags.hear(counts)
    rows, c = rows - sums.to(rows) @ basis, sums.numpy()
    return rows, c, gram.numpy() - product(c, c.T)


def _solved(lower: Array, rows: Tensor) -> Tensor:
    """L^-1 R."""
    return torch.linalg.solve_triangular(torch.from_numpy(lower).to(rows), rows, upper=False)


def _rounded(a: Array, dtype: torch.dtype) -> Array:
    return torch.from_numpy(a).to(dtype).double().numpy()
