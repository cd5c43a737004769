"""The spectral measure without each group of samples, from the Krylov space of all of them.

Let Q be the Krylov vectors, T = Q A Q^T, and A_g the same matrix of group g alone. Then Q A_g Q^T
gives T without the group, and with it every z^T f(A) z that T itself gives, to first order in the
change that the group makes: A^i z lies in the space for all i < m, and
d (z^T A^p z) = sum over i of (A^i z)^T dA (A^(p - 1 - i) z).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.krylov.dense_eigen import eigh
from hessian_spectrum.krylov.state import ProbeState
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
    state: ProbeState,
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
    solved = [eigh(matrix) for matrix in matrices]
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

    def __init__(
        self, operator: Curvature, state: ProbeState, measure: SpectralMeasure | None = None
    ):
        evaluator = operator.evaluator
        self.weight, self.samples = evaluator.total_weight, evaluator.num_samples
        self.is_covariance = isinstance(operator, GradientCovariance)
        if measure is None:
            self.matrices = state.compressed(operator)
        else:
            self.matrices = [rule.t for rule in measure.rules]
        self.means: list[Array] | None = None
        if isinstance(operator, GradientCovariance) and operator.centered:
            self.means = state.coordinates(operator.mean, operator.layout.world)
            self.matrices = [t + np.outer(g, g) for t, g in zip(self.matrices, self.means)]

    def without(self, part: _Reduced) -> list[Array]:
        """The matrices of all samples but the part's."""
        weight, samples = self.weight - part.weight, self.samples - part.samples
        # A sum over samples is the matrix times this: second moments are N / W^2 of a sum.
        sums = (self.weight, part.weight, weight)
        if self.is_covariance:
            counts = (self.samples, part.samples, samples)
            whole, own, rest = (w * w / max(count, 1) for w, count in zip(sums, counts))
            sums = (whole, own, rest)
        matrices = zip(self.matrices, part.matrices)
        left = [(sums[0] * all_ - sums[1] * own) / sums[2] for all_, own in matrices]
        if self.means is None or part.means is None:
            return left
        gradients = zip(self.means, part.means)
        means = [(self.weight * all_ - part.weight * own) / weight for all_, own in gradients]
        return [t - np.outer(g, g) for t, g in zip(left, means)]
