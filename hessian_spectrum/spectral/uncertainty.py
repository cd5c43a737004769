"""How far an answer of a spectral measure may be from the truth. NumPy and SciPy only.

Three errors are told apart. Noise: the probes are random, and differ. Truncation: the recurrences
end after m steps, and all probes share what they did not resolve; their scatter does not show it.
And the data are a sample: other data would have another spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import stdtrit

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.spectral import jackknife
from hessian_spectrum.spectral.quadrature import NEAREST, Array, BlockRule

if TYPE_CHECKING:
    from hessian_spectrum.spectral.measure import SpectralMeasure

BACK = 5  # steps, at most
ROUNDING = 1e-12  # of an answer: no interval is narrower


class DensityError(NamedTuple):
    """Expected L1 error of a density, by cause."""

    noise: float  # of the random probes; NaN with one
    truncation: float  # what the last step has changed; NaN where it cannot be known

    @property
    def total(self) -> float:
        """Both in quadrature, of the truncation a half: where steps still help, less is left."""
        return math.hypot(self.noise, 0.5 * self.truncation)


# -- of numbers ------------------------------------------------------------------------------


def standard_error(per_probe: Array, scatter: float = 1.0) -> Array:
    """Of the mean over probes, the first axis; NaN with one."""
    if len(per_probe) < 2:
        return np.full(per_probe.shape[1:], np.nan)
    return scatter * per_probe.std(axis=0, ddof=1) / math.sqrt(len(per_probe))


def interval(value: Array, noise: Array, margins: Array, num_probes: int, level: float) -> Array:
    """(2, ...): ``value`` minus and plus Student's quantile times ``noise``, and ``margins``, (2,
    ...), in quadrature.

    NaN where the noise is unknown; an unknown margin counts as none.
    """
    if not 0 < level < 1:
        raise InputError(f"level={level}: expected a probability, such as 0.95")
    factor = stdtrit(num_probes - 1, (1 + level) / 2) if num_probes > 1 else math.nan
    low, high = np.hypot(factor * noise, np.nan_to_num(margins)) + ROUNDING * np.abs(value)
    return np.stack([value - low, value + high])


# -- of a measure's queries, whose arguments were checked ------------------------------------


def noise(measure: SpectralMeasure, query: str, *args) -> Array:
    """Standard error over the probes."""
    if query == "quantile":
        error = noise(measure, "mass", -np.inf, measure.quantile(*args))
        return _around(measure, *args, error)
    return standard_error(measure.answers(query, *args), measure.scatter)


def over_data_sets(measure: SpectralMeasure, query: str, *args) -> Array:
    """Standard error over data sets; NaN without replicates."""
    if query == "quantile":
        error = over_data_sets(measure, "mass", -np.inf, measure.quantile(*args))
        return _around(measure, *args, error)
    if query == "frobenius_norm":  # by the delta method, from its square
        norm = measure.frobenius_norm
        return over_data_sets(measure, "energy", -np.inf, np.inf) / (2 * norm) if norm else 0.0
    args = _with_defaults(measure, query, args)
    whole, found = measure.answers(query, *args), measure.replicates
    if found is None:
        return np.full(whole.shape[1:], math.nan)
    without = np.stack([m.answers(query, *args) for m in measure.without_groups])
    return jackknife.standard_error(whole, without, found.shares, measure.scatter)


def margins(measure: SpectralMeasure, query: str, *args) -> Array:
    """(2, ...): how much less and how much more truncation may hide; NaN where unknown."""
    if query == "quantile":
        low, high = _of_quantile(measure, *args, level=None)
        return np.array([measure.quantile(*args) - low, high - measure.quantile(*args)])
    if query in _THRESHOLDS:
        return _of_thresholds(measure, *_THRESHOLDS[query](measure, *args))
    args = _with_defaults(measure, query, args)
    if len(measure.history) < 2:
        return np.full((2, *np.shape(args[0])) if query == "density" else 2, math.nan)
    last, *before = (
        m.frobenius_norm if query == "frobenius_norm" else m.answers(query, *args).mean(axis=0)
        for m in measure.history
    )
    change = np.max([np.abs(last - earlier) for earlier in before], axis=0)
    return np.stack([change, change])


def of_query(measure: SpectralMeasure, query: str, *args, level: float) -> Array:
    """(2, ...): the confidence interval."""
    if query == "quantile":
        return _of_quantile(measure, *args, level=level)
    value = getattr(measure, query)
    value = value(*args) if callable(value) else value
    known = noise(measure, query, *args), margins(measure, query, *args)
    ends = interval(value, *known, measure.num_probes, level)
    if query == "moment" and args[0] % 2:
        return ends
    most = {"mass": 1.0, "negative_fraction": 1.0, "count": measure.n}
    most |= {"effective_dimension": measure.n}
    signed = query in ("trace", "log_determinant")
    return ends if signed else np.clip(ends, 0.0, most.get(query, np.inf))


def of_density(measure: SpectralMeasure, sigma2: float) -> DensityError:
    """Expected L1 error of the smoothed density."""
    step = math.sqrt(sigma2) / 4 if sigma2 > 0 else 1.0
    # An even grid, but only where there is something: the support may be 10^6 sigma wide.
    cells = np.unique(np.round(measure.nodes / step))[:, None] + np.arange(-24, 25)
    t = step * np.unique(cells)
    scatter = noise(measure, "density", t, sigma2)
    last = [m.density(t, sigma2) for m in measure.history[:2]]
    change = np.abs(last[0] - last[1]) if len(last) == 2 else np.full(t.shape, math.nan)
    # E |x| of a normal variable is sqrt(2 / pi) of its standard deviation.
    return DensityError(
        float(math.sqrt(2 / math.pi) * step * scatter.sum()), float(step * change.sum())
    )


# -- what the recurrences' end hides ---------------------------------------------------------


def earlier(measure: SpectralMeasure) -> list[SpectralMeasure]:
    """Gauss quadrature after each of the last third of the steps but the last, latest first.

    What a single step changes may vanish by chance; what five change hardly does.
    """
    rules, found = list(measure.rules), []
    for _ in range(min(math.ceil(max(rule.num_steps for rule in rules) / 3), BACK)):
        rules = [rule.shorter for rule in rules]
        if None in rules:
            break
        found.append(type(measure).of_rules(rules, measure.n))
    return found


def below(rules: Sequence[BlockRule], x: float) -> Array:
    """(2,), bounds on the mass below x, mean over all probes."""
    if not math.isfinite(x):
        return np.full(2, float(x > 0))
    return np.array([np.concatenate(ends).mean() for ends in zip(*(r.bracket(x) for r in rules))])


def _of_thresholds(measure: SpectralMeasure, a: float, b: float, at_a: float, at_b: float) -> Array:
    """Of the mass in [a, b], where a share that moves across an end counts ``at_`` as much."""
    measure.inside(a, b)
    if not measure.rules:
        return np.full(2, math.nan)
    # Closed: of the left end what is strictly below it is outside.
    low = _margins_below(measure, a, np.nextafter(a, -np.inf), at_a)
    high = _margins_below(measure, b, b, at_b)
    # More below a is less in [a, b].
    return np.array([high[0] + low[1], high[1] + low[0]])


def _margins_below(measure: SpectralMeasure, x: float, last: float, factor: float) -> Array:
    """(2,): how much less and more than the mass up to ``last``, at or just below x."""
    if not math.isfinite(x):
        return np.zeros(2)
    # An eigenvalue this near may be on either side: rounding, or the error of a product.
    rules = measure.rules
    reach = max(NEAREST * np.abs(measure.nodes).max(), *(rule.tolerance for rule in rules))
    least, most = below(rules, x - reach)[0], below(rules, x + reach)[1]
    usual = measure.usual.mass(-np.inf, last)
    own, under, over = (measure.mass(-np.inf, t) for t in (last, x - reach, x + reach))
    return factor * np.maximum([usual - least, most - usual], [own - under, over - own]).clip(0.0)


def _of_quantile(measure: SpectralMeasure, q: float, level: float | None) -> Array:
    """Where the mass below reaches q, give or take what is not known of it.

    Without a level: what truncation alone hides.
    """
    x = measure.quantile(q)
    less, more = margins(measure, "mass", -np.inf, x)
    if level is not None:
        value, error = measure.mass(-np.inf, x), noise(measure, "mass", -np.inf, x)
        ends = interval(value, error, np.array([less, more]), measure.num_probes, level)
        less, more = value - ends[0], ends[1] - value
    if math.isnan(less):
        return np.full(2, math.nan)
    # Where the mass is larger than it seems, q is reached earlier.
    ends = [
        measure.node_at(max(q - more, 0.0), first=True),
        measure.node_at(min(q + less, 1.0), first=False),
    ]
    return measure.nodes[ends] + np.array([-1.0, 1.0]) * measure.residuals[ends]


def _around(measure: SpectralMeasure, q: float, error: float) -> float:
    """Half the width of the quantiles at q minus and plus an error in mass."""
    if math.isnan(error):
        return math.nan
    low, high = (measure.quantile(min(max(p, 0.0), 1.0)) for p in (q - error, q + error))
    return (high - low) / 2


def _with_defaults(measure: SpectralMeasure, query: str, args: tuple) -> tuple:
    """The density's smoothing depends on the support, which is not the same after fewer steps."""
    if query != "density":
        return args
    return args[0], measure.default_sigma2 if args[1] is None else args[1]


# The ends of an interval, and what a share of the eigenvalues that moves across each changes.
_THRESHOLDS: dict[str, Callable[..., tuple[float, float, float, float]]] = {
    "mass": lambda measure, a, b: (a, b, 1.0, 1.0),
    "count": lambda measure, a, b: (a, b, measure.n, measure.n),
    "energy": lambda measure, a, b: (a, b, measure.n * a * a, measure.n * b * b),
    "negative_fraction": lambda measure, threshold=0.0: (
        -np.inf,
        np.nextafter(-threshold, -np.inf),
        1.0,
        1.0,
    ),
}
