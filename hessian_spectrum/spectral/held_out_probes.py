"""Spectral measure of a block Krylov space by held-out probes (lower variance than plain SLQ).

A probe z gives the eigenvalues outside the bulk random weights (z . u_j)^2 / |z|^2, and the scatter
of these is most of the error of a density. Directions that the other probes' Krylov space resolves
are projected out of z and counted exactly. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from hessian_spectrum.krylov.dense_eigen import svd
from hessian_spectrum.spectral.atoms import normalized_rows
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import Array, BlockRule

RANK = 1e-10  # of |T|: a shorter direction is not a new one, even with exact products
ALONE, GROUPS = 24, 12  # up to 24 probes are held out one by one, more in 12 groups
EQUAL = 1e-5  # of |T|: nearer eigenvalues are equal in single precision, not in noisy products
NOISE = 0.01  # of a direction's length
# Probes are not independent, since each uses the others' Krylov space: the error of their mean is
# 1.1 to 1.3 times what their scatter suggests on the spectra of benchmarks/coverage.py.
SCATTER = 1.25
ONE = 0.01  # relative: where every probe weighs a node 1/n to this, it counts one eigenvalue


def certified(rule: BlockRule, n: int, floor: float = 0.0) -> SpectralMeasure:
    """Spectral measure of an n x n matrix from a block rule, with each group of probes held out.

    Each group of probes is left out in turn. With U an orthonormal basis of the Krylov space of
    the others after m - 1 steps, r-dimensional,

        tr f(A) = tr U f(A) U^T + tr P f(A) P,   P = I - U^T U,

    where T gives the first term, and the part P z of each probe z of the group estimates the
    second, over n - r dimensions. U does not depend on the group, so the measure is as unbiased as
    that of the plain rule (``SpectralMeasure.of_rules``) and needs no test of convergence: a
    resolved eigenvalue has the weight 1/n, a cluster its number of eigenvalues over n, and the
    weight of a direction that is partly resolved lies continuously between. U has one step less
    than T so that A U lies in the space: traces of A and A^2 stay exact in expectation.

    Krylov-aware trace estimation (Chen and Hallman, SIAM J. Matrix Anal. Appl. 44 (2023)), with
    every probe held out as in XTrace (Epperly, Tropp and Webber, ibid. 45 (2024)).

    With one probe this is the plain rule's measure.

    Args:
        floor: the error of a product; no residual is known to be smaller.

    Cost: O(N^3) for each group, N the order of T; no products.
    """
    usual = SpectralMeasure.of_rules((rule,), n, floor)
    if len(rule.starts) < 2:
        return usual
    weights = held_out_weights(rule, n)()
    single = np.asarray((np.abs(n * weights - 1) < ONE).all(axis=0))
    return replace(usual, weights=weights, certified=single, scatter=SCATTER)


def held_out_weights(rule: BlockRule, n: int) -> Callable[..., Array]:
    """A function ``vectors -> weights``: each probe's weights (b, N) on T's eigenvectors.

    Given other orthonormal columns (N, N), such as the eigenvectors of another matrix in T's basis,
    it returns the weights on these: the identity in ``certified`` holds for any symmetric f(A),
    since U does not depend on the probe.
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
    """The Krylov space in the eigenbasis of T, where a component that is zero stays exactly zero.

    For an eigenvalue of A whose multiplicity exceeds the number of probes, T has as many
    eigenvectors as there are probes, and the other probes span all but one of them. In another
    basis rounding along that one would grow in every step, as ghost eigenvalues do.
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
        # More equal eigenvalues than starts: the starts span only part of that eigenspace. Its
        # eigenvectors are rotated so that the starts span the first of them.
        turns = []
        for part in np.split(np.arange(len(values)), self.cuts):
            if len(part) > len(starts):
                _, lengths, rotation = svd(starts[:, part])
                starts[:, part] = starts[:, part] @ rotation.T
                starts[:, part[np.sum(lengths > RANK) :]] = 0.0
                vectors[:, part] = vectors[:, part] @ rotation.T
                values[part] = values[part].mean()
                turns.append((part, rotation))
        basis = self._grown(starts, values, vectors)
        for part, rotation in turns:
            basis[:, part] = basis[:, part] @ rotation
        return basis

    def _grown(self, starts: Array, values: Array, vectors: Array) -> Array:
        """Orthonormal rows, without noise, after one step less than T has (all if T is exact)."""
        ends = self.rule.ends
        steps = len(values) if self.rule.is_exact else len(ends) - 1
        basis = np.empty((0, len(values)))
        rows, short = starts, RANK
        for step in range(steps):
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
            if not len(rows):
                break
            rows, short = rows * values, self.shortest
        return basis


def _clean(rows: Array, noise: Array) -> Array:
    """Orthonormal combinations of ``rows`` in which the noise is shorter than ``NOISE``."""
    if not len(rows) or np.linalg.norm(noise) < NOISE:
        return rows
    mixed, lengths, _ = svd(noise)
    lengths = np.pad(lengths, (0, len(rows) - len(lengths)))
    return (mixed.T @ rows)[lengths < NOISE]
