"""Spectral measure of a block Krylov space by held-out probes (lower variance than plain SLQ).

A probe z gives the eigenvalues outside the bulk random weights (z . u_j)^2 / |z|^2, and the scatter
of these is most of the error of a density. Directions that the other probes' Krylov space resolves
are projected out of z and counted exactly. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hessian_spectrum.spectral.atoms import normalized_rows
from hessian_spectrum.spectral.held_out_errors import HeldOutErrors, shared_error
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import Array, BlockRule

RANK = 1e-10  # of |T|: a shorter direction is not a new one, even with exact products
ALONE, GROUPS = 24, 12  # up to 24 probes are held out one by one, more in 12 groups
EQUAL = 1e-5  # of |T|: nearer eigenvalues are equal in single precision, not in noisy products
NOISE = 0.01  # of a direction's length
# Probes are not independent, since each uses the others' Krylov space: the error of their mean is
# 1.1 to 1.3 times what their scatter suggests on the spectra of benchmarks/coverage.py.
SCATTER = 1.25
# On the edges of a semicircle each of the last five of 15 steps of the others adds to a bias.
STEPS_FOR_ONE_BACK, MOST_BACK = 5, 3
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
    splits = _splits(rule)
    weights = _weights(splits, n)
    single = np.asarray((np.abs(n * weights - 1) < ONE).all(axis=0))
    found = replace(usual, weights=weights, certified=single, scatter=SCATTER)
    errors = HeldOutErrors(_shared(splits, found), _fewer_known(rule, splits, n))
    return replace(found, held_out=errors)


def held_out_weights(rule: BlockRule, n: int) -> Callable[..., Array]:
    """A function ``vectors -> weights``: each probe's weights (b, N) on T's eigenvectors.

    Given other orthonormal columns (N, N), such as the eigenvectors of another matrix in T's basis,
    it returns the weights on these: the identity in ``certified`` holds for any symmetric f(A),
    since U does not depend on the probe.
    """
    own = rule.eigen[1]
    if len(rule.starts) < 2:
        return lambda vectors=own: normalized_rows((rule.starts @ vectors) ** 2)
    splits = _splits(rule)
    return lambda vectors=own: _weights([split.on(own.T @ vectors) for split in splits], n)


class _Split(NamedTuple):
    """A group of probes, and what the others know of it; in T's eigenbasis unless turned."""

    group: Array  # (g,), indices of probes
    probes: Array  # (g, N), unit rows
    known: Array  # (r, N), orthonormal rows: the Krylov space of the others
    left: Array  # (g, N), the group's probes without their parts in it
    ends: list[int]  # how many of ``known`` each step has reached

    def on(self, vectors: Array) -> _Split:
        probes, known, left = (rows @ vectors for rows in (self.probes, self.known, self.left))
        return self._replace(probes=probes, known=known, left=left)

    def after(self, steps: int) -> _Split:
        """The same, where the others know what they did after these steps."""
        known, forgotten = np.split(self.known, [self.ends[: steps + 1][-1]])
        left = self.left + (self.probes @ forgotten.T) @ forgotten
        return self._replace(known=known, left=left)

    def rest(self, n: int) -> Array:
        """(g, N), of the weights what the probes themselves estimate."""
        return normalized_rows(self.left**2) * (1 - len(self.known) / n)


def _splits(rule: BlockRule) -> list[_Split]:
    starts, space, found = rule.starts, _EigenSpace(rule), []
    for group in _groups(len(starts)):
        known, ends = space.krylov_basis(starts[np.setdiff1d(np.arange(len(starts)), group)])
        probes = space.seen(starts[group])
        left = probes - (probes @ known.T) @ known
        found.append(_Split(group, probes, known, left, ends))
    return found


def _weights(splits: Sequence[_Split], n: int) -> Array:
    rows = [np.square(split.known).sum(axis=0) / n + split.rest(n) for split in splits]
    return np.concatenate(rows)  # groups are in the probes' order


def _fewer_known(rule: BlockRule, splits: Sequence[_Split], n: int) -> Array:
    """See ``HeldOutErrors.fewer_known``; no rows where nothing is truncated."""
    back = 0 if rule.is_exact else min(rule.num_steps // STEPS_FOR_ONE_BACK, MOST_BACK)
    last = len(rule.ends) - 1  # step of the others
    rows = [_weights([s.after(last - k) for s in splits], n) for k in range(1, back + 1)]
    return np.array(rows).reshape(-1, len(rule.starts), len(rule.t))


def _shared(splits: Sequence[_Split], measure: SpectralMeasure) -> Array:
    """See ``HeldOutErrors.shared``: a row for each eigenvalue with copies enough for all probes."""
    n, nodes, mean = measure.n, measure.nodes, measure.weights.mean(axis=0)
    rest = np.concatenate([split.rest(n) for split in splits]).mean(axis=0)
    known = np.mean([np.square(split.known).sum(axis=0) for split in splits], axis=0)
    held = max(len(split.group) for split in splits)
    rows = []
    for part in equal_values(nodes, EQUAL * np.abs(nodes).max()):
        copies = len(part)
        # T has more copies than the others: the one that they lack is not known to be the last.
        if copies > measure.num_probes - held and copies - known[part].sum() > 0.5:
            inside = np.isin(np.arange(len(nodes)), part)
            error = shared_error(n * rest[inside].sum(), n * rest.sum(), held) / n
            move = _share(np.where(inside, rest, 0.0)) - _share(np.where(inside, 0.0, rest))
            rows.append(mean + error * move)
    return np.array(rows).reshape(-1, len(nodes))


def _share(weights: Array) -> Array:
    return weights / (weights.sum() or 1.0)


def equal_values(values: Array, within: float) -> list[Array]:
    """Indices of ascending values in runs whose neighbours are this near."""
    return np.split(np.arange(len(values)), np.flatnonzero(np.diff(values) > within) + 1)


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
        self.parts = equal_values(self.values, equal)

    def seen(self, rows: Array) -> Array:
        """Rows (k, N) in the eigenbasis."""
        return rows @ self.vectors

    def krylov_basis(self, starts: Array) -> tuple[Array, list[int]]:
        """Orthonormal rows that span the Krylov space of these vectors inside that of all.

        And how many of them span it after 0, 1, 2, ... steps.
        """
        starts, values, vectors = self.seen(starts), self.values.copy(), self.vectors.copy()
        # More equal eigenvalues than starts: the starts span only part of that eigenspace. Its
        # eigenvectors are rotated so that the starts span the first of them.
        turns = []
        for part in self.parts:
            if len(part) > len(starts):
                turn = np.linalg.svd(starts[:, part])
                starts[:, part] = starts[:, part] @ turn.Vh.T
                starts[:, part[np.sum(turn.S > RANK) :]] = 0.0
                vectors[:, part] = vectors[:, part] @ turn.Vh.T
                values[part] = values[part].mean()
                turns.append((part, turn.Vh))
        basis, reached = self._grown(starts, values, vectors)
        for part, rotation in turns:
            basis[:, part] = basis[:, part] @ rotation
        return basis, reached

    def _grown(self, starts: Array, values: Array, vectors: Array) -> tuple[Array, list[int]]:
        """Orthonormal rows, without noise, after one step less than T has (all if T is exact)."""
        ends = self.rule.ends
        steps = len(values) if self.rule.is_exact else len(ends) - 1
        basis = np.empty((0, len(values)))
        rows, short, reached = starts, RANK, [0]
        for step in range(steps):
            for _ in range(2):
                rows = rows - (rows @ basis.T) @ basis
            turned = np.linalg.svd(rows, full_matrices=False)
            rows = turned.Vh[turned.S > short][: len(values) - len(basis)]
            # What was short is orthogonal to rounding only now.
            rows = np.linalg.qr((rows - (rows @ basis.T) @ basis).T)[0].T
            if step < len(ends) - 1:
                # Krylov vectors of k steps lie in the first k blocks of T: the rest is noise.
                rows = _clean(rows, rows @ vectors[ends[step] :].T)
            basis = np.concatenate([basis, rows])
            reached.append(len(basis))
            if not len(rows):
                break
            rows, short = rows * values, self.shortest
        return basis, reached


def _clean(rows: Array, noise: Array) -> Array:
    """Orthonormal combinations of ``rows`` in which the noise is shorter than ``NOISE``."""
    if not len(rows) or np.linalg.norm(noise) < NOISE:
        return rows
    mixed = np.linalg.svd(noise)
    lengths = np.pad(mixed.S, (0, len(rows) - len(mixed.S)))
    return (mixed.U.T @ rows)[lengths < NOISE]
