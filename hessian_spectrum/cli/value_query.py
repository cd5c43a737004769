"""A row of the tables of queries on values, and what the tables share. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Array
from hessian_spectrum.spectral.functionals import Answer, Query


@dataclass(frozen=True, kw_only=True)
class ValueQuery(Query):
    """A query on values, such as those of a curve: what answers, and what is told of that."""

    answer: Callable[..., Answer]  # of the result, the numbers, and name=, which of its values


def best(values: Array, name: str) -> int:
    """The index of the smallest value that is a number."""
    if np.isnan(values).all():
        raise InputError(f"{name}: no value is a number")
    return int(np.nanargmin(values))
