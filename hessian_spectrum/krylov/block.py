"""Block Lanczos: all probes share one Krylov space."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessian_spectrum.distributed import Flags, World
from hessian_spectrum.errors import InputError
from hessian_spectrum.krylov.basis import Place, allocate_together
from hessian_spectrum.krylov.gram import (
    EPS,
    cholesky,
    independent,
    product,
    shifted_cholesky,
    singular,
    smallest,
)
from hessian_spectrum.krylov.gram import gram as local_gram
from hessian_spectrum.krylov.noise import asymmetry, not_finite
from hessian_spectrum.operators import SymmetricOperator

Array = NDArray[np.float64]

# Normalizing a direction this much shorter than its row magnifies what rounding left of it along
# the basis, and along the others, by the inverse: it is orthogonalized once more.
SHORT = 0.03


@dataclass(frozen=True)
class BlockSpace:
    """An orthonormal basis Q of a block Krylov space after m steps: Q A = T Q + E_m C_m Q_{m+1}.

    Vectors are rows, in blocks Q_1, ..., Q_{m+1} of at most b rows; ``basis`` is filled in place by
    ``step``: of two states of one run, only the later may go on.
    """

    # (capacity, n_local), on the device, the host or a disk: rows, then unused; lean: the last two
    # blocks only
    basis: Tensor
    sizes: tuple[int, ...]  # (m + 1,), rows of each block; the last, perhaps 0, is multiplied next
    first: Array  # (b, sizes[0]), the probes are first @ Q_1
    diagonal: tuple[Array, ...] = ()  # m blocks, T[k, k] = Q_k A Q_k^T
    off: tuple[Array, ...] = ()  # m blocks C_k = T[k, k + 1]; the last leads out of the space
    scale: float = 0.0  # the largest |A q| so far: what breakdown is judged against
    noise: float = 0.0  # relative error of a product, measured as asymmetry in the first step
    lean: bool = False  # without reorthogonalization

    @property
    def window(self) -> tuple[int, int]:
        """The vectors that ``basis`` holds: from the first, or lean from the last two blocks."""
        rank = sum(self.sizes)
        return rank - sum(self.sizes[-2:]) if self.lean else 0, rank

    @property
    def num_vectors(self) -> int:
        """How many ``basis`` holds."""
        low, high = self.window
        return high - low

    @property
    def num_steps(self) -> int:
        return len(self.diagonal)

    @property
    def order(self) -> int:
        """Of T: the number of basis vectors that were multiplied."""
        return sum(self.sizes[: self.num_steps])

    @property
    def is_invariant(self) -> bool:
        """No direction leads out of the space: T has all that the probes can see of A."""
        return self.sizes[-1] == 0

    @property
    def t(self) -> Array:
        """T, (order, order), block tridiagonal and symmetric."""
        t = np.zeros((self.order, self.order))
        ends = np.cumsum((0, *self.sizes))
        for k, a in enumerate(self.diagonal):
            here = slice(ends[k], ends[k + 1])
            t[here, here] = a
            if k + 1 < self.num_steps:
                after = slice(ends[k + 1], ends[k + 2])
                t[here, after] = self.off[k]
                t[after, here] = self.off[k].T
        return t


def start(
    operator: SymmetricOperator,
    probes: Tensor,
    num_steps: int,
    place: Place = "device",
    lean: bool = False,
) -> BlockSpace:
    """The space of the probes alone, with room for ``num_steps`` steps.

    Memory: b (num_steps + 1) n_local entries, and never more than n n_local; lean: 3 b n_local.

    Args:
        probes: (b, n_local), not all zero; more than n of them span no more than n dimensions.
        place: where the basis lives: "device", "host", or a folder on a disk.
        lean: keep the last two blocks only. Eigenvalues that have converged come back as ghosts,
            which share the weight that each probe gives to one (Greenbaum, Linear Algebra Appl.
            113 (1989)); nothing can be certified.

    Raises:
        InputError: no steps or no probes; no room on the disk.
    """
    if not isinstance(num_steps, (int, np.integer)) or not 1 <= num_steps <= operator.n:
        raise InputError(
            f"num_steps={num_steps} must lie between 1 and the operator's size {operator.n}, a "
            f"whole number; use num_steps <= {operator.n}"
        )
    if len(probes) == 0:
        raise InputError("num_probes=0: expected at least one probe")
    world = operator.layout.world
    gram = world.sum_together(local_gram(probes))[0].numpy()
    tolerance = 10 * torch.finfo(probes.dtype).eps * math.sqrt(gram.diagonal().max())
    rows, first, _ = _orthonormalized(probes, None, gram, world, tolerance, operator.n)
    if lean:
        return BlockSpace(rows, (len(rows),), first, lean=True)
    capacity = min(len(probes) * (num_steps + 1), operator.n)
    basis = allocate_together((capacity, probes.shape[1]), probes, world, place)
    basis[: len(rows)] = rows
    return BlockSpace(basis, (len(rows),), first)


def step(operator: SymmetricOperator, space: BlockSpace, flags: Flags | None = None) -> BlockSpace:
    """Multiply the last block: one block product, and the block that leads out of the space.

    Golub and Underwood (1977), except:
      1. classical Gram-Schmidt against the whole basis (lean: the last two blocks), twice: no
         eigenvalue appears more often than it is one;
      2. each projection travels with the Gram matrix of its rows, whose Cholesky factors make the
         residuals orthonormal as in [1]: two small reductions, BCGSI+P-2S of [2]. Gram matrices
         are float64, and shifted [3];
      3. where a direction is short, or the block loses rank, a third pass and reduction, in the
         order of the singular values: directions that are exhausted leave the block;
      4. rank is judged against the largest |A q| so far, and against the noise of the products.

    Args:
        flags: what ranks tell each other with the second reduction.

    Raises:
        FloatingPointError: a product is not finite; on every rank.

    Cost: 8 b r n_local flops for r basis vectors, all in matrix products; two small reductions of
    b (r + b) float64 numbers, three where directions are short, one more in the first step.

    References:
        [1] Yamamoto, Nakatsukasa, Yanagisawa & Fukaya, ETNA 44 (2015) 306-326.
        [2] Carson, Lund, Ma & Oktay, On the loss of orthogonality in low-synchronization variants
            of reorthogonalized block classical Gram-Schmidt (2024).
        [3] Fukaya, Kannan, Nakatsukasa, Yamamoto & Yanagisawa, SIAM J. Sci. Comput. 42 (2020).
    """
    world = operator.layout.world
    low, rank = space.window
    basis = space.basis[: rank - low]
    here = slice(len(basis) - space.sizes[-1], len(basis))
    q = basis[here].to(operator.device)
    aq = operator.products(q)
    noise = space.noise if space.num_steps else asymmetry(operator, q, aq)
    aq = aq.to(basis.device)
    h, gram = (a.numpy() for a in world.sum_together(aq @ basis.T, local_gram(aq)))
    # A NaN in one product makes the reduced coefficients NaN on every rank.
    if not (np.isfinite(h).all() and np.isfinite(gram).all()):
        raise not_finite(operator, f"block step {space.num_steps + 1}")
    scale = max(space.scale, math.sqrt(gram.diagonal().max()))
    tolerance = max(10 * torch.finfo(aq.dtype).eps, noise) * scale
    r = aq - torch.from_numpy(h).to(aq) @ basis
    gram = gram - product(h, h.T)  # of r; what is short drowns in rounding
    rows, out, c = _orthonormalized(r, basis, gram, world, tolerance, operator.n - rank, flags)
    if space.lean:
        space = replace(space, basis=torch.cat([basis[here], rows]))
    else:
        space.basis[rank : rank + len(rows)] = rows
    a = (h + c)[:, here]
    return replace(
        space,
        sizes=(*space.sizes, len(rows)),
        diagonal=(*space.diagonal, (a + a.T) / 2),
        off=(*space.off, out),
        scale=scale,
        noise=noise,
    )


def _orthonormalized(
    rows: Tensor,
    basis: Tensor | None,
    gram: Array,
    world: World,
    tolerance: float,
    most: int,
    flags: Flags | None = None,
) -> tuple[Tensor, Array, Array]:
    """Orthonormal Q, (k', n_local), out (k, k') and c (k, r): rows = out Q + c basis.

    Directions of length ``tolerance`` or less are left out, and all but the ``most`` longest. One
    small reduction, or two.

    Args:
        gram: about that of the rows, of all ranks.
        basis: orthonormal; little of the rows lies along it. None: there is none.
    """
    basis = rows[:0] if basis is None else basis
    eps = torch.finfo(rows.dtype).eps
    # The solver and the coefficients must agree on the factor: it is rounded as the rows are.
    first = _rounded(shifted_cholesky(gram, eps), rows.dtype)
    rows, c, gram = _projected(_solved(first, rows), basis, world, flags)
    second, c = cholesky(gram), product(first, c)
    out = None if second is None else product(first, second)
    if out is not None and len(rows) <= most:
        if smallest(second) > SHORT and smallest(out) > tolerance:
            return _solved(second, rows), out, c

    second = shifted_cholesky(gram, EPS)
    p, lengths, z = singular(product(first, second))
    rows = torch.from_numpy(z.T.copy()).to(rows) @ _solved(second, rows)
    rows, again, gram = _projected(rows, basis, world)
    out = p * lengths
    c = c + product(out, again)
    # The shift lengthened what is short: what counts is the length that was measured.
    real = lengths * np.sqrt(gram.diagonal().clip(min=0.0))
    kept, third = independent(gram, np.flatnonzero(real > tolerance), most)
    rows = rows[torch.from_numpy(kept).to(rows.device)]
    return _solved(third, rows), product(out[:, kept], third), c


def _projected(
    rows: Tensor, basis: Tensor, world: World, flags: Flags | None = None
) -> tuple[Tensor, Array, Array]:
    """The rows without what lies along the basis, that, and the Gram matrix of what is left."""
    answers = flags.answers() if flags else torch.empty(0)
    c, gram, counts = world.sum_together(rows @ basis.T, local_gram(rows), answers)
    if flags:
        flags.hear(counts)
    rows = rows - c.to(rows) @ basis
    c, gram = c.numpy(), gram.numpy()
    return rows, c, gram - product(c, c.T)


def _solved(lower: Array, rows: Tensor) -> Tensor:
    """L^-1 R."""
    return torch.linalg.solve_triangular(torch.from_numpy(lower).to(rows), rows, upper=False)


def _rounded(a: Array, dtype: torch.dtype) -> Array:
    return torch.from_numpy(a).to(dtype).double().numpy()
