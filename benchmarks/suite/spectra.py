"""Known spectra: functions n -> n sorted eigenvalues, and an operator with given eigenvalues."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import hessian_spectrum as hs
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.spectral.quadrature import Array

OUTLIERS = np.array([-0.6, 0.3, 0.5, 0.8, 1.0, 1.7, 2.0, 3.0])


class Diagonal(hs.SymmetricOperator):
    """diag(values): for Gaussian probes equivalent to any matrix with these eigenvalues."""

    def __init__(self, values: Array, dtype: torch.dtype = torch.float64):
        self.values = torch.as_tensor(values).to(dtype)
        self.layout, self.dtype = Layout.of_size(len(self.values)), dtype

    def products(self, vectors: Tensor) -> Tensor:
        return vectors * self.values


def outliers(n: int) -> Array:
    """A narrow bulk at zero and eight eigenvalues outside it."""
    return np.r_[0.005 * _rng().standard_normal(n - 8), OUTLIERS]


def gap(n: int) -> Array:
    """Two even bands, as wide as a fifth of the gap between them."""
    half = n // 2
    return np.r_[np.linspace(-0.1, 0.1, half), np.linspace(1, 1.2, n - half)]


def clusters(n: int) -> Array:
    """Exact zeros, and a tenth of the eigenvalues within 1e-4 of one."""
    few = n // 10
    return np.r_[np.zeros(n - few), 1 + 1e-4 * _rng().standard_normal(few)]


def multiplicities(n: int) -> Array:
    """Zero n - 9 times, 0.5 three times and 1 six times."""
    return np.r_[np.zeros(n - 9), [0.5] * 3, [1.0] * 6]


def low_rank(n: int) -> Array:
    """Zero n - 5 times, and 1, 2, 3, 4, 5."""
    return np.r_[np.zeros(n - 5), 1.0, 2.0, 3.0, 4.0, 5.0]


def power_law(n: int) -> Array:
    """k^-1.2: no gap between the few large and the many small eigenvalues."""
    return np.arange(1, n + 1) ** -1.2


def no_outliers(n: int) -> Array:
    """Standard normal numbers: a bulk without outliers."""
    return _rng().standard_normal(n)


def marchenko_pastur(n: int) -> Array:
    """Eigenvalues of the sample covariance of 2 n standard normal samples."""
    return np.linalg.eigvalsh(np.cov(_rng().standard_normal((n, 2 * n))))


def copies(n: int) -> Array:
    """A bulk, and 13 copies of one eigenvalue far outside it: about as many as there are probes."""
    return np.r_[_rng().uniform(-0.1, 0.1, n - 13), np.full(13, 5.0)]


def wigner(n: int) -> Array:
    """Eigenvalues of a symmetric Gaussian matrix: a semicircle."""
    a = _rng().standard_normal((n, n))
    return np.linalg.eigvalsh((a + a.T) / np.sqrt(8 * n))


def heavy_tails(n: int) -> Array:
    """Student's t with 1.5 degrees of freedom: a few eigenvalues have most of every moment."""
    return _rng().standard_t(1.5, n)


def trained(n: int) -> Array:
    """Like a trained network's: half exact zeros, a bulk on both sides, a tail, ten outliers."""
    zeros, tail = n // 2, n // 30
    bulk = 1e-3 * _rng().standard_normal(n - zeros - tail - 10)
    return np.r_[
        np.zeros(zeros), bulk, 0.3 * np.arange(2, tail + 2) ** -1.0, np.linspace(0.4, 2, 10)
    ]


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _sorted(values: Callable[[int], Array]) -> Callable[[int], Array]:
    return lambda n: np.sort(values(n))


SPECTRA: dict[str, Callable[[int], Array]] = {
    "outliers": _sorted(outliers),
    "a gap": _sorted(gap),
    "clusters": _sorted(clusters),
    "multiplicities": _sorted(multiplicities),
    "all zero": np.zeros,
    "low rank": _sorted(low_rank),
    "power law": _sorted(power_law),
    "no outliers": _sorted(no_outliers),
    "Marchenko-Pastur": _sorted(marchenko_pastur),
    "copies": _sorted(copies),
    "Wigner": _sorted(wigner),
    "heavy tails": _sorted(heavy_tails),
    "trained": _sorted(trained),
}
