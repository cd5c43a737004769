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
from hessian_spectrum.spectral.held_out_space import EQUAL, HeldOutSpace, equal_values
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import Array, BlockRule

ALONE, GROUPS = 24, 12  # up to 24 probes are held out one by one, more in 12 groups
# Probes are not independent, since each uses the others' Krylov space: the error of their mean is
# 1.1 to 1.3 times what their scatter suggests on the spectra of benchmarks/studies/coverage.py.
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
    unknown: Array  # (c, N), orthonormal rows: the complement of the Krylov space of the others
    gained: list[Array]  # (r_k, N), orthonormal rows: what the last steps have added to that space

    def on(self, vectors: Array) -> _Split:
        probes, unknown, *gained = (
            rows @ vectors for rows in (self.probes, self.unknown, *self.gained)
        )
        return self._replace(probes=probes, unknown=unknown, gained=gained)

    def without(self, steps: int) -> _Split:
        """The same, where the others have made so many steps less."""
        kept = len(self.gained) - steps
        unknown = np.concatenate([self.unknown, *self.gained[kept:]])
        return self._replace(unknown=unknown, gained=self.gained[:kept])

    def known(self) -> Array:
        """(N,), how much of each unit vector lies in the Krylov space of the others."""
        return np.clip(1 - np.square(self.unknown).sum(axis=0), 0.0, None)

    def rest(self, n: int) -> Array:
        """(g, N), of the weights what the probes themselves estimate."""
        left = (self.probes @ self.unknown.T) @ self.unknown
        dimension = self.unknown.shape[1] - len(self.unknown)  # of what is known
        return normalized_rows(left**2) * (1 - dimension / n)


def _splits(rule: BlockRule) -> list[_Split]:
    starts, space, found = rule.starts, HeldOutSpace(rule, MOST_BACK), []
    for group in _groups(len(starts)):
        unknown, gained = space.unknown_to(starts[np.setdiff1d(np.arange(len(starts)), group)])
        found.append(_Split(group, starts[group] @ rule.eigen[1], unknown, gained))
    return found


def _weights(splits: Sequence[_Split], n: int) -> Array:
    rows = [split.known() / n + split.rest(n) for split in splits]
    return np.concatenate(rows)  # groups are in the probes' order


def _fewer_known(rule: BlockRule, splits: Sequence[_Split], n: int) -> Array:
    """See ``HeldOutErrors.fewer_known``; no rows where nothing is truncated."""
    back = 0 if rule.is_exact else min(rule.num_steps // STEPS_FOR_ONE_BACK, MOST_BACK)
    rows = [_weights([s.without(k) for s in splits], n) for k in range(1, back + 1)]
    return np.array(rows).reshape(-1, len(rule.starts), len(rule.t))


def _shared(splits: Sequence[_Split], measure: SpectralMeasure) -> Array:
    """See ``HeldOutErrors.shared``: a row for each eigenvalue with copies enough for all probes."""
    n, nodes, mean = measure.n, measure.nodes, measure.weights.mean(axis=0)
    rest = np.concatenate([split.rest(n) for split in splits]).mean(axis=0)
    known = np.mean([split.known() for split in splits], axis=0)
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


def _groups(b: int) -> Iterator[Array]:
    return iter(np.array_split(np.arange(b), b if b <= ALONE else GROUPS))
