"""Eigenpairs and what is known of their error. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum.spectral.quadrature import Array


class Rows(Protocol):
    """Eigenvectors (k, n): an array, or rows on disk that are read when they are indexed."""

    @property
    def shape(self) -> Any: ...

    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True)
class EigenPairs:
    """Approximate eigenpairs of a symmetric H, with their residuals.

    For each pair there is an eigenvalue of H within ``residuals`` of ``values``.
    """

    values: Array  # (k,), ascending
    residuals: Array  # (k,), |H v - lambda v|, absolute, in units of the eigenvalues
    converged: NDArray[np.bool_]  # (k,), residual <= tol * |lambda|max
    vectors: Rows | None = None  # (k, n), rows of unit norm, possibly on disk; None if not kept
    num_lower: int | None = None  # how many are of the lower end of the spectrum; None if unknown

    def __len__(self) -> int:
        return len(self.values)
