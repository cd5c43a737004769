"""Independent Lanczos recurrences in lockstep: one block product a step for all probes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import Flags, World
from hessian_spectrum.krylov.product_noise import asymmetry, not_finite
from hessian_spectrum.krylov.state import Array, ReducedMatrix, StateArrays
from hessian_spectrum.krylov.storage import Place, allocate_together
from hessian_spectrum.operators.base import SymmetricOperator


@dataclass(frozen=True)
class Recurrences:
    """b Lanczos recurrences after k steps: A Q_i = Q_i T_i + beta_i[k-1] q_i[k] e_k^T for each i.

    A ``ProbeState``: see krylov/state.py. ``step`` fills ``basis`` in place, so that of two states
    of one run only the later one may be continued.
    """

    # (b, capacity + 1, n_local), on the device, the host or a disk; rows q_1 .. q_{k+1}
    # orthonormal, then unused
    basis: Tensor
    alpha: Array  # (b, k), T[j, j]
    beta: Array  # (b, k), T[j, j + 1]; the last leads out of the space
    active: NDArray[np.bool_]  # (b,), False once a recurrence has found an invariant subspace
    scale: float = 0.0  # the largest |A q| so far: what breakdown is judged against
    noise: float = 0.0  # relative error of a product, measured as asymmetry in the first step

    can_hold_out_probes = False  # each probe has a space of its own
    restarts = 0

    @property
    def num_steps(self) -> int:
        return self.alpha.shape[1]

    @property
    def num_vectors(self) -> int:
        return len(self.alpha) * (self.num_steps + 1)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(b,), the order of each T: steps until breakdown, or all."""
        broken = self.beta == 0.0
        return np.where(broken.any(axis=1), broken.argmax(axis=1) + 1, self.num_steps)

    @property
    def is_finished(self) -> bool:
        """Every recurrence has found an invariant subspace."""
        return not bool(self.active.any())

    @property
    def next_vectors(self) -> Tensor:
        """The last vector of each active recurrence, (active, n_local)."""
        return self.basis[self._active_rows, self.num_steps]

    @property
    def _active_rows(self) -> Tensor:
        return torch.from_numpy(np.flatnonzero(self.active)).to(self.basis.device)

    def step(self, operator: SymmetricOperator, flags: Flags | None = None) -> Recurrences:
        """Extend every active recurrence by one vector: one block product, two small reductions.

        Algorithm 10.1 of Parlett (The Symmetric Eigenvalue Problem, 1980), except:
          1. classical Gram-Schmidt against the whole basis, twice, batched over the probes:
             Q Q^T - I stays at rounding level [1], so no eigenvalue appears twice;
          2. |r|^2 travels with the second projection c and beta^2 = |r|^2 - |c|^2, exact since
             the basis is orthonormal: one reduction fewer;
          3. breakdown is judged against the largest |A q| so far, so that scaling A changes
             nothing, and against the noise of the products: below it a residual is not a direction.

        Args:
            flags: what ranks tell each other, sent with the second reduction.

        Raises:
            FloatingPointError: a product is not finite; on every rank.

        Cost: 8 b k n_local flops beside the products.

        References:
            [1] Giraud, Langou, Rozloznik & van den Eshof, Numer. Math. 101 (2005) 87-100.
        """
        products = operator.products(self.next_vectors.to(operator.device))
        return self.extended(operator, products, flags)

    def extended(
        self, operator: SymmetricOperator, products: Tensor, flags: Flags | None = None
    ) -> Recurrences:
        """``step``, given the operator's products with ``next_vectors``."""
        world, k = operator.layout.world, self.num_steps
        basis, rows = self.basis[:, : k + 1], self._active_rows
        noise = self.noise
        if k == 0:
            noise = asymmetry(operator, basis[:, 0].to(products.device), products)
        r = torch.zeros_like(basis[:, 0])  # 0 where a recurrence has ended
        r[rows] = products.to(r.device)
        (h,) = world.sum_together(_dots(basis, r))
        r = r - _combine(h, basis)
        answers = flags.answers() if flags else torch.empty(0)
        # What rounding left along the basis, the length, and the flags.
        c, squares, counts = world.sum_together(_dots(basis, r), _squares(r), answers)
        if flags:
            flags.hear(counts)
        r = r - _combine(c, basis)

        t = (h + c).numpy()
        beta2 = (squares - c.square().sum(1)).clamp(min=0.0).numpy()
        # A NaN in one product makes the reduced coefficients NaN on every rank.
        if not (np.isfinite(t).all() and np.isfinite(beta2).all()):
            raise not_finite(operator, f"Lanczos step {k + 1}")
        beta = np.sqrt(beta2)
        scale = max(self.scale, np.sqrt((t**2).sum(axis=1) + beta2).max())
        # Dividing by a beta made of rounding error would put noise into the basis.
        beta[beta <= max(10 * torch.finfo(r.dtype).eps, noise) * scale] = 0.0

        inverse = np.divide(1.0, beta, out=np.zeros_like(beta), where=beta > 0)
        torch.mul(r, torch.from_numpy(inverse).to(r)[:, None], out=self.basis[:, k + 1])
        return replace(
            self,
            alpha=np.column_stack([self.alpha, t[:, k]]),
            beta=np.column_stack([self.beta, beta]),
            active=self.active & (beta > 0),
            scale=float(scale),
            noise=noise,
        )

    def reduced(self) -> list[ReducedMatrix]:
        probe = np.ones((1, 1))  # the first vector itself; lengths do not matter
        return [
            ReducedMatrix(_tridiagonal(a[:k], b[: k - 1]), probe, b[None, k - 1 : k], int(k))
            for a, b, k in zip(self.alpha, self.beta, self.lengths)
        ]

    def compressed(self, operator: SymmetricOperator) -> list[Array]:
        world, q = operator.layout.world, self.basis[:, : self.num_steps]
        columns = []
        for step in range(self.num_steps):
            products = operator.products(q[:, step].to(operator.device)).to(q.device)
            along = torch.bmm(q, products[:, :, None])[:, :, 0].double()
            columns.append(world.sum(along.to(world.device)).cpu().numpy())
            if not np.isfinite(columns[-1]).all():
                raise not_finite(operator, f"the vectors of Lanczos step {step + 1}")
        every = np.stack(columns, axis=1)  # (b, k, k)
        return [(t[:k, :k] + t[:k, :k].T) / 2 for t, k in zip(every, self.lengths)]

    def coordinates(self, vector: Tensor, world: World) -> list[Array]:
        q = self.basis[:, : self.num_steps]
        along = world.sum((q @ vector.to(q.device)).double().to(world.device)).cpu().numpy()
        return [row[:k] for row, k in zip(along, self.lengths)]

    @property
    def window(self) -> tuple[int, int]:
        return 0, self.num_steps + 1

    def basis_shape(self, room: int, layout: Layout) -> tuple[int, int, int]:
        return len(self.alpha), room + 1, layout.n_local

    def to_arrays(self) -> StateArrays:
        return StateArrays(
            self.basis[:, : self.num_steps + 1],
            {"alpha": self.alpha, "beta": self.beta},
            {"active": self.active.tolist(), "scale": self.scale, "noise": self.noise},
        )

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Recurrences:
        vectors, coefficients, metadata = arrays
        return cls(
            vectors,
            np.asarray(coefficients["alpha"]),
            np.asarray(coefficients["beta"]),
            np.asarray(metadata["active"]),
            metadata["scale"],
            metadata["noise"],
        )


def start(
    operator: SymmetricOperator, probes: Tensor, num_steps: int, place: Place = "device"
) -> Recurrences:
    """Normalized probes as the first vectors of recurrences of up to ``num_steps`` steps.

    Memory: b (num_steps + 1) n_local entries.

    Args:
        probes: (b, n_local), not zero.
        place: where the basis lives: "device", "host", or a folder on a disk.

    Raises:
        InputError: more steps than the operator's size, or fewer than one; no room on the disk.
    """
    if not isinstance(num_steps, (int, np.integer)) or not 1 <= num_steps <= operator.n:
        raise InputError(
            f"num_steps={num_steps} must lie between 1 and the operator's size {operator.n}, a "
            f"whole number; use num_steps <= {operator.n}"
        )
    if len(probes) == 0:
        raise InputError("num_probes=0: expected at least one probe")
    b = len(probes)
    shape = (b, num_steps + 1, probes.shape[1])
    basis = allocate_together(shape, probes, operator.layout.world, place)
    norms = operator.layout.world.sum(_squares(probes)).sqrt()
    basis[:, 0] = probes / norms[:, None].to(probes.dtype)
    empty = np.empty((b, 0))
    return Recurrences(basis, empty, empty, np.ones(b, dtype=bool))


def _tridiagonal(alpha: Array, beta: Array) -> Array:
    return np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1)


def _dots(basis: Tensor, vectors: Tensor) -> Tensor:
    """This rank's part of the inner products, (b, k, n), (b, n) -> (b, k), float64."""
    return torch.bmm(basis, vectors[:, :, None])[:, :, 0].double()


def _combine(coefficients: Tensor, basis: Tensor) -> Tensor:
    """(b, k), (b, k, n) -> (b, n)."""
    return torch.bmm(coefficients[:, None].to(basis), basis)[:, 0]


def _squares(vectors: Tensor) -> Tensor:
    """This rank's part of |v|^2 for each row, float64."""
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).square()
