"""How far an answer of a spectral measure may be from the truth. NumPy and SciPy only.

Three errors are told apart. Noise: the probes are random, and differ. Truncation: the recurrences
end after m steps, and all probes share what they did not resolve; their scatter does not show it.
Data: the samples are random too; another data set would have another spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.spectral import jackknife, rounding
from hessian_spectrum.spectral.atoms import Atoms
from hessian_spectrum.spectral.functionals import OF_MEASURE, MeasureQuery, evaluate, per_probe
from hessian_spectrum.spectral.probe_variance import on_the_sphere
from hessian_spectrum.spectral.quadrature import NEAREST, Array, BlockRule

EXACT_DEGREE = 3  # of polynomials whose held-out traces are unbiased: one step from the end
ROUNDING = 1e-12  # of an answer: no interval is narrower


class DensityError(NamedTuple):
    """Expected L1 error of a density, by cause."""

    noise: float  # of the random probes; NaN with one
    truncation: float  # what the last step has changed; NaN where it cannot be known

    @property
    def total(self) -> float:
        """Noise and half of the truncation, in quadrature: a further step changes less."""
        return math.hypot(self.noise, 0.5 * self.truncation)


# -- of numbers ------------------------------------------------------------------------------


def standard_error(per_probe: Array, scatter: float = 1.0) -> Array:
    """Of the mean over probes, the first axis; NaN with one."""
    if len(per_probe) < 2:
        return np.full(per_probe.shape[1:], np.nan)
    return scatter * per_probe.std(axis=0, ddof=1) / math.sqrt(len(per_probe))


def interval(
    value: Array | float, noise: Array | float, margins: Array, num_probes: int, level: float
) -> Array:
    """(2, ...): ``value`` minus and plus Student's quantile times ``noise``, and ``margins``, (2,
    ...), in quadrature.

    NaN where the noise is unknown; an unknown margin counts as none.
    """
    if not 0 < level < 1:
        raise InputError(f"level={level}: expected a probability, such as 0.95")
    factor = stdtrit(num_probes - 1, (1 + level) / 2) if num_probes > 1 else math.nan
    low, high = np.hypot(factor * noise, np.nan_to_num(margins)) + ROUNDING * np.abs(value)
    return np.stack([value - low, value + high])


# -- of a query: its row, and its arguments as ``functionals.bind`` gives them ---------------


def noise(measure: Atoms, row: MeasureQuery, *args: Any) -> Array | float:
    """Standard error over the probes.

    Of independent probes their scatter, or what theory gives for the spectrum that they see, where
    that is larger; of held-out probes their scatter and what they share.
    """
    if row.inverse_of is not None:
        below = _below(measure, row, args[0])
        return _half_width(measure, row, args[0], float(noise(measure, *below)))
    own = standard_error(per_probe(measure, row, *args), measure.scatter)
    if measure.has_independent_probes:
        return np.maximum(own, on_the_sphere(measure, row, *args))
    return np.hypot(own, _shared(measure, row, *args))


def _shared(measure: Atoms, row: MeasureQuery, *args: Any) -> Any:
    """Standard error of what held-out probes share."""
    if measure.held_out is None:
        return 0.0
    mean = _in_the_mean(measure, row, *args)
    moved = measure.with_mean_weights(measure.held_out.shared)
    return np.sqrt(sum((_in_the_mean(m, row, *args) - mean) ** 2 for m in moved))


def _bias(measure: Atoms, row: MeasureQuery, *args: Any) -> Any:
    """Of held-out probes: the change where the others know less, and one standard error of it."""
    exact = row.degree is not None and row.degree(measure, *args) <= EXACT_DEGREE
    if measure.held_out is None or exact:
        return 0.0
    assert row.square is None  # whose answer is of degree 2
    own, found = per_probe(measure, row, *args), [0.0]
    for weights in measure.held_out.fewer_known:
        moved = per_probe(replace(measure, weights=weights), row, *args) - own
        found.append(np.abs(moved.mean(axis=0)) + standard_error(moved, measure.scatter))
    return np.max(np.broadcast_arrays(*found), axis=0)


def over_data_sets(measure: Atoms, row: MeasureQuery, *args: Any) -> Array | float:
    """Standard error over data sets; NaN without replicates."""
    if row.inverse_of is not None:
        below = _below(measure, row, args[0])
        return _half_width(measure, row, args[0], float(over_data_sets(measure, *below)))
    if row.square is not None:  # the delta method
        norm, (name, at) = evaluate(measure, row.name, *args), row.square
        return over_data_sets(measure, OF_MEASURE[name], *at) / (2 * norm) if norm else 0.0
    whole, found = per_probe(measure, row, *args), measure.replicates
    if found is None:
        return np.full(whole.shape[1:], math.nan)
    without = np.stack([per_probe(m, row, *args) for m in measure.without_groups])
    return jackknife.standard_error(whole, without, found.shares, measure.scatter)


def margins(measure: Atoms, row: MeasureQuery, *args: Any) -> Array:
    """(2, ...): how much less and how much more truncation may hide; NaN where unknown."""
    if row.inverse_of is not None:
        value = evaluate(measure, row.name, *args)
        low, high = _of_inverse(measure, row, args[0], level=None)
        return np.array([value - low, high - value])
    if row.thresholds is not None:
        return _of_thresholds(measure, *row.thresholds(measure, *args))
    if len(measure.history) < 2:
        return np.full((2, *np.shape(args[0] if args else 0.0)), math.nan)
    last, *before = (_in_the_mean(m, row, *args) for m in measure.history)
    change = np.max([np.abs(last - earlier) for earlier in before], axis=0)
    change = np.maximum(change, _bias(measure, row, *args))
    return np.stack([change, change])


def _in_the_mean(measure: Atoms, row: MeasureQuery, *args: Any) -> Any:
    if row.square is not None:
        return evaluate(measure, row.name, *args)
    return per_probe(measure, row, *args).mean(axis=0)


def of_query(measure: Atoms, row: MeasureQuery, *args: Any, level: float) -> Array:
    """(2, ...): the confidence interval."""
    if row.inverse_of is not None:
        return _of_inverse(measure, row, args[0], level=level)
    value = evaluate(measure, row.name, *args)
    away = np.hypot(
        np.nan_to_num(margins(measure, row, *args)), rounding.of_query(measure, row, *args)
    )
    ends = interval(value, noise(measure, row, *args), away, measure.num_probes, level)
    return np.clip(ends, *row.bounds(measure, *args))


def of_density(measure: Atoms, sigma2: float) -> DensityError:
    """Expected L1 error of the smoothed density."""
    step = math.sqrt(sigma2) / 4 if sigma2 > 0 else 1.0
    # An even grid, but only near nodes: the support may be 10^6 sigma wide.
    cells = np.unique(np.round(measure.nodes / step))[:, None] + np.arange(-24, 25)
    t = step * np.unique(cells)
    scatter = np.asarray(noise(measure, OF_MEASURE["density"], t, sigma2))
    last = [m.densities(t, sigma2).mean(axis=0) for m in measure.history[:2]]
    change = np.abs(last[0] - last[1]) if len(last) == 2 else np.full(t.shape, math.nan)
    # E |x| of a normal variable is sqrt(2 / pi) of its standard deviation.
    return DensityError(
        float(math.sqrt(2 / math.pi) * step * scatter.sum()), float(step * change.sum())
    )


# -- what the end of the recurrences hides ---------------------------------------------------


def below(rules: Sequence[BlockRule], x: float) -> Array:
    """(2,), bounds on the mass below x, mean over all probes."""
    if not math.isfinite(x):
        return np.full(2, float(x > 0))
    return np.array([np.concatenate(ends).mean() for ends in zip(*(r.bracket(x) for r in rules))])


def _of_thresholds(measure: Atoms, a: float, b: float, at_a: float, at_b: float) -> Array:
    """Of the mass in [a, b], where a share that moves across an end counts ``at_`` as much."""
    measure.inside(a, b)  # refuses an interval whose ends are the wrong way round
    if not measure.rules:
        return np.full(2, math.nan)
    # Closed: of the left end what is strictly below it is outside.
    low = _margins_below(measure, a, float(np.nextafter(a, -np.inf)), at_a)
    high = _margins_below(measure, b, b, at_b)
    # More below a is less in [a, b].
    return np.array([high[0] + low[1], high[1] + low[0]])


def _margins_below(measure: Atoms, x: float, last: float, factor: float) -> Array:
    """(2,): how much less and more than the mass up to ``last``, at or just below x."""
    if not math.isfinite(x):
        return np.zeros(2)
    # An eigenvalue this near may be on either side: rounding, or the error of a product.
    rules = measure.rules
    wrong = 0.0 if measure.arithmetic is None else measure.arithmetic.product_error
    least = NEAREST * np.abs(measure.nodes).max()
    reach = max(least, wrong, *(rule.tolerance for rule in rules))
    lower, upper = below(rules, x - reach)[0], below(rules, x + reach)[1]
    gauss = _up_to(measure.gauss, last)
    own, under, over = (_up_to(measure, t) for t in (last, x - reach, x + reach))
    return factor * np.maximum([gauss - lower, upper - gauss], [own - under, over - own]).clip(0.0)


def _up_to(measure: Atoms, x: float) -> float:
    return float(measure.masses(-np.inf, x).mean(axis=0))


# -- of a query that is the inverse of another -----------------------------------------------


def _below(measure: Atoms, row: MeasureQuery, q: float) -> tuple[MeasureQuery, float, float]:
    """The query that is inverted, at what the inverse finds."""
    assert row.inverse_of is not None
    return OF_MEASURE[row.inverse_of], -np.inf, evaluate(measure, row.name, q)


def _of_inverse(measure: Atoms, row: MeasureQuery, q: float, level: float | None) -> Array:
    """(2,): where the mass below reaches q, give or take what is not known of it.

    Without a level: what truncation alone hides.
    """
    mass, low, x = _below(measure, row, q)
    less, more = margins(measure, mass, low, x)
    if level is not None:
        value, error = evaluate(measure, mass.name, low, x), noise(measure, mass, low, x)
        ends = interval(value, error, np.array([less, more]), measure.num_probes, level)
        less, more = value - ends[0], ends[1] - value
    if math.isnan(less):
        return np.full(2, math.nan)
    # Where the mass is larger than it seems, q is reached earlier.
    nodes = [
        measure.node_at(max(q - more, 0.0), first=True),
        measure.node_at(min(q + less, 1.0), first=False),
    ]
    return measure.nodes[nodes] + np.array([-1.0, 1.0]) * measure.residuals[nodes]


def _half_width(measure: Atoms, row: MeasureQuery, q: float, error: float) -> float:
    """Half the distance of the answers at q minus and plus an error in mass (Woodruff 1952)."""
    if math.isnan(error):
        return math.nan
    low, high = (evaluate(measure, row.name, min(max(p, 0.0), 1.0)) for p in (q - error, q + error))
    return float(high - low) / 2
