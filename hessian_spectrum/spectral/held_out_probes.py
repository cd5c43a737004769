"""Block Krylov space -> spectral measure; what other probes know of it is not left to chance.

A probe z gives the eigenvalues outside the bulk random weights (z . u_j)^2 / |z|^2, whose scatter
is most of the error of a density. Directions that are known from the other probes can be taken out
of z and counted exactly. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from hessian_spectrum.spectral.atoms import normalized_rows
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import Array, BlockRule

RANK = 1e-10  # of |T|: shorter directions are no new ones, even where products are exact
ALONE, GROUPS = 24, 12  # up to so many probes each is a group; more are dealt to so many groups
EQUAL = 1e-5  # of |T|: eigenvalues this near are one in single precision, not in noisy products
NOISE = 0.01  # of a direction's length
# Probes share what they know of each other: the error of their mean is larger than their scatter
# says, by 1.1 to 1.3 on the spectra of benchmarks/coverage.py.
SCATTER = 1.25
ONE = 0.01  # a node that every probe weighs as 1/n to this part counts one eigenvalue


def certified(rule: BlockRule, n: int, floor: float = 0.0) -> SpectralMeasure:
    """The measure of an n x n matrix, where what other probes' Krylov space found counts as it is.

    Each group of probes is left out in turn. With U an orthonormal basis of the Krylov space of
    the others after m - 1 steps, r-dimensional,

        tr f(A) = tr U f(A) U^T + tr P f(A) P,   P = I - U^T U,

    where the first term is taken from T, and the second, over n - r, from what P leaves of each
    probe of the group. U does not depend on these, so the measure is as unbiased as that of the
    plain rule (``SpectralMeasure.of_rules``), without any test of convergence: a resolved
    eigenvalue has the weight 1/n, a cluster its number, and an unresolved direction moves from
    one to the other continuously. One step is held back so that A U lies in the space: traces of
    A and A^2 stay exact in expectation.

    Krylov-aware trace estimation (Chen and Hallman, SIAM J. Matrix Anal. Appl. 44 (2023)), with
    every probe held out as in XTrace (Epperly, Tropp and Webber, ibid. 45 (2024)).

    With one probe there are no others, and this is the plain rule's.

    Args:
        floor: residuals below it are not known to be real: the error of a product.

    Cost: O(N^3) for each group, N the order of T; no products.
    """
    usual = SpectralMeasure.of_rules((rule,), n, floor)
    if len(rule.starts) < 2:
        return usual
    weights = held_out_weights(rule, n)()
    single = np.asarray((np.abs(n * weights - 1) < ONE).all(axis=0))
    return replace(usual, weights=weights, certified=single, scatter=SCATTER)


def held_out_weights(rule: BlockRule, n: int) -> Callable[..., Array]:
    """``vectors -> weights``, each probe's weights (b, N) on T's eigenvectors.

    Or on other orthonormal columns (N, N), the eigenvectors of another matrix in T's basis: the
    identity above holds for any symmetric f(A), since the others' space is none of the probe's.
    """
    starts = rule.starts
    if len(starts) < 2:
        own = rule.eigen[1]
        return lambda vectors=own: normalized_rows((starts @ vectors) ** 2)
    space, splits = _EigenSpace(rule), []
    for group in _groups(len(starts)):
        known = space.krylov_basis(starts[np.setdiff1d(np.arange(len(starts)), group)])
        left = space.seen(starts[group])
        splits.append((group, known, left - (left @ known.T) @ known))

    def weights(vectors: Array | None = None) -> Array:
        found = np.empty((len(starts), len(rule.t)))
        for group, known, left in splits:
            if vectors is not None:
                known, left = (rows @ (space.vectors.T @ vectors) for rows in (known, left))
            rest = normalized_rows(left**2) * (1 - len(known) / n)
            found[group] = np.square(known).sum(axis=0) / n + rest
        return found

    return weights


def _groups(b: int) -> Iterator[Array]:
    return iter(np.array_split(np.arange(b), b if b <= ALONE else GROUPS))


class _EigenSpace:
    """The Krylov space in the eigenbasis of T, in which what a vector lacks stays exactly zero.

    To an eigenvalue that A has more often than there are probes, T has as many vectors as there
    are probes, and the others see all but one of them. In floating point they would soon see that
    one, too: an error along it grows in every step, as ghosts do.
    """

    def __init__(self, rule: BlockRule):
        self.rule = rule
        self.values, self.vectors = rule.eigen
        scale = np.abs(self.values).max()
        self.shortest = max(rule.tolerance, RANK * scale)
        equal = min(self.shortest, EQUAL * scale)
        self.cuts = np.flatnonzero(np.diff(self.values) > equal) + 1

    def seen(self, rows: Array) -> Array:
        """Rows (k, N) in the eigenbasis."""
        return rows @ self.vectors

    def krylov_basis(self, starts: Array) -> Array:
        """Orthonormal rows that span the Krylov space of these vectors inside that of all."""
        starts, values, vectors = self.seen(starts), self.values.copy(), self.vectors.copy()
        # More equal eigenvalues than starts are one, which starts do not see all of: its vectors
        # are turned until starts span the first of them.
        turns = []
        for part in np.split(np.arange(len(values)), self.cuts):
            if len(part) > len(starts):
                turn = np.linalg.svd(starts[:, part])
                starts[:, part] = starts[:, part] @ turn.Vh.T
                starts[:, part[np.sum(turn.S > RANK) :]] = 0.0
                vectors[:, part] = vectors[:, part] @ turn.Vh.T
                values[part] = values[part].mean()
                turns.append((part, turn.Vh))
        basis = self._grown(starts, values, vectors)
        for part, rotation in turns:
            basis[:, part] = basis[:, part] @ rotation
        return basis

    def _grown(self, starts: Array, values: Array, vectors: Array) -> Array:
        """One step less than T has, unless T is exact; a direction that is only noise is none."""
        ends = self.rule.ends
        steps = len(values) if self.rule.is_exact else len(ends) - 1
        basis = np.empty((0, len(values)))
        rows, short = starts, RANK
        for step in range(steps):
            for _ in range(2):
                rows = rows - (rows @ basis.T) @ basis
            turned = np.linalg.svd(rows, full_matrices=False)
            rows = turned.Vh[turned.S > short][: len(values) - len(basis)]
            # What was short is orthogonal to rounding only now.
            rows = np.linalg.qr((rows - (rows @ basis.T) @ basis).T)[0].T
            if step < len(ends) - 1:
                # The first k blocks of T hold all Krylov vectors of k steps: the rest is noise.
                rows = _clean(rows, rows @ vectors[ends[step] :].T)
            basis = np.concatenate([basis, rows])
            if not len(rows):
                break
            rows, short = rows * values, self.shortest
        return basis


def _clean(rows: Array, noise: Array) -> Array:
    """Orthonormal rows that span those combinations of ``rows`` that have little noise."""
    if not len(rows) or np.linalg.norm(noise) < NOISE:
        return rows
    mixed = np.linalg.svd(noise)
    lengths = np.pad(mixed.S, (0, len(rows) - len(mixed.S)))
    return (mixed.U.T @ rows)[lengths < NOISE]
