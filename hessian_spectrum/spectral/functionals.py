"""A query by name, with its error: what the command line asks stored measures and eigenpairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.spectral import outliers
from hessian_spectrum.spectral.measure import EigenPairs, SpectralMeasure

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
# Of eigenpairs; ``log_determinant`` needs a measure of the same matrix, too.
OF_PAIRS = {
    "eigenvalue": ("K",),
    "smallest": (),
    "outlier_ratio": ("K",),
    "condition_number": ("DAMPING",),
    "normalized": ("K",),
    "participation": (),
    "log_determinant": ("DAMPING",),
}

# Of the last arguments.
DEFAULTS = {"negative_fraction": (0.0,), "log_determinant": (0.0,), "basin": (None,)}


def ask(
    measure: SpectralMeasure, query: str, numbers: tuple[float, ...], sigma2: float | None = None
) -> dict[str, Any]:
    """``{"query", "arguments", "value", "standard_error", "interval", "data_error"}``.

    ``interval`` holds the ends of the 95 % confidence interval, ``data_error`` the standard error
    over data sets of this size. What is unknown is None.

    Raises:
        InputError: a query that does not exist, or numbers that it does not take.
    """
    numbers = checked(ARGUMENTS, query, numbers, "density")
    if sigma2 is not None and query != "density":
        raise InputError(f"--sigma2 with {query}: only density is smoothed; leave --sigma2 out")
    options = {"sigma2": sigma2} if query == "density" else {}
    member = getattr(measure, query)
    value = member(*numbers, **options) if callable(member) else member
    error = float(measure.standard_error(query, *numbers, **options))
    interval = measure.interval(query, *numbers, **options)
    data_error = float(measure.data_error(query, *numbers, **options))
    return {
        "query": query,
        "arguments": list(numbers),
        "value": float(value),
        "standard_error": None if math.isnan(error) else error,
        "interval": None if math.isnan(error) else interval.tolist(),
        "data_error": None if math.isnan(data_error) else data_error,
    }


def ask_pairs(
    pairs: EigenPairs,
    query: str,
    numbers: tuple[float, ...],
    sizes: Mapping[str, int] | None = None,
    measure: SpectralMeasure | None = None,
) -> dict[str, Any]:
    """``{"query", "arguments", "value", "interval", ...}``; the residuals give the interval.

    Args:
        query: eigenvalue K (the K-th largest), smallest (with its "sign"), outlier_ratio K,
            condition_number DAMPING, normalized K (all values, and their "residuals"),
            participation (by layer, of all vectors together and of each, the largest first), or
            log_determinant DAMPING.
        sizes: entries of each parameter, for participation.
        measure: of the same matrix, for log_determinant.

    Raises:
        InputError: a query that does not exist, numbers that it does not take, or something that
            it needs is missing.
    """
    numbers = checked(OF_PAIRS, query, numbers, "eigenpairs")
    answer: dict[str, Any] = {"query": query, "arguments": list(numbers)}
    if query == "log_determinant":
        if measure is None:
            raise InputError("log_determinant of eigenpairs needs a density beside them: --density")
        return ask(outliers.refined(measure, pairs), query, numbers)
    if query == "normalized":
        found = outliers.normalized(pairs, _whole(*numbers))
        return answer | {"value": found.values.tolist(), "residuals": found.residuals.tolist()}
    if query == "participation":
        return answer | {"value": _participation(pairs, sizes)}
    if query == "smallest":
        *within, sign = outliers.smallest(pairs)
        return answer | {"value": within[0], "interval": within[1:], "sign": sign}
    if query == "condition_number":
        found = outliers.condition_number(pairs, *numbers)
    else:
        found = getattr(outliers, query)(pairs, _whole(*numbers))
    return answer | {"value": found.value, "interval": [found.low, found.high]}


def checked(
    known: dict[str, tuple], query: str, numbers: tuple[float, ...], kind: str
) -> tuple[float, ...]:
    """The query's numbers, with its defaults."""
    if query not in known:
        raise InputError(f"no query {query!r} of {kind}; expected one of {', '.join(known)}")
    names, defaults = known[query], DEFAULTS.get(query, ())
    least = len(names) - len(defaults)
    if not least <= len(numbers) <= len(names):
        raise InputError(
            f"{query} takes {len(names)} numbers ({' '.join(names) or 'none'}), got {len(numbers)}"
        )
    return (*numbers, *defaults[len(numbers) - least :])


def _participation(pairs: EigenPairs, sizes: Mapping[str, int] | None) -> dict[str, Any]:
    if sizes is None or pairs.vectors is None:
        missing = "eigenvectors" if pairs.vectors is None else "sizes of the parameters"
        raise InputError(f"participation: there are no {missing} beside these eigenvalues")
    layers = outliers.by_layer(sizes)
    parts = outliers.participation(pairs.vectors, layers)[::-1]
    return {
        layer: {"together": float(column.mean()), "each": column.tolist()}
        for layer, column in zip(layers, parts.T)
    }


def _whole(k: float) -> int:
    if k != int(k):
        raise InputError(f"{k:g}: expected the number of an eigenvalue, such as 10")
    return int(k)


def sentence(answer: dict[str, Any]) -> str:
    """``mass(0.1, inf) = 0.00132, 95 % interval 0.0009 to 0.0017``."""
    arguments = ", ".join(f"{number:g}" for number in answer["arguments"])
    if isinstance(answer["value"], dict):
        return _table(answer["value"])
    if isinstance(answer["value"], list):
        values = ", ".join(f"{value:.6g}" for value in reversed(answer["value"]))
        return f"{answer['query']}({arguments}) = {values}"
    text = f"{answer['query']}({arguments}) = {answer['value']:.8g}"
    if "standard_error" not in answer:
        low, high = answer["interval"]
        sign = f"; {answer['sign']}" if "sign" in answer else ""
        return f"{text}, {low:.8g} to {high:.8g} by the residuals{sign}"
    error = answer["standard_error"]
    if error is None:
        text += " (one probe: error unknown)"
    else:
        low, high = answer["interval"]
        text += f", 95 % interval {low:.6g} to {high:.6g} (standard error {error:.2g})"
    if answer["data_error"] is not None:
        text += f"; over data sets of this size it varies by {answer['data_error']:.2g}"
    return text


def _table(layers: dict[str, dict[str, Any]]) -> str:
    """One line a layer: all vectors together, then each."""
    width = max(len("layer"), *map(len, layers))
    lines = [f"{'layer':<{width}}  together  each, the largest eigenvalue first"]
    for name, part in layers.items():
        each = " ".join(f"{value:6.1%}" for value in np.asarray(part["each"]))
        lines.append(f"{name:<{width}}  {part['together']:8.1%}  {each}")
    return "\n".join(lines)
