"""A query by name, with its standard error: what the command line asks a stored measure."""

from __future__ import annotations

import math
from typing import Any

from hessian_spectrum.errors import InputError
from hessian_spectrum.measure import SpectralMeasure

# What each query takes, as the user types it.
ARGUMENTS = {
    "density": ("T",),
    "mass": ("A", "B"),
    "count": ("A", "B"),
    "quantile": ("Q",),
    "moment": ("P",),
    "energy": ("A", "B"),
    "trace": (),
    "frobenius_norm": (),
    "effective_dimension": ("DAMPING",),
    "negative_fraction": ("THRESHOLD",),
    "log_determinant": ("DAMPING",),
}


def ask(
    measure: SpectralMeasure, query: str, numbers: tuple[float, ...], sigma2: float | None = None
) -> dict[str, Any]:
    """``{"query", "arguments", "value", "standard_error", "interval"}``; what is unknown is None.

    ``interval`` holds the ends of the 95 % confidence interval.

    Raises:
        InputError: a query that does not exist, or numbers that it does not take.
    """
    if query not in ARGUMENTS:
        raise InputError(f"no query {query!r}; expected one of {', '.join(ARGUMENTS)}")
    names = ARGUMENTS[query]
    if len(numbers) != len(names):
        raise InputError(
            f"{query} takes {len(names)} numbers ({' '.join(names) or 'none'}), got {len(numbers)}"
        )
    if sigma2 is not None and query != "density":
        raise InputError(f"--sigma2 with {query}: only density is smoothed; leave --sigma2 out")
    options = {"sigma2": sigma2} if query == "density" else {}
    member = getattr(measure, query)
    value = member(*numbers, **options) if callable(member) else member
    error = float(measure.standard_error(query, *numbers, **options))
    interval = measure.interval(query, *numbers, **options)
    return {
        "query": query,
        "arguments": list(numbers),
        "value": float(value),
        "standard_error": None if math.isnan(error) else error,
        "interval": None if math.isnan(error) else interval.tolist(),
    }


def sentence(answer: dict[str, Any]) -> str:
    """``mass(0.1, inf) = 0.00132, 95 % interval 0.0009 to 0.0017``."""
    arguments = ", ".join(f"{number:g}" for number in answer["arguments"])
    error = answer["standard_error"]
    text = f"{answer['query']}({arguments}) = {answer['value']:.8g}"
    if error is None:
        return text + " (one probe: error unknown)"
    low, high = answer["interval"]
    return f"{text}, 95 % interval {low:.6g} to {high:.6g} (standard error {error:.2g})"
