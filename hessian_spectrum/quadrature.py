"""Gauss quadrature from Jacobi matrices: nodes, weights, and how much is not known. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BlockRule:
    """What a block Krylov space knows of A: T, where the probes are in it, what leads out of it.

    One probe and a tridiagonal T are a Lanczos recurrence, and T's eigenvalues and the squared
    components of its eigenvectors along the probe the Gauss rule (Golub and Welsch 1969).
    """

    t: Array  # (N, N), symmetric, block tridiagonal
    first: Array  # (b, b_1), the probes in coordinates of the first b_1 basis vectors
    out: Array  # (b_m, b_{m+1}), the coordinates that lead out, of the last b_m basis vectors
    num_steps: int  # m
    tolerance: float = 0.0  # what is shorter is rounding, or the noise of the products

    @property
    def starts(self) -> Array:
        """(b, N), the probes in the basis, of unit length."""
        starts = np.zeros((len(self.first), len(self.t)))
        starts[:, : self.first.shape[1]] = self.first
        return starts / np.linalg.norm(starts, axis=1, keepdims=True)

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
        """Nothing leads out of the space: T has all that the probes can see of A."""
        return not self.out.any()

    @property
    def shorter(self) -> BlockRule | None:
        """What was known one step earlier; None before the first. An exact rule is its own."""
        if self.is_exact:
            return self
        if self.num_steps < 2:
            return None
        k = len(self.t) - len(self.out)
        above = np.abs(self.t[:k, k:]).any(axis=1).argmax()  # where the block before the last is
        t, out = self.t[:k, :k], self.t[above:k, k:]
        return replace(self, t=t, out=out, num_steps=self.num_steps - 1)

    def residuals(self, vectors: Array) -> Array:
        """|A u - t u| of T's unit eigenvectors, columns (N, k): what leads out of the space."""
        return np.linalg.norm(self.out.T @ vectors[len(self.t) - len(self.out) :], axis=0)

    def largest_mass(self, x: float) -> Array:
        """(b,), the most that each probe's measure can have at x, given T.

        The Christoffel number of the matrix-valued measure: the least |p(A) z|^2 over block
        polynomials of degree m - 1 with p(x) z = z, a projection inside T. By the inequalities
        of Chebyshev, Markov and Stieltjes (for matrix measures: Duran and Lopez-Rodriguez, J.
        Approx. Theory 90 (1997)) the probe's mass below x lies within it of the Gauss rule's.
        """
        k = len(self.t) - len(self.out)
        if self.is_exact:
            return np.zeros(len(self.first))
        reached = self.t[:, :k] - x * np.eye(len(self.t), k)  # columns, (A - x) r in the basis
        q, r, _ = qr(reached, mode="economic", pivoting=True)
        lengths = np.abs(np.diagonal(r))
        q = q[:, lengths > max(self.tolerance, 1e-14 * lengths.max(initial=0.0))]
        starts = self.starts
        return np.square(starts - (starts @ q) @ q.T).sum(axis=1)
