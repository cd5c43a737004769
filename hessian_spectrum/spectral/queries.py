"""A query by name, with its error: what the command line asks of stored results. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.spectral import functionals, outliers
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.functionals import Answer, MeasureQuery, Query
from hessian_spectrum.spectral.measure import SpectralMeasure

LEFT_OUT = (
    "products in float32 were not compared with float64: of their error the interval has what "
    "rounding units and asymmetry show"
)

Row = TypeVar("Row", bound=Query)


def ask(
    measure: SpectralMeasure, query: str, numbers: tuple[float, ...], sigma2: float | None = None
) -> Answer:
    """``{"query", "arguments", "value", "standard_error", "interval", "data_error"}``.

    ``interval`` holds the ends of the 95 % confidence interval, ``data_error`` the standard error
    over data sets of this size. What is unknown is None. Where the error of products in float32 is
    not in the interval but for what they show of it themselves, "left_out" says so.

    Raises:
        InputError: a query that does not exist, or numbers that it does not take.
    """
    row = row_of(functionals.OF_MEASURE, query, "density")
    args = row.typed(numbers)
    if sigma2 is not None and "sigma2" not in row.flags:
        raise InputError(f"--sigma2 with {query}: only density is smoothed; leave --sigma2 out")
    options = {"sigma2": sigma2} if "sigma2" in row.flags else {}
    value = functionals.evaluate(measure, query, *args, *options.values())
    error = float(measure.standard_error(query, *args, **options))
    ends = measure.interval(query, *args, level=0.95, **options)
    data_error = float(measure.data_error(query, *args, **options))
    known = measure.arithmetic
    left_out = {} if known is None or known.compared_with_float64 else {"left_out": LEFT_OUT}
    return {
        "query": query,
        "arguments": list(args),
        "value": float(value),
        "standard_error": None if math.isnan(error) else error,
        "interval": None if math.isnan(error) else ends.tolist(),
        "data_error": None if math.isnan(data_error) else data_error,
        **left_out,
    }


def ask_pairs(
    pairs: EigenPairs,
    query: str,
    numbers: tuple[float, ...],
    sizes: Mapping[str, int] | None = None,
    measure: SpectralMeasure | None = None,
) -> Answer:
    """``{"query", "arguments", "value", "interval", ...}``; the residuals give the interval.

    Args:
        query: a name in ``functionals.OF_PAIRS``.
        sizes: entries of each parameter, for participation.
        measure: of the same matrix, for log_determinant.

    Raises:
        InputError: a query that does not exist, numbers that it does not take, or something that
            it needs is missing.
    """
    row = row_of(functionals.OF_PAIRS, query, "eigenpairs")
    args = row.typed(numbers)
    if isinstance(row, MeasureQuery):
        if measure is None:
            raise InputError(f"{query} of eigenpairs needs a density beside them: --density")
        return ask(outliers.refined(measure, pairs), query, args)
    return {"query": query, "arguments": list(args), **row.answer(pairs, sizes, *args)}


def row_of(table: Mapping[str, Row], query: str, kind: str) -> Row:
    """The query's row.

    Raises:
        InputError: there is no query of that name for that kind of result.
    """
    if query not in table:
        raise InputError(f"no query {query!r} of {kind}; expected one of {', '.join(table)}")
    return table[query]


def sentence(answer: Answer) -> str:
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
    if "left_out" in answer:
        text += f"; {answer['left_out']}"
    return text


def _table(layers: dict[str, dict[str, Any]]) -> str:
    """One line a layer: all vectors together, then each."""
    width = max(len("layer"), *map(len, layers))
    lines = [f"{'layer':<{width}}  together  each, the largest eigenvalue first"]
    for name, part in layers.items():
        each = " ".join(f"{value:6.1%}" for value in np.asarray(part["each"]))
        lines.append(f"{name:<{width}}  {part['together']:8.1%}  {each}")
    return "\n".join(lines)
