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

BACK = 5  # steps, at most
ROUNDING = 1e-12  # of an answer: no interval is narrower


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
