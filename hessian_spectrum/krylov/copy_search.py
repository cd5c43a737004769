"""Is an eigenvalue missing? What one random vector says, with a probability; NumPy only.

A Krylov space from one vector holds one eigenvector of each eigenvalue. Further copies are looked
for with a random vector w of unit length, orthogonal to all pairs that are known. An eigenvector u
of unit length that is missing has the mass (u w)^2 in w, and with normally distributed entries
|u w| is smaller than ``CHANCE`` / sqrt(n) with a probability of 0.8 ``CHANCE``. The Krylov space of
w bounds that mass from above: once the bound is smaller, nothing is missing, with that probability
of an error.

For a polynomial p of degree below m with p(x) = 1, |p(A) w|^2 is at least the mass at x, and it is
known from the space of dimension m. The least of these is the Christoffel function at x,

    1 / sum_i (l_i(x) / c_i)^2,   l_i(x) = prod_{j != i} (x - theta_j) / (theta_i - theta_j),

with Ritz values theta_i and components c_i of w in the Ritz vectors (Golub and Meurant, Matrices,
Moments and Quadrature (2010), ch. 2). It falls away from the Ritz values, so that one x outside of
them answers for all that lies beyond. A restart that drops Ritz values theta_d leaves the space of
psi(A) w, psi(x) = prod_d (x - theta_d): what is known of psi p instead of p.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum.krylov.ritz import Array, Ritz

Indices = NDArray[np.intp]

EPS = float(np.finfo(np.float64).eps)
CHANCE = 1e-2  # 0.8 times it: the probability that a missing eigenvalue is not noticed


@dataclass(frozen=True)
class CopySearch:
    """The part of a Krylov space that a random vector opened, beside what was known before."""

    locked: int  # basis vectors that were known, the first ones
    start: Array  # (r - locked,), psi(A) w in the other basis vectors, divided by exp(log_length)
    roots: Array  # (d,), theta_d, the zeros of psi
    log_length: float

    def extended(self, rows: int) -> CopySearch:
        """After a step that multiplied so many vectors."""
        added = np.zeros(rows)
        if not len(self.start):
            added[0] = 1.0  # w itself
        return replace(self, start=np.concatenate([self.start, added]))

    def restarted(self, found: Ritz, locked: Indices, kept: Indices) -> CopySearch:
        """After a restart from some of the Ritz vectors ``found`` outside of the locked ones.

        Args:
            locked: indices of those that are locked now: they follow the ones before.
            kept: indices of the others that are kept; the rest is dropped.
        """
        dropped = np.delete(found.values, np.concatenate([locked, kept]))
        distances = found.values[kept, None] - dropped
        factors = _log(distances, found.scale).sum(1)
        largest = float(factors.max(initial=-np.inf)) if len(dropped) and len(kept) else 0.0
        signs = np.sign(distances).prod(axis=1)
        components = found.coordinates[:, kept].T @ self.start
        return CopySearch(
            self.locked + len(locked),
            components * signs * np.exp(factors - largest),
            np.concatenate([self.roots, dropped]),
            self.log_length + largest,
        )

    def excludes(self, found: Ritz, x: float) -> bool:
        """Whether no eigenvalue at x, or beyond it, is missing, but with a small probability.

        Args:
            found: the Ritz pairs outside of the locked vectors; x lies outside of their values.
        """
        return self.log_mass(found, x) <= np.log(CHANCE**2 / found.order)

    def log_mass(self, found: Ritz, x: float) -> float:
        """log of the most that (u w)^2 can be for an eigenvector u with an eigenvalue x."""
        if not len(self.start):
            return 0.0  # w has unit length
        components = np.abs(found.coordinates.T @ self.start)
        components = np.maximum(components, EPS * components.max())
        others = found.values[:, None] - found.values
        np.fill_diagonal(others, 1.0)
        away = _log(x - found.values, found.scale)
        log_l = away.sum() - away - _log(others, found.scale).sum(1)
        psi = _log(x - self.roots, found.scale).sum()
        terms = 2 * (log_l - np.log(components))
        return float(2 * (self.log_length - psi) - np.logaddexp.reduce(terms))


def _log(distances: Array, scale: float) -> Array:
    """log |distance|, none taken for smaller than rounding: a bound only grows by that."""
    least = max(EPS * scale, np.finfo(np.float64).tiny)
    return np.asarray(np.log(np.maximum(np.abs(distances), least)))
