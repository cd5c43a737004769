"""Eigenpairs and what is known of their error. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum._core.exports import Exported
from hessian_spectrum._core.stored_fields import stored, stored_attribute, stored_rows
from hessian_spectrum.spectral.quadrature import Array


class Rows(Protocol):
    """Eigenvectors (k, n): an array, or rows on disk that are read when they are indexed."""

    @property
    def shape(self) -> Any: ...

    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True)
class EigenPairs(Exported):
    """Approximate eigenpairs of a symmetric H, with their residuals.

    For each pair there is an eigenvalue of H within ``residuals`` of ``values``.
    """

    # (k,), ascending
    values: Array = field(metadata=stored("eigenvalues, ascending", ("eigenpair",), "eigenvalue"))
    # (k,), |H v - lambda v|, absolute, in units of the eigenvalues
    residuals: Array = field(metadata=stored("|H v - lambda v|", ("eigenpair",), "eigenvalue"))
    # (k,), residual <= tol * |lambda|max, and no eigenvalue farther out may be missing
    converged: NDArray[np.bool_] = field(
        metadata=stored("residual within the tolerance", ("eigenpair",))
    )
    # (k, n), rows of unit norm, possibly on disk; None if not kept
    vectors: Rows | None = field(
        default=None,
        metadata=stored_rows("eigenvectors, rows of unit norm", ("eigenpair", "parameter"), "1"),
    )
    # how many are of the lower end of the spectrum; None if unknown
    num_lower: int | None = field(
        default=None, metadata=stored_attribute("number of pairs of the lower end", 0)
    )

    def __len__(self) -> int:
        return len(self.values)
