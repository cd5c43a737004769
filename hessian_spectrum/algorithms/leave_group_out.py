"""The spectral measure without each group of samples, from the Krylov space of all of them.

With Q the Krylov vectors, T = Q A Q^T, and A_g the same matrix on group g alone, what T would be
without the group is known from Q A_g Q^T. To first order in what the group changes, that gives
every z^T f(A) z that T itself gives: A^i z lies in the space for all i < m, and
d (z^T A^p z) = sum over i of (A^i z)^T dA (A^(p - 1 - i) z).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.krylov.lanczos import Recurrences
from hessian_spectrum.krylov.state import State
from hessian_spectrum.loss.data_groups import random_groups
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.curvature import Curvature, GradientCovariance
from hessian_spectrum.spectral.held_out_probes import held_out_weights
from hessian_spectrum.spectral.jackknife import Replicates
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import Array


def groups_of(
    operator: SymmetricOperator, estimator: str, num_groups: int, seed: int = 0
) -> list[Evaluator]:
    """The groups of samples that can be left out of this operator, before anything is computed.

    Raises:
        InputError: there are no such groups, or nothing that they could be left out of.
    """
    if not isinstance(operator, Curvature):
        raise InputError(
            f"data_groups with a {type(operator).__name__}; expected a Hessian or another matrix "
            "of an Evaluator's loss, whose samples can be left out: for a block of it use "
            "Evaluator(..., parameters=...)"
        )
    if estimator == "lean":
        raise InputError(
            "data_groups with estimator='lean', which keeps no Krylov vectors; use 'block'"
        )
    return random_groups(operator.evaluator, num_groups, seed)


def replicates(
    operator: Curvature,
    state: State,
    measure: SpectralMeasure,
    groups: Sequence[Evaluator],
    on_group: Callable[[], None] | None = None,
) -> Replicates:
    """``measure`` without each of these groups of samples, at the same parameters.

    Args:
        state: at its end; ``measure`` is its own.
        groups: of ``groups_of``.
        on_group: called after each group, on every rank.

    Cost: a product with each Krylov vector, as many as the recurrences took, each group's over its
    own samples only: as many passes over the data as there were steps. O(N^3) for each group.
    """
    whole, reduced = _Reduced(operator, state, measure), []
    operator.forget()  # the groups' maps take the place of what was kept
    for group in groups:
        reduced.append(_Reduced(operator.on(group), state))
        if on_group:
            on_group()
    found = [_replicate(whole.without(part), measure, operator.n) for part in reduced]
    shares = np.array([group.total_weight for group in groups]) / operator.evaluator.total_weight
    nodes, weights = map(np.stack, zip(*found))
    return Replicates(nodes, weights, shares)


def _replicate(matrices: list[Array], measure: SpectralMeasure, n: int) -> tuple[Array, Array]:
    """Nodes (s,) and weights (probe, s) of matrices in the bases of the measure's rules."""
    solved = [np.linalg.eigh(matrix) for matrix in matrices]
    nodes = np.concatenate([values for values, _ in solved])
    weights, row, column = np.zeros((measure.num_probes, len(nodes))), 0, 0
    for rule, (values, vectors) in zip(measure.rules, solved):
        own = held_out_weights(rule, n)(vectors)
        weights[row : row + len(own), column : column + len(values)] = own
        row, column = row + len(own), column + len(values)
    order = np.argsort(nodes, kind="stable")
    return nodes[order], weights[:, order]


class _Reduced:
    """A curvature matrix in the recurrences' bases, additive over samples."""

    def __init__(self, operator: Curvature, state: State, measure: SpectralMeasure | None = None):
        evaluator = operator.evaluator
        self.weight, self.samples = evaluator.total_weight, evaluator.num_samples
        self.is_covariance = isinstance(operator, GradientCovariance)
        if measure is None:
            self.matrices = compressed(operator, state)
        else:
            self.matrices = [rule.t for rule in measure.rules]
        self.means: list[Array] | None = None
        if self.is_covariance and operator.centered:
            self.means = _coordinates(operator, state, operator.mean)
            self.matrices = [t + np.outer(g, g) for t, g in zip(self.matrices, self.means)]

    def without(self, part: _Reduced) -> list[Array]:
        """The matrices of all samples but the part's."""
        weight, samples = self.weight - part.weight, self.samples - part.samples
        # A sum over samples is the matrix times this: second moments are N / W^2 of a sum.
        sums = (self.weight, part.weight, weight)
        if self.is_covariance:
            pairs = zip(sums, (self.samples, part.samples, samples))
            sums = tuple(w * w / max(count, 1) for w, count in pairs)
        pairs = zip(self.matrices, part.matrices)
        left = [(sums[0] * all_ - sums[1] * own) / sums[2] for all_, own in pairs]
        if self.means is None:
            return left
        pairs = zip(self.means, part.means)
        means = [(self.weight * all_ - part.weight * own) / weight for all_, own in pairs]
        return [t - np.outer(g, g) for t, g in zip(left, means)]


def compressed(operator: SymmetricOperator, state: State) -> list[Array]:
    """Q A Q^T of each recurrence, (N, N) float64, for an A that need not be the recurrence's.

    Cost: a product with each basis vector, in as many passes as there were steps.
    """
    if isinstance(state, BlockSpace):
        ends = np.cumsum((0, *state.sizes[: state.num_steps]))
        q = state.basis[: state.order]
        rows = [_along(operator, state.basis[a:b], q) for a, b in pairwise(ends)]
        return [_symmetric(np.concatenate(rows))]
    rows = [_all_along(operator, state, step) for step in range(state.num_steps)]
    every = np.stack(rows, axis=1)  # (b, k, k)
    return [_symmetric(t[:k, :k]) for t, k in zip(every, state.lengths)]


def _along(operator: SymmetricOperator, rows: Tensor, q: Tensor) -> Array:
    """(k, N), the coordinates of products along Q."""
    world = operator.layout.world
    products = operator.products(rows.to(operator.device)).to(q.device)
    return _finite(operator, world.sum((products @ q.T).double().to(world.device)).cpu().numpy())


def _all_along(operator: SymmetricOperator, state: Recurrences, step: int) -> Array:
    """(b, k), the same of each recurrence's vector of this step along its own Q."""
    world, q = operator.layout.world, state.basis[:, : state.num_steps]
    products = operator.products(q[:, step].to(operator.device)).to(q.device)
    along = torch.bmm(q, products[:, :, None])[:, :, 0].double()
    return _finite(operator, world.sum(along.to(world.device)).cpu().numpy())


def _coordinates(operator: Curvature, state: State, vector: Tensor) -> list[Array]:
    """(N,) for each recurrence: a vector (n_local,) along Q."""
    block = isinstance(state, BlockSpace)
    q = state.basis[None, : state.order] if block else state.basis[:, : state.num_steps]
    world = operator.layout.world
    along = world.sum((q @ vector.to(q.device)).double().to(world.device)).cpu().numpy()
    lengths = [state.order] if block else state.lengths
    return [row[:k] for row, k in zip(along, lengths)]


def _finite(operator: SymmetricOperator, rows: Array) -> Array:
    if not np.isfinite(rows).all():
        operator.raise_failure()
        raise FloatingPointError("a product with a group of the samples is not finite")
    return rows


def _symmetric(t: Array) -> Array:
    return (t + t.T) / 2
