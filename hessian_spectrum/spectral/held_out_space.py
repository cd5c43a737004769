"""What the Krylov space of some probes leaves out of that of all of them. NumPy and SciPy only."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from hessian_spectrum.krylov.dense_eigen import svd
from hessian_spectrum.spectral.quadrature import Array, BlockRule

RANK = 1e-10  # of |T|: a shorter direction is not a new one, even with exact products
EQUAL = 1e-5  # of |T|: nearer eigenvalues are equal in single precision, not in noisy products
NOISE = 0.01  # of a direction's length

# Orthonormal rows (c, N), the complement in T's eigenbasis, and rows that the last steps have added
Unknown = tuple[Array, list[Array]]


class HeldOutSpace:
    """The Krylov spaces, inside that of all probes, of some of them.

    Args:
        rule: of all probes.
        remembered: of how many last steps it is told what they have added.
    """

    def __init__(self, rule: BlockRule, remembered: int):
        self.rule, self.remembered, self.ends = rule, remembered, rule.ends
        self.values, self.vectors = rule.eigen
        self._t = csr_array(rule.t)
        scale = np.abs(self.values).max()
        self._shortest = max(rule.tolerance, RANK * scale)
        self._parts = equal_values(self.values, min(self._shortest, EQUAL * scale))

    @property
    def steps(self) -> int:
        """One less than T has; all, as many as there may be, where T is exact."""
        return len(self.values) if self.rule.is_exact else len(self.ends) - 1

    def unknown_to(self, starts: Array) -> Unknown:
        """The complement of the Krylov space of these vectors (k, N), in coordinates of T's basis,
        and what each of the last steps has added to that space.

        Cost: O(k N) for each row of the complement and step; O(N^3) where an eigenvalue has more
        copies than there are vectors.
        """
        if max(map(len, self._parts)) > len(starts):
            return self._of_copies(starts)
        return self._of_blocks(starts)

    def _last(self, gained: list[Array]) -> list[Array]:
        """Of the last steps; nothing where the space was whole before."""
        nothing = [np.empty((0, len(self.values)))] * (self.steps - len(gained))
        return (gained + nothing)[-self.remembered :]

    def _of_blocks(self, starts: Array) -> Unknown:
        """The vectors of k steps lie in the first k blocks of T: a step adds a block to the
        complement and takes the new Krylov vectors out of it. Nothing is orthogonalized against
        the space itself, which is many times as large."""
        unknown, images, short = np.empty((0, 0)), starts, RANK
        gained: list[Array] = []
        for step in range(self.steps):
            unknown = _extended(unknown, self.ends[min(step, len(self.ends) - 1)])
            reached = unknown.shape[1]
            _, lengths, turned = svd(images[:, :reached] @ unknown.T, full=False)
            rank = int(np.sum(lengths > short))
            if not rank:
                break
            rows, unknown = _parted(unknown, turned[:rank])
            rows = np.pad(rows, ((0, 0), (0, len(self.values) - reached)))
            gained.append(rows)
            images, short = (self._t @ rows.T).T, self._shortest
        unknown = _extended(unknown, len(self.values)) @ self.vectors
        return unknown, [rows @ self.vectors for rows in self._last(gained)]

    def _of_copies(self, starts: Array) -> Unknown:
        """Where an eigenvalue of A has more copies than there are starts.

        T has as many eigenvectors as there are probes, and the others span all but one of them.
        Rounding along that one would grow in every step, as ghost eigenvalues do. The space is
        therefore formed in the eigenbasis of T, where a component that is zero stays exactly zero.
        """
        starts, values, vectors = starts @ self.vectors, self.values.copy(), self.vectors.copy()
        # The starts span only part of these eigenspaces. Their eigenvectors are rotated so that
        # the starts span the first of them.
        turns = []
        for part in self._parts:
            if len(part) > len(starts):
                _, lengths, rotation = svd(starts[:, part])
                starts[:, part] = starts[:, part] @ rotation.T
                starts[:, part[np.sum(lengths > RANK) :]] = 0.0
                vectors[:, part] = vectors[:, part] @ rotation.T
                values[part] = values[part].mean()
                turns.append((part, rotation))
        known, gained = self._grown(starts, values, vectors)
        # Rows of a complete basis, of which the first span what is known.
        unknown = np.linalg.qr(known.T, mode="complete")[0].T[len(known) :]
        for part, rotation in turns:
            for rows in (unknown, *gained):
                rows[:, part] = rows[:, part] @ rotation
        return unknown, gained

    def _grown(self, starts: Array, values: Array, vectors: Array) -> Unknown:
        """Orthonormal rows that span the space, without noise, and those of the last steps."""
        ends, basis = self.ends, np.empty((0, len(values)))
        gained: list[Array] = []
        rows, short = starts, RANK
        for step in range(self.steps):
            for _ in range(2):
                rows = rows - (rows @ basis.T) @ basis
            _, lengths, turned = svd(rows, full=False)
            rows = turned[lengths > short][: len(values) - len(basis)]
            # What was short is orthogonal to rounding only now.
            rows = np.linalg.qr((rows - (rows @ basis.T) @ basis).T)[0].T
            if step < len(ends) - 1:
                # Krylov vectors of k steps lie in the first k blocks of T: the rest is noise.
                rows = _clean(rows, rows @ vectors[ends[step] :].T)
            basis = np.concatenate([basis, rows])
            gained.append(rows.copy())
            if not len(rows):
                break
            rows, short = rows * values, self._shortest
        return basis, self._last(gained)


def _extended(rows: Array, to: int) -> Array:
    """Orthonormal rows of the first coordinates, and the unit vectors of those up to ``to``."""
    count, reached = rows.shape
    found = np.zeros((count + to - reached, to))
    found[:count, :reached] = rows
    found[count:, reached:] = np.eye(to - reached)
    return found


def _parted(rows: Array, turned: Array) -> tuple[Array, Array]:
    """Orthonormal rows that span the same: first ``turned @ rows`` (r, N), then all others.

    One block reflector (Schreiber and Parlett, SIAM J. Numer. Anal. 25 (1988)), which exchanges
    orthonormal ``turned`` (r, c), up to a rotation among them, for the first r unit vectors: r
    times cheaper than a matrix of all rows.
    """
    r = len(turned)
    left, _, right = svd(turned[:, :r])
    turned = -(left @ right).T @ turned  # its first r columns are now symmetric, and negative
    taken = turned @ rows
    away = turned.copy()
    away[:, :r] -= np.eye(r)
    moved = np.linalg.solve(np.eye(r) - turned[:, :r], taken - rows[:r])
    return taken, rows[r:] - away[:, r:].T @ moved


def _clean(rows: Array, noise: Array) -> Array:
    """Orthonormal combinations of ``rows`` in which the noise is shorter than ``NOISE``."""
    if not len(rows) or np.linalg.norm(noise) < NOISE:
        return rows
    mixed, lengths, _ = svd(noise)
    lengths = np.pad(lengths, (0, len(rows) - len(lengths)))
    return (mixed.T @ rows)[lengths < NOISE]


def equal_values(values: Array, within: float) -> list[Array]:
    """Indices of ascending values in runs whose neighbours are this near."""
    return np.split(np.arange(len(values)), np.flatnonzero(np.diff(values) > within) + 1)
