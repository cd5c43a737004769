"""Quantities computed from the eigenpairs at the ends of a spectrum, with bounds. NumPy only.

A residual |H v - lambda v| = r implies an eigenvalue within r of lambda, which bounds every answer.
The bounds assume that the pairs are the outermost ones: no residual detects a missed eigenvalue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.spectral.atoms import Atoms, normalized_rows
from hessian_spectrum.spectral.eigenpairs import EigenPairs, Rows
from hessian_spectrum.spectral.held_out_errors import HeldOutErrors
from hessian_spectrum.spectral.quadrature import NEAREST, Array

Indices = NDArray[np.intp]
M = TypeVar("M", bound=Atoms)
TENTH = 10  # zeta = lambda_1 / lambda_10


class Within(NamedTuple):
    """An answer, and its bounds by the residuals."""

    value: float
    low: float
    high: float


# -- eigenvalues ---------------------------------------------------------------------------------


def eigenvalue(pairs: EigenPairs, k: int) -> Within:
    """lambda_k, the k-th largest; InputError where fewer were computed at the upper end."""
    upper = len(pairs) - (pairs.num_lower or 0)
    if not 1 <= k <= upper:
        raise InputError(
            f"eigenvalue {k}, but {upper} were computed at the upper end; expected 1 to that, or "
            "compute more"
        )
    return _within(pairs, -k)


def outlier_ratio(pairs: EigenPairs, k: int) -> Within:
    """zeta = lambda_1 / lambda_k, of the k-th largest (Ghorbani et al. 2019, section 4.2).

    How far the largest eigenvalue stands out of the other outliers; k is usually the number of
    classes.

    Raises:
        InputError: fewer than k pairs, or a lambda_k that is not above 0.
    """
    first, last = eigenvalue(pairs, 1), eigenvalue(pairs, k)
    if not last.low > 0:
        raise InputError(
            f"outlier_ratio({k}): eigenvalue {k} is {last.value:.6g}, give or take "
            f"{last.high - last.value:.1g}; expected one above 0: take a smaller k"
        )
    return _ratio(first, last)


def outlier_ratios(several: Sequence[EigenPairs], k: int = TENTH) -> list[Within]:
    """``outlier_ratio`` of each; NaN where it is not known, or lambda_k is not above 0."""
    found = []
    for pairs in several:
        try:
            found.append(outlier_ratio(pairs, k))
        except InputError:
            found.append(Within(math.nan, math.nan, math.nan))
    return found


def condition_number(pairs: EigenPairs, damping: float = 0.0) -> Within:
    """(lambda_max + damping) / (lambda_min + damping) of pairs at both ends: of H + damping I.

    Raises:
        InputError: H + damping I is not positive definite, or not for certain.
    """
    low, high = (_shifted(end, damping) for end in (_lowest(pairs), eigenvalue(pairs, 1)))
    if not low.low > 0:
        raise InputError(
            f"condition_number({damping:g}): lambda_min + damping is {low.value:.6g}, at least "
            f"{low.low:.6g}; expected more than 0: use damping > {damping - low.low:.6g}"
        )
    return _ratio(high, low)


class Sign(NamedTuple):
    """The smallest eigenvalue with its bounds, and its sign."""

    value: float
    low: float
    high: float
    verdict: Literal["negative", "positive", "undecided"]


def smallest(pairs: EigenPairs) -> Sign:
    """lambda_min with its sign; "undecided" where the residual reaches across 0.

    "negative" is certain. "positive" assumes that no eigenvalue was missed.
    """
    found = _lowest(pairs)
    if found.high < 0:
        return Sign(*found, "negative")
    return Sign(*found, "positive" if found.low > 0 else "undecided")


def normalized(pairs: EigenPairs, k: int = 10) -> EigenPairs:
    """The eigenvalues in units of the k-th largest, which compares networks of different scales.

    Raises:
        InputError: fewer than k pairs, or a lambda_k that is not above 0.
    """
    unit = eigenvalue(pairs, k).value
    if not unit > 0:
        raise InputError(
            f"normalized({k}): eigenvalue {k} is {unit:.6g}; expected one above 0: take a smaller k"
        )
    return rescaled(pairs, unit)


@overload
def rescaled(result: EigenPairs, unit: float) -> EigenPairs: ...
@overload
def rescaled(result: M, unit: float) -> M: ...
def rescaled(result: EigenPairs | Atoms, unit: float) -> EigenPairs | Atoms:
    """The same eigenpairs or measure with eigenvalues in units of ``unit`` > 0."""
    if not 0 < unit < math.inf:
        raise InputError(f"rescaled(unit={unit}): expected a number above 0")
    if isinstance(result, EigenPairs):
        return replace(result, values=result.values / unit, residuals=result.residuals / unit)
    rules = tuple(
        replace(rule, t=rule.t / unit, out=rule.out / unit, tolerance=rule.tolerance / unit)
        for rule in result.rules
    )
    nodes, residuals = result.nodes / unit, result.residuals / unit
    parts = result.replicates
    parts = parts and replace(parts, nodes=parts.nodes / unit)
    return replace(result, nodes=nodes, residuals=residuals, rules=rules, replicates=parts)


# -- eigenvectors --------------------------------------------------------------------------------


def participation(vectors: Rows, sizes: Mapping[str, int]) -> Array:
    """The part of each eigenvector's square in each layer, (k, layers); rows sum to 1.

    Their mean over k is that of the subspace: tr(P_layer V^T V) / k.

    Args:
        vectors: (k, n), rows of unit norm, possibly lazy: one is in memory at a time.
        sizes: the number of entries of each layer by name, in the order of the vectors.
    """
    n = sum(sizes.values())
    if len(vectors.shape) != 2 or vectors.shape[1] != n:
        raise InputError(
            f"vectors of shape {tuple(vectors.shape)} and layers of {n} entries do not belong "
            f"together; expected (k, {n})"
        )
    if not vectors.shape[0] or not all(size > 0 for size in sizes.values()):
        raise InputError("participation needs at least one vector, and layers of 1 entry or more")
    starts = np.cumsum([0, *sizes.values()])[:-1]
    rows = (np.asarray(vectors[i], dtype=np.float64) for i in range(vectors.shape[0]))
    return normalized_rows(np.array([np.add.reduceat(row**2, starts) for row in rows]))


def by_layer(sizes: Mapping[str, int]) -> dict[str, int]:
    """Parameters of one layer that follow each other in one entry: "1.weight", "1.bias" -> "1"."""
    found: dict[str, int] = {}
    last = None
    for name, size in sizes.items():
        layer = name.rpartition(".")[0] or name
        if layer != last and layer in found:  # its parameters lie apart
            return dict(sizes)
        found[layer] = found.get(layer, 0) + size
        last = layer
    return found


# -- a measure and eigenpairs together -----------------------------------------------------------


def refined(measure: M, pairs: EigenPairs) -> M:
    """The measure with the ``pairs`` as nodes of weight 1/n at its ends.

    The rest of the measure, between them, keeps its shape and gets the weight (n - k) / n. For
    answers that depend most on the ends, such as ``log_determinant`` just above -lambda_min. Uses
    the converged pairs from each end inwards, up to the first that is not converged. Intervals have
    the measure's own noise and truncation.

    Raises:
        InputError: no pair is converged, or nothing is left between them.
    """
    below, above = _outermost(measure, pairs)
    taken = np.concatenate([below, above])
    if not len(taken):
        raise InputError("no outermost pair is converged: there is nothing to refine by")
    values, residuals = np.asarray(pairs.values)[taken], np.asarray(pairs.residuals)[taken]
    low = max(pairs.values[below], default=-math.inf)
    high = min(pairs.values[above], default=math.inf)
    rest = (measure.nodes > low) & (measure.nodes < high) & ~_counted(measure, values, residuals)
    if not rest.any() or not (measure.weights[:, rest].sum(axis=1) > 0).all():
        raise InputError("the measure has nothing between the pairs; they are of another matrix?")
    k = len(values)
    order = np.argsort(np.concatenate([values, measure.nodes[rest]]), kind="stable")

    def counted(weights: Array) -> Array:
        inner = normalized_rows(weights[:, rest]) * (1 - k / measure.n)
        return np.hstack([np.full((len(weights), k), 1 / measure.n), inner])[:, order]

    errors = measure.held_out
    if errors is not None:
        fewer = counted(errors.fewer_known.reshape(-1, len(rest)))
        fewer = fewer.reshape(*errors.fewer_known.shape[:2], len(order))
        errors = HeldOutErrors(counted(errors.shared), fewer)
    return replace(
        measure,
        nodes=np.concatenate([values, measure.nodes[rest]])[order],
        weights=counted(measure.weights),
        residuals=np.concatenate([residuals, measure.residuals[rest]])[order],
        certified=np.concatenate([np.ones(k, bool), measure.certified[rest]])[order],
        held_out=errors,
        replicates=None,  # the pairs of other data are not known
    )


def _outermost(measure: Atoms, pairs: EigenPairs) -> tuple[Indices, Indices]:
    """Converged pairs from the lower end inwards, and from the upper; most mass is between them."""
    gap = pairs.num_lower
    if gap is None:
        ends = [-math.inf, *pairs.values, math.inf]
        gap = int(np.argmax([measure.masses(a, b).mean() for a, b in pairwise(ends)]))
    converged = np.asarray(pairs.converged)
    below = np.logical_and.accumulate(converged[:gap])
    above = np.logical_and.accumulate(converged[gap:][::-1])[::-1]
    return np.flatnonzero(below), gap + np.flatnonzero(above)


def _counted(measure: Atoms, values: Array, residuals: Array) -> NDArray[np.bool_]:
    """Certified nodes that are one of these eigenvalues, within both residuals."""
    rounding = NEAREST * np.abs(measure.nodes).max()
    reach = measure.residuals[:, None] + residuals + rounding
    near = np.abs(measure.nodes[:, None] - values) <= reach
    return measure.certified & near.any(axis=1)


# -- ends ----------------------------------------------------------------------------------------


def _lowest(pairs: EigenPairs) -> Within:
    if not len(pairs) or pairs.num_lower == 0:
        raise InputError(
            "no eigenvalue was computed at the lower end; compute the smallest, too (both)"
        )
    return _within(pairs, 0)


def _within(pairs: EigenPairs, i: int) -> Within:
    value, residual = float(pairs.values[i]), float(pairs.residuals[i])
    return Within(value, value - residual, value + residual)


def _shifted(end: Within, damping: float) -> Within:
    return Within(*(x + damping for x in end))


def _ratio(a: Within, b: Within) -> Within:
    """a / b for b above 0."""
    return Within(
        a.value / b.value,
        min(a.low / b.low, a.low / b.high),
        max(a.high / b.low, a.high / b.high),
    )
