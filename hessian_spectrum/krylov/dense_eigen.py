"""Eigenvalues, singular values and least squares of small matrices; NumPy and SciPy only.

LAPACK's divide and conquer (dsyevd, dgesdd, dgelsd), which NumPy calls, is the fastest, but on some
processors it reports that it has not converged for finite matrices whose entries differ by thirty
orders of magnitude. Every decomposition of the package that iterates is one of these functions,
which then try LAPACK's other methods.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.linalg import LinAlgError
from numpy.typing import NDArray

Array = NDArray[np.float64]

# QR iteration, relatively robust representations, bisection. Vectors of the first are orthogonal to
# rounding; those of the second were to 2e-14.
OTHER_DRIVERS = ("ev", "evr", "evx")
# Entries below this part of the largest move no eigenvalue by more than its rounding. They are what
# divide and conquer fails on.
NEGLIGIBLE = float(np.finfo(np.float64).eps) ** 1.5


def eigh(a: Array) -> tuple[Array, Array]:
    """Eigenvalues (k,), ascending, and eigenvectors, columns (k, k), of a symmetric matrix (k, k).

    Raises:
        FloatingPointError: an entry is not finite.
    """
    require_finite(a)
    try:
        values, vectors = np.linalg.eigh(a)
        if np.isfinite(values).all() and np.isfinite(vectors).all():
            return values, vectors
    except LinAlgError:
        pass
    return _eigh_otherwise(a)


def _eigh_otherwise(a: Array) -> tuple[Array, Array]:
    exponent = int(np.frexp(np.abs(a).max(initial=0.0))[1])  # powers of two scale exactly
    unit = np.ldexp(a, -exponent)
    unit = np.where(np.abs(unit) < NEGLIGIBLE, 0.0, unit)
    for driver in OTHER_DRIVERS:
        try:
            values, vectors = scipy.linalg.eigh(unit, driver=driver, check_finite=False)
        except LinAlgError:
            continue
        if np.isfinite(values).all() and np.isfinite(vectors).all():
            return np.ldexp(values, exponent), vectors
    raise LinAlgError(f"no method of LAPACK diagonalizes a finite matrix of order {len(a)}")


def svd(a: Array, *, full: bool = True) -> tuple[Array, Array, Array]:
    """U, lengths and V^T with A = U diag(lengths) V^T; square U and V^T, or with ``full`` not.

    Raises:
        FloatingPointError: an entry is not finite.
    """
    require_finite(a)
    try:
        u, lengths, vh = np.linalg.svd(a, full_matrices=full)
    except LinAlgError:
        u, lengths, vh = scipy.linalg.svd(a, full_matrices=full, lapack_driver="gesvd")
    return u, lengths, vh


def least_squares(a: Array, b: Array) -> Array:
    """The x of least |A x - b|, and of least |x| among these; for each column of b.

    Raises:
        FloatingPointError: an entry is not finite.
    """
    require_finite(a)
    require_finite(b)
    try:
        x, *_ = np.linalg.lstsq(a, b, rcond=None)
    except LinAlgError:
        rank = float(np.finfo(np.float64).eps) * max(a.shape)
        x, *_ = scipy.linalg.lstsq(a, b, cond=rank, lapack_driver="gelsy")
    return np.asarray(x)


def require_finite(a: Array) -> None:
    if not np.isfinite(a).all():
        raise FloatingPointError(
            f"a small matrix, {a.shape[0]} x {a.shape[-1]}, holds a NaN or an infinity"
        )
