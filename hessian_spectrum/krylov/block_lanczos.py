"""Block Lanczos: all probes share one Krylov space."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import Flags, World
from hessian_spectrum.krylov.block_gram_schmidt import extension, orthonormal
from hessian_spectrum.krylov.product_noise import asymmetry, not_finite
from hessian_spectrum.krylov.state import Array, ReducedMatrix, StateArrays
from hessian_spectrum.krylov.storage import Place, allocate_together
from hessian_spectrum.operators.base import SymmetricOperator


@dataclass(frozen=True)
class BlockSpace:
    """An orthonormal basis Q of a block Krylov space after m steps: Q A = T Q + E_m C_m Q_{m+1}.

    A ``ProbeState``: see krylov/state.py. Vectors are rows, in blocks Q_1, ..., Q_{m+1} of at most
    b rows. ``step`` fills ``basis`` in place, so that of two states of one run only the later one
    may be continued.
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

    restarts = 0

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
    def is_finished(self) -> bool:
        """No direction leads out of the space: T has all that the probes can see of A."""
        return self.sizes[-1] == 0

    @property
    def can_hold_out_probes(self) -> bool:
        return not self.lean

    @property
    def next_vectors(self) -> Tensor:
        """Q_{m+1}, (sizes[-1], n_local)."""
        end = self.num_vectors
        return self.basis[end - self.sizes[-1] : end]

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

    def step(self, operator: SymmetricOperator, flags: Flags | None = None) -> BlockSpace:
        """Multiply the last block: one block product, and the block that leads out of the space.

        Golub and Underwood (1977), except:
          1. classical Gram-Schmidt against the whole basis (lean: the last two blocks), twice: no
             eigenvalue appears more often than its multiplicity;
          2. residuals are made orthonormal by their Gram matrices (block_gram_schmidt.py), and
             directions that are exhausted leave the block;
          3. rank is judged against the largest |A q| so far, and against the noise of the products.

        Args:
            flags: what ranks tell each other, sent with the second reduction.

        Raises:
            FloatingPointError: a product is not finite; on every rank.

        Cost: 8 b r n_local flops for r basis vectors, all in matrix products; two small reductions
        of b (r + b) float64 numbers, three where directions are short, one more in the first step.
        """
        world = operator.layout.world
        low, rank = self.window
        basis = self.basis[: rank - low]
        here = slice(len(basis) - self.sizes[-1], len(basis))
        q = self.next_vectors.to(operator.device)
        aq = operator.products(q)
        noise = self.noise if self.num_steps else asymmetry(operator, q, aq)
        found = extension(
            aq.to(basis.device), basis, world, self.scale, noise, operator.n - rank, flags
        )
        if found is None:
            raise not_finite(operator, f"block step {self.num_steps + 1}")
        rows, along, out, scale = found
        filled = self.basis
        if self.lean:
            filled = torch.cat([basis[here], rows])
        else:
            filled[rank : rank + len(rows)] = rows
        a = along[:, here]
        return replace(
            self,
            basis=filled,
            sizes=(*self.sizes, len(rows)),
            diagonal=(*self.diagonal, (a + a.T) / 2),
            off=(*self.off, out),
            scale=scale,
            noise=noise,
        )

    def reduced(self) -> list[ReducedMatrix]:
        return [ReducedMatrix(self.t, self.first, self.off[-1], self.num_steps)]

    def compressed(self, operator: SymmetricOperator) -> list[Array]:
        world, q, rows = operator.layout.world, self.basis[: self.order], []
        for low, high in pairwise(np.cumsum((0, *self.sizes[: self.num_steps]))):
            products = operator.products(self.basis[low:high].to(operator.device)).to(q.device)
            along = (products @ q.T).double()
            rows.append(world.sum(along.to(world.device)).cpu().numpy())
            if not np.isfinite(rows[-1]).all():
                raise not_finite(operator, f"the vectors of block step {len(rows)}")
        t = np.concatenate(rows)
        return [(t + t.T) / 2]

    def coordinates(self, vector: Tensor, world: World) -> list[Array]:
        q = self.basis[None, : self.order]
        along = world.sum((q @ vector.to(q.device)).double().to(world.device)).cpu().numpy()
        return [along[0]]

    def basis_shape(self, room: int, layout: Layout) -> tuple[int, int, int]:
        low, high = self.window
        rows = high if self.lean else min(len(self.first) * (room + 1), layout.n)
        return 1, rows - low, layout.n_local

    def to_arrays(self) -> StateArrays:
        return StateArrays(
            self.basis[None, : self.num_vectors],
            {"first": self.first, "diagonal": self.diagonal, "off": self.off},
            {
                "sizes": list(self.sizes),
                "lean": self.lean,
                "scale": self.scale,
                "noise": self.noise,
            },
        )

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> BlockSpace:
        vectors, coefficients, metadata = arrays
        sizes = metadata["sizes"]
        return cls(
            basis=vectors[0],
            sizes=tuple(sizes),
            first=np.asarray(coefficients["first"]),
            diagonal=tuple(np.asarray(block) for block in coefficients["diagonal"]),
            # The rows of the last one may be empty: nested lists do not keep that shape.
            off=tuple(
                np.asarray(block).reshape(k, after)
                for block, k, after in zip(coefficients["off"], sizes, sizes[1:])
            ),
            scale=metadata["scale"],
            noise=metadata["noise"],
            lean=metadata["lean"],
        )


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
    rows, first = orthonormal(probes, world, operator.n)
    if lean:
        return BlockSpace(rows, (len(rows),), first, lean=True)
    capacity = min(len(probes) * (num_steps + 1), operator.n)
    basis = allocate_together((capacity, probes.shape[1]), probes, world, place)
    basis[: len(rows)] = rows
    return BlockSpace(basis, (len(rows),), first)
