"""How far an answer of a spectral measure may be from the truth. NumPy and SciPy only.

Two errors are told apart. Noise: the probes are random, and differ. Truncation: the recurrences
end after m steps, and all probes share what they did not resolve; their scatter does not show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from hessian_spectrum.errors import InputError
from hessian_spectrum.quadrature import Array, BlockRule

if TYPE_CHECKING:
    from hessian_spectrum.measure import SpectralMeasure

# What the last step has changed is more than what is missing after it, where steps still help;
# what may lie at a threshold at most, is more than what does. Half of each, by experiment:
# benchmarks/coverage.py.
TYPICAL = 0.5


def standard_error(per_probe: Array) -> Array:
    """Of the mean over probes, the first axis; NaN with one."""
    if len(per_probe) < 2:
        return np.full(per_probe.shape[1:], np.nan)
    return per_probe.std(axis=0, ddof=1) / math.sqrt(len(per_probe))


def interval(value: Array, noise: Array, truncation: Array, num_probes: int, level: float) -> Array:
    """(2, ...): value -+ Student's quantile times noise, and truncation, in quadrature.

    NaN where the noise is unknown; an unknown truncation counts as none.
    """
    if not 0 < level < 1:
        raise InputError(f"level={level}: expected a probability, such as 0.95")
    factor = stdtrit(num_probes - 1, (1 + level) / 2) if num_probes > 1 else math.nan
    half = np.hypot(factor * noise, TYPICAL * np.nan_to_num(truncation))
    return np.stack([value - half, value + half])


def shorter(measure: SpectralMeasure) -> tuple[SpectralMeasure, SpectralMeasure] | None:
    """Gauss quadrature from all steps, and from all but the last; None where there was one."""
    before = [rule.shorter for rule in measure.rules]
    if not before or None in before:
        return None
    of_rules = type(measure).of_rules
    return of_rules(measure.rules, measure.n), of_rules(before, measure.n)


def largest_mass(rules: Sequence[BlockRule], x: float) -> float:
    """Mean over all probes of the most that their measures can have at x."""
    if not math.isfinite(x):
        return 0.0
    return float(np.concatenate([rule.largest_mass(x) for rule in rules]).mean())
