"""Block Krylov space -> spectral measure; what is resolved weighs exactly 1/n. NumPy only.

A probe z gives the eigenvalues outside the bulk random weights (z . u_j)^2 / |z|^2, whose scatter
is most of the error of a density. Where u_j is known, from the other probes, its share of z can be
taken out and replaced by its expectation, 1/n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hessian_spectrum.measure import Array, SpectralMeasure

# Around the prototypes' thresholds of 0.3 sigma and 1 sigma; not tuned since.
SURE, UNSURE = 0.1, 0.5  # residuals, in units of sigma, of full and of no acceptance
BULK = 0.5, 1.5  # distances to the bulk, in units of sigma, of no and of full acceptance
RANK = 1e-10  # directions this much shorter than the longest are no new ones
ALONE, GROUPS = 24, 12  # up to so many probes each is a group; more are dealt to so many groups


@dataclass(frozen=True)
class BlockRule:
    """What a block Krylov space knows of A: T, where the probes are in it, what leads out of it."""

    t: Array  # (N, N), symmetric
    first: Array  # (b, b_1), the probes in coordinates of the first b_1 basis vectors
    out: Array  # (b_m, b_{m+1}), the coordinates that lead out, of the last b_m basis vectors
    num_steps: int  # m

    @property
    def starts(self) -> Array:
        """(b, N), the probes in the basis, of unit length."""
        starts = np.zeros((len(self.first), len(self.t)))
        starts[:, : self.first.shape[1]] = self.first
        return starts / np.linalg.norm(starts, axis=1, keepdims=True)

    def residuals(self, values: Array, vectors: Array) -> Array:
        """|A u - t u| for vectors of the space, rows (k, N); T is symmetric."""
        inside = vectors @ self.t - values[:, None] * vectors
        outside = vectors[:, len(self.t) - len(self.out) :] @ self.out
        return np.sqrt((inside**2).sum(1) + (outside**2).sum(1))


def plain(rule: BlockRule, n: int, floor: float = 0.0) -> SpectralMeasure:
    """Block Gauss quadrature: each probe's own weights on the nodes that all share.

    Args:
        floor: residuals below it are not known to be real: the error of a product.
    """
    values, vectors = np.linalg.eigh(rule.t)
    return SpectralMeasure(
        nodes=values,
        weights=_normalized((rule.starts @ vectors) ** 2),
        n=n,
        residuals=np.maximum(rule.residuals(values, vectors.T), floor),
        certified=np.zeros(len(values), dtype=bool),
    )


def certified(rule: BlockRule, n: int, sigma: float, floor: float = 0.0) -> SpectralMeasure:
    """As ``plain``, with the weight 1/n for what the other probes resolve to less than ``sigma``.

    Each group of probes is left out in turn. The others' Krylov space inside the whole gives Ritz
    pairs whose true residuals are known; those that are accepted are taken out of the group's
    probes and count 1/n, and what is left of a probe shares the rest. Since the accepted pairs do
    not depend on the probe that they are taken out of, its measure is as unbiased as the plain
    one, whatever is accepted: clusters and multiplicities need no test.

    With one probe there are no others, and this is ``plain``.
    """
    usual = plain(rule, n, floor)
    if len(rule.first) < 2:
        return usual
    vectors = np.linalg.eigh(rule.t).eigenvectors
    starts = rule.starts
    nodes, residuals, weights, known = [usual.nodes], [usual.residuals], [], []
    shared = np.zeros_like(usual.weights)
    for group in _groups(len(starts)):
        others = np.setdiff1d(np.arange(len(starts)), group)
        t, u = _ritz_pairs(rule, starts[others])
        misfits = np.maximum(rule.residuals(t, u), floor)
        share = acceptance(t, misfits, sigma)
        t, u, misfits, share = (x[share > 0] for x in (t, u, misfits, share))
        share = share * min(1.0, n / max(share.sum(), 1e-300))
        along = starts[group] @ u.T
        left = starts[group] - (along * (1 - np.sqrt(1 - share))) @ u
        rest = _normalized((left @ vectors) ** 2) * max(0.0, 1 - share.sum() / n)
        shared[group] = rest
        own = np.zeros((len(starts), len(t)))
        own[group] = share / n
        nodes.append(t)
        residuals.append(misfits)
        weights.append(own)
        known.append(np.ones(len(t), dtype=bool))
    together = np.concatenate(nodes)
    order = np.argsort(together, kind="stable")
    certain = np.concatenate([np.zeros(len(usual.nodes), dtype=bool), *known])
    return SpectralMeasure(
        nodes=together[order],
        weights=np.concatenate([shared, *weights], axis=1)[:, order],
        n=n,
        residuals=np.concatenate(residuals)[order],
        certified=certain[order],
    )


def acceptance(values: Array, residuals: Array, sigma: float) -> Array:
    """How far a Ritz pair is accepted, 0 to 1: continuous, so that rounding flips nothing."""
    sure = _smooth((UNSURE - residuals / sigma) / (UNSURE - SURE))
    near, far = BULK
    return sure * _smooth((np.abs(values) / sigma - near) / (far - near))


def _smooth(x: Array) -> Array:
    """0 below 0, 1 above 1, a cubic between."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)


def _groups(b: int) -> Iterator[Array]:
    return iter(np.array_split(np.arange(b), b if b <= ALONE else GROUPS))


def _ritz_pairs(rule: BlockRule, starts: Array) -> tuple[Array, Array]:
    """Ritz values and vectors (k,), (k, N) of the block Krylov space of T from these vectors."""
    q = _krylov_basis(rule.t, starts, rule.num_steps)
    values, vectors = np.linalg.eigh(q @ rule.t @ q.T)
    return values, vectors.T @ q


def _krylov_basis(t: Array, starts: Array, num_steps: int) -> Array:
    """Orthonormal rows that span starts, starts T, ..., starts T^(m - 1) inside R^N.

    So far powers of T are powers of A, and the span is the Krylov space of these probes alone; one
    step more, and it would know of the others.
    """
    scale = np.abs(t).sum(1).max() or 1.0
    basis = np.empty((0, len(t)))
    rows, longest = starts, np.linalg.norm(starts, axis=1).max()
    for _ in range(num_steps):
        for _ in range(2):
            rows = rows - (rows @ basis.T) @ basis
        _, lengths, rows = np.linalg.svd(rows, full_matrices=False)
        rows = rows[lengths > RANK * longest][: len(t) - len(basis)]
        # What was short is orthogonal to rounding only now.
        rows = np.linalg.qr((rows - (rows @ basis.T) @ basis).T)[0].T
        basis = np.concatenate([basis, rows])
        if not len(rows):
            break
        rows, longest = rows @ t, scale
    return basis


def _normalized(weights: Array) -> Array:
    sums = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, sums, out=np.full_like(weights, 1 / weights.shape[1]), where=sums > 0)
