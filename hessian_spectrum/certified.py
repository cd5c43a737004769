"""Block Krylov space -> spectral measure; what other probes know of it is not left to chance.

A probe z gives the eigenvalues outside the bulk random weights (z . u_j)^2 / |z|^2, whose scatter
is most of the error of a density. Directions that are known from the other probes can be taken out
of z and counted exactly. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hessian_spectrum.measure import Array, SpectralMeasure, normalized
from hessian_spectrum.quadrature import BlockRule

RANK = 1e-10  # of |T|: shorter directions are no new ones, even where products are exact
ALONE, GROUPS = 24, 12  # up to so many probes each is a group; more are dealt to so many groups
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
    starts, usual = rule.starts, SpectralMeasure.of_rules((rule,), n, floor)
    if len(starts) < 2:
        return usual
    vectors = np.linalg.eigh(rule.t).eigenvectors
    weights = np.empty_like(usual.weights)
    steps = rule.num_steps if rule.is_exact else rule.num_steps - 1
    for group in _groups(len(starts)):
        others = np.setdiff1d(np.arange(len(starts)), group)
        known = _krylov_basis(rule, starts[others], steps)
        left = starts[group] - (starts[group] @ known.T) @ known
        rest = normalized((left @ vectors) ** 2) * (1 - len(known) / n)
        weights[group] = np.square(known @ vectors).sum(axis=0) / n + rest
    single = (np.abs(n * weights - 1) < ONE).all(axis=0)
    return replace(usual, weights=weights, certified=single)


def _groups(b: int) -> Iterator[Array]:
    return iter(np.array_split(np.arange(b), b if b <= ALONE else GROUPS))


def _krylov_basis(rule: BlockRule, starts: Array, num_steps: int) -> Array:
    """Orthonormal rows that span starts, starts T, ..., starts T^(num_steps - 1) inside R^N.

    So far powers of T are powers of A, and the span is the Krylov space of these probes alone.
    Directions that are only rounding or noise would know of the others: they are left out.
    """
    t = rule.t
    shortest = max(rule.tolerance, RANK * np.abs(t).sum(axis=1).max())
    basis = np.empty((0, len(t)))
    rows, short = starts, RANK
    for _ in range(num_steps):
        for _ in range(2):
            rows = rows - (rows @ basis.T) @ basis
        _, lengths, rows = np.linalg.svd(rows, full_matrices=False)
        rows = rows[lengths > short][: len(t) - len(basis)]
        # What was short is orthogonal to rounding only now.
        rows = np.linalg.qr((rows - (rows @ basis.T) @ basis).T)[0].T
        basis = np.concatenate([basis, rows])
        if not len(rows):
            break
        rows, short = rows @ t, shortest
    return basis
