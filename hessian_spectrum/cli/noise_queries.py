"""The table of queries on stored shares of gradients and overlaps of H and C. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.analyses.noise_result import Noise
from hessian_spectrum.spectral.functionals import Answer, Query
from hessian_spectrum.spectral.queries import row_of


@dataclass(frozen=True, kw_only=True)
class NoiseQuery(Query):
    """A query on a ``Noise``; ``answer`` takes it, then the arguments."""

    answer: Callable[..., Answer]


def _gradient_share(found: Noise, k: float, size: float | None) -> Answer:
    row = _row(found, size)
    return {
        "value": _known(found.mean_gradient_share(_whole(k))[row], "gradient_share"),
        "standard_error": _or_none(found.gradient_share_error(_whole(k))[row]),
        "batch_size": int(found.batch_sizes[row]),
    }


def _deviation(found: Noise, size: float | None) -> Answer:
    row = 0 if size is None else _row(found, size)
    return {
        "value": _known(found.mean_deviation()[row], "deviation"),
        "standard_error": _or_none(found.deviation_error()[row]),
        "expected": _or_none(found.expected_deviation()[row]),
        "batch_size": int(found.batch_sizes[row]),
    }


def _overlap(found: Noise, k: float) -> Answer:
    return {"value": found.subspace_overlap(_whole(k)), "random": k / found.num_parameters}


def _angles(found: Noise, k: float) -> Answer:
    return {"value": np.degrees(found.principal_angles(_whole(k))).tolist()}


def _noise_share(found: Noise, k: float) -> Answer:
    return {"value": _known(found.noise_share(_whole(k)), "noise_share")}


def _curvature_share(found: Noise, k: float) -> Answer:
    return {"value": _known(found.curvature_share(_whole(k)), "curvature_share")}


OF_NOISE = {
    row.name: row
    for row in (
        NoiseQuery(
            name="gradient_share",
            about="mean part of |g|^2 in the top K eigenvectors of H, of the largest minibatches "
            "or those of SIZE",
            arguments=("k", "size"),
            defaults=(None,),
            answer=_gradient_share,
        ),
        NoiseQuery(
            name="deviation",
            about="mean |g_B - g|^2 of the smallest minibatches or those of SIZE, and what tr C "
            "lets expect",
            arguments=("size",),
            defaults=(None,),
            answer=_deviation,
        ),
        NoiseQuery(
            name="overlap",
            about="|P_H P_C|^2 / K of the top subspaces of H and C",
            arguments=("k",),
            answer=_overlap,
        ),
        NoiseQuery(
            name="angles",
            about="principal angles of the top subspaces of H and C of K dimensions, degrees",
            arguments=("k",),
            answer=_angles,
        ),
        NoiseQuery(
            name="noise_share",
            about="sum of v^T C v over the top K eigenvectors v of H, of tr C",
            arguments=("k",),
            answer=_noise_share,
        ),
        NoiseQuery(
            name="curvature_share",
            about="sum of u^T H u over the top K eigenvectors u of C, of tr H",
            arguments=("k",),
            answer=_curvature_share,
        ),
    )
}


def ask(found: Noise, query: str, numbers: tuple[float, ...]) -> dict[str, Any]:
    """``{"query", "arguments", "of": "noise", "value", ...}``; what more depends on the query.

    gradient_share and deviation have "standard_error" (None: unknown) and "batch_size", deviation
    what is "expected", overlap that of "random" subspaces.

    Raises:
        InputError: a query that does not exist, numbers that it does not take, or an answer that
            is not known.
    """
    row = row_of(OF_NOISE, query, "a noise")
    args = row.typed(numbers)
    given = [x for x in args if x is not None]
    return {"query": query, "arguments": given, "of": "noise", **row.answer(found, *args)}


def sentence(answer: dict[str, Any]) -> str:
    """``gradient_share(10) = 0.43, standard error 0.012, minibatches of 100``."""
    arguments = ", ".join(f"{number:g}" for number in answer["arguments"])
    value = answer["value"]
    if isinstance(value, list):
        value = ", ".join(f"{one:.6g}" for one in value)
    else:
        value = f"{value:.8g}"
    words = [f"{answer['query']}({arguments}) = {value}"]
    if answer.get("standard_error"):  # 0 of all the data
        words.append(f"standard error {answer['standard_error']:.2g}")
    if answer.get("expected") is not None:
        words.append(f"expected {answer['expected']:.6g}")
    if "batch_size" in answer:
        words.append(f"minibatches of {answer['batch_size']:,}")
    if "random" in answer:
        words.append(f"{answer['random']:.2g} for random subspaces")
    return ", ".join(words)


def _row(found: Noise, size: float | None) -> int:
    """Of that batch size, or of the largest."""
    if size is None:
        return len(found.batch_sizes) - 1
    rows = np.flatnonzero(found.batch_sizes == size)
    if not len(rows):
        known = ", ".join(map(str, found.batch_sizes))
        raise InputError(f"no minibatches of {size:g} samples; expected one of {known}")
    return int(rows[0])


def _whole(k: float) -> int:
    if k != int(k):
        raise InputError(f"{k:g} eigenvectors: expected a whole number")
    return int(k)


def _known(value: float, query: str) -> float:
    if math.isnan(value):
        raise InputError(
            f"{query} is not known: the gradients were not finite, or the run had --num-products 0"
        )
    return float(value)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
