"""Block Lanczos: all probes share one Krylov space."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessian_spectrum.distributed import World
from hessian_spectrum.errors import InputError
from hessian_spectrum.krylov.basis import Place, allocate_together
from hessian_spectrum.krylov.noise import asymmetry
from hessian_spectrum.operators import SymmetricOperator

Array = NDArray[np.float64]

# Normalizing a direction this much shorter than the longest one magnifies what is left of it along
# the basis by the inverse: it is orthogonalized once more.
SHORT = 1e-2


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
    longest = world.sum(probes.double().square().sum(1)).max().sqrt().item()
    tolerance = 10 * torch.finfo(probes.dtype).eps * longest
    rows, first = _orthonormalized(probes, world, tolerance, operator.n)
    if lean:
        return BlockSpace(rows, (len(rows),), first, lean=True)
    capacity = min(len(probes) * (num_steps + 1), operator.n)
    basis = allocate_together((capacity, probes.shape[1]), probes, world, place)
    basis[: len(rows)] = rows
    return BlockSpace(basis, (len(rows),), first)


def step(operator: SymmetricOperator, space: BlockSpace) -> BlockSpace:
    """Multiply the last block: one block product, and the block that leads out of the space.

    Golub and Underwood (1977), except:
      1. classical Gram-Schmidt against the whole basis (lean: the last two blocks), twice, and a
         third time where a new direction is short: no eigenvalue appears more often than it is
         one;
      2. the new block comes from a rank-revealing QR of the residuals, tall and skinny over the
         ranks [1], so that directions that are exhausted leave the block;
      3. rank is judged against the largest |A q| so far, and against the noise of the products.

    Raises:
        FloatingPointError: a product is not finite; on every rank.

    Cost: 8 b r n_local flops for r basis vectors, all in matrix products; four small reductions.

    References:
        [1] Demmel, Grigori, Hoemmen & Langou, SIAM J. Sci. Comput. 34 (2012) A206-A239.
    """
    world, device = operator.layout.world, operator.device
    low, rank = space.window
    basis = space.basis[: rank - low]
    here = slice(len(basis) - space.sizes[-1], len(basis))
    q = basis[here].to(device)
    aq = operator.products(q)
    noise = space.noise if space.num_steps else asymmetry(operator, q, aq)
    h, r = _without(aq.to(basis.device), basis, world)
    c, r = _without(r, basis, world)  # what rounding left along the basis
    coordinates = h + c
    squares = world.sum(r.double().square().sum(1)).cpu().numpy()
    # A NaN in one product makes the reduced coefficients NaN on every rank.
    if not (np.isfinite(coordinates).all() and np.isfinite(squares).all()):
        raise FloatingPointError(
            f"a product with the operator is not finite at block step {space.num_steps + 1}; are "
            f"the derivatives of the loss finite at these parameters in {operator.dtype}?"
        )
    scale = max(space.scale, np.sqrt((coordinates**2).sum(1) + squares).max())
    tolerance = max(10 * torch.finfo(r.dtype).eps, noise) * scale
    rows, out = _orthonormalized(r, world, tolerance, operator.n - rank)
    if len(rows) and np.linalg.svd(out, compute_uv=False)[-1] < SHORT * scale:
        rows = _without(rows, basis, world)[1]
        rows, again = _orthonormalized(rows, world, 0.0, len(rows))
        out = out @ again
    if space.lean:
        space = replace(space, basis=torch.cat([basis[here], rows]))
    else:
        space.basis[rank : rank + len(rows)] = rows
    a = coordinates[:, here]
    return replace(
        space,
        sizes=(*space.sizes, len(rows)),
        diagonal=(*space.diagonal, (a + a.T) / 2),
        off=(*space.off, out),
        scale=float(scale),
        noise=noise,
    )


def _without(rows: Tensor, basis: Tensor, world: World) -> tuple[Array, Tensor]:
    """Coordinates along the basis, (k, r) float64, and the rows without them."""
    along = world.sum((rows @ basis.T).double())
    return along.cpu().numpy(), rows - along.to(rows) @ basis


def _orthonormalized(
    rows: Tensor, world: World, tolerance: float, most: int
) -> tuple[Tensor, Array]:
    """Orthonormal rows Q, (k', n_local), and C, (k, k'), with rows = C Q up to ``tolerance``.

    Directions of length ``tolerance`` or less are left out, and all but the ``most`` longest.
    """
    k = len(rows)
    q, r = torch.linalg.qr(rows.T)  # this rank's entries: (n_local, t), (t, k)
    stacked = torch.zeros(world.size, k, k, dtype=torch.float64, device=rows.device)
    stacked[world.rank, : len(r)] = r
    triangles = world.sum(stacked).reshape(-1, k)
    u, lengths, v = torch.linalg.svd(triangles, full_matrices=False)
    # One rank's factors for all: another processor may round, or choose signs, in another way.
    parts = [part * (world.rank == 0) for part in (u, lengths, v)]
    u, lengths, v = (world.sum(part) for part in parts)
    kept = min(int((lengths > tolerance).sum()), most)
    own = u[world.rank * k : world.rank * k + len(r), :kept]
    out = (v[:kept].T * lengths[:kept]).cpu().numpy()
    return (q @ own.to(q)).T.contiguous(), out
