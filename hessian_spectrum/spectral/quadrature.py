"""Gauss quadrature from (block) Jacobi matrices, and bounds on what it leaves open. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum._core.stored_fields import stored, stored_count
from hessian_spectrum.krylov.dense_eigen import eigh

Array = NDArray[np.float64]

NEAREST = 1e-9  # of |T|: a threshold this near to an eigenvalue counts as equal to it


@dataclass(frozen=True)
class BlockRule:
    """A block Krylov decomposition of A: T, the probes in its basis, and what leads out of it.

    One probe and a tridiagonal T are a Lanczos recurrence, and T's eigenvalues and the squared
    components of its eigenvectors along the probe the Gauss rule (Golub and Welsch 1969).
    """

    # (N, N), symmetric, block tridiagonal
    t: Array = field(
        metadata=stored(
            "T of each recurrence, symmetric, padded with zeros",
            ("rule",),
            "eigenvalue",
            compress=True,  # it is sparse
            square=True,
        )
    )
    # (b, b_1), the probes in coordinates of the first b_1 basis vectors
    first: Array = field(
        metadata=stored(
            "the probes in coordinates of the first basis vectors, padded",
            ("rule",),
            "eigenvalue",
        )
    )
    # (b_m, b_{m+1}), the coordinates that lead out, of the last b_m basis vectors
    out: Array = field(
        metadata=stored(
            "coordinates that lead out of the space, of the last basis vectors, padded",
            ("rule",),
            "eigenvalue",
        )
    )
    # m
    num_steps: int = field(metadata=stored_count("steps"))
    # what is shorter is rounding, or the noise of the products
    tolerance: float = field(
        default=0.0, metadata=stored("what is shorter is rounding or noise", units="eigenvalue")
    )

    @property
    def starts(self) -> Array:
        """(b, N), the probes in the basis, of unit length."""
        starts = np.zeros((len(self.first), len(self.t)))
        starts[:, : self.first.shape[1]] = self.first
        return starts / np.linalg.norm(starts, axis=1, keepdims=True)

    @cached_property
    def eigen(self) -> tuple[Array, Array]:
        """T's eigenvalues (N,), ascending: the nodes; and its eigenvectors, columns (N, N)."""
        return eigh(self.t)

    @property
    def ends(self) -> list[int]:
        """Where T's blocks end, in order; the last is N."""
        ends = [self.first.shape[1]]
        while ends[-1] < len(self.t) and (self.t[: ends[-1], ends[-1] :] != 0).any():
            reached = (self.t[: ends[-1], ends[-1] :] != 0).any(axis=0)
            ends.append(ends[-1] + int(np.flatnonzero(reached)[-1]) + 1)
        return ends

    @property
    def is_exact(self) -> bool:
        """Whether the space is invariant under A: further steps would add nothing."""
        return not self.out.any()

    @cached_property
    def shorter(self) -> BlockRule | None:
        """The rule after one step less; None for one step. An exact rule returns itself."""
        if self.is_exact:
            return self
        if self.num_steps < 2:
            return None
        k = len(self.t) - len(self.out)
        above = np.abs(self.t[:k, k:]).any(axis=1).argmax()  # where the block before the last is
        t, out = self.t[:k, :k], self.t[above:k, k:]
        return replace(self, t=t, out=out, num_steps=self.num_steps - 1)

    def residuals(self, vectors: Array) -> Array:
        """|A u - t u| of T's unit eigenvectors, columns (N, k)."""
        return np.linalg.norm(self.out.T @ vectors[len(self.t) - len(self.out) :], axis=0)

    def bracket(self, x: float) -> tuple[Array, Array]:
        """Bounds (b,) and (b,) on the part of each probe's measure that lies below x.

        The Gauss-Radau rule with as many nodes at x as the last block has rows (Golub and Meurant,
        Matrices, Moments and Quadrature (2010), ch. 6), without and with these nodes; the two
        differ by the most that the probe's measure can have at x, its Christoffel number, and meet
        where everything around x is resolved. For one probe these are the inequalities of
        Chebyshev, Markov and Stieltjes: bounds for every A that has this T. For a block they are
        not: of single probes on random spectra one in 400 was outside, by 6e-4 at most, of means
        over the probes none; spectra that were sought for it took the mean 0.01 outside.

        Cost: O(N^3).
        """
        k, b_m = len(self.t) - len(self.out), len(self.out)
        t = self.t.copy()
        if self.is_exact:
            values, vectors = self.eigen
            at = np.abs(values - x) <= NEAREST * np.abs(values).max()
        else:
            values, vectors, scale = self._before_last
            away = values - x
            # Beside an eigenvalue of the leading part the last block would be infinite.
            away = np.where(np.abs(away) < NEAREST * scale, NEAREST * scale, away)
            along = vectors.T @ t[:k, k:]
            t[k:, k:] = x * np.eye(b_m) + along.T @ (along / away[:, None])
            values, vectors = eigh(t)
            away = np.abs(values - x)
            at = away <= max(np.sort(away)[b_m - 1], NEAREST * scale)
        weights = (self.starts @ vectors) ** 2
        low = weights[:, (values < x) & ~at].sum(axis=1)
        return low, low + weights[:, at].sum(axis=1)

    @cached_property
    def _before_last(self) -> tuple[Array, Array, float]:
        """Eigenvalues and -vectors of T without its last block, and the largest of T in size."""
        k = len(self.t) - len(self.out)
        before = self.shorter
        eigen = eigh(self.t[:k, :k]) if before is None else before.eigen
        return *eigen, max(np.abs(self.t).sum(axis=1).max(), 1e-300)
