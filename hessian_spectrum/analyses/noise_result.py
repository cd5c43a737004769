"""Gradients, their covariance C, and the Hessian H: the result. NumPy only, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.exports import Exported
from hessian_spectrum._core.stored_fields import stored, stored_attribute, stored_flag

Array = NDArray[np.float64]


def variance_factor(num_samples: int, size: int) -> float:
    """The f of cov(g_B) = f C for minibatches of B = ``size`` of N samples, without replacement.

    ``f = (1/B) (N - B) / (N - 1)`` exactly, C the covariance with 1/N. "A walk with SGD" (Xing et
    al. 2018), eq. 3, has ``1/B - 1/N = (N - B) / (B N)``: that is exact where C is the unbiased
    estimate, with 1/(N - 1), and off by the factor (N - 1) / N for C with 1/N.

    Raises:
        InputError: there is no such minibatch.
    """
    if not 1 <= size <= num_samples:
        raise InputError(f"minibatches of {size} samples: expected 1 to {num_samples}")
    return 0.0 if size == num_samples else (num_samples - size) / (size * (num_samples - 1))


@dataclass(frozen=True)
class Noise(Exported):
    """Where gradients g and their covariance C lie, seen from the top eigenvectors of H.

    v_i are the top eigenvectors of H and u_j those of C, in ascending order of their eigenvalues;
    the span of the k last ones is the top subspace of k dimensions. A gradient is that of the mean
    loss over a random minibatch, weight decay included. Gur-Ari, Roberts & Dyer (2018, "Gradient
    descent happens in a tiny subspace") and Ghorbani, Krishnan & Xiao (2019, section 4.3) look at
    the first share, Jastrzebski et al. (2018) and Papyan (2019) at H and C.
    """

    # (s,), samples in a minibatch, ascending
    batch_sizes: NDArray[np.int64] = field(
        metadata=stored("samples in a minibatch", ("batch_size",), "1", coordinate=True)
    )
    # (s, b); NaN: there is no such minibatch
    gradient_norm: Array = field(
        metadata=stored("|g|", ("batch_size", "minibatch"), "loss per unit of the parameters")
    )
    # (s, b)
    deviation: Array = field(
        metadata=stored(
            "|g - gradient of all the data|^2", ("batch_size", "minibatch"), "as eigenvalues of C"
        )
    )
    # (s, b, k)
    cosine: Array = field(
        metadata=stored("<g, v> / |g|", ("batch_size", "minibatch", "eigenpair"), "1")
    )
    # (k,), ascending
    eigenvalues: Array = field(
        metadata=stored("of the v, of H", ("eigenpair",), "eigenvalue", coordinate=True)
    )
    # (k,)
    residuals: Array = field(metadata=stored("|H v - lambda v|", ("eigenpair",), "eigenvalue"))
    # (k,), ascending
    noise_eigenvalues: Array = field(
        metadata=stored(
            "of the u, of C", ("noise_eigenpair",), "as eigenvalues of C", coordinate=True
        )
    )
    # (k,)
    noise_residuals: Array = field(
        metadata=stored("|C u - mu u|", ("noise_eigenpair",), "as eigenvalues of C")
    )
    # (k, k)
    overlap: Array = field(metadata=stored("<v, u>", ("eigenpair", "noise_eigenpair"), "1"))
    # (k,)
    noise_along: Array = field(metadata=stored("v^T C v", ("eigenpair",), "as eigenvalues of C"))
    # (k,)
    curvature_along: Array = field(metadata=stored("u^T H u", ("noise_eigenpair",), "eigenvalue"))
    # (d,), ascending, of the subspaces whose angles are known
    dimensions: NDArray[np.int64] = field(
        metadata=stored("dimension of the top subspaces", ("dimension",), "1", coordinate=True)
    )
    # (d, k), descending, NaN beyond the dimension
    angles: Array = field(
        metadata=stored(
            "principal angles between the top subspaces of H and C", ("dimension", "angle"), "rad"
        )
    )
    trace: float = field(metadata=stored("tr H; NaN: unknown"))
    trace_error: float = field(metadata=stored("its standard error"))
    noise_trace: float = field(metadata=stored("tr C; NaN: unknown"))
    noise_trace_error: float = field(metadata=stored("its standard error"))
    centered: bool = field(metadata=stored_flag("C is centred: g g^T is subtracted"))
    num_parameters: int = field(metadata=stored_attribute("entries of a gradient", 1))
    num_samples: int = field(metadata=stored_attribute("samples in the data", 1))
    seed: int = field(metadata=stored_attribute("seed of the minibatches", 0))

    def __post_init__(self):
        s, b = self.gradient_norm.shape if self.gradient_norm.ndim == 2 else (-1, -1)
        k, d = len(self.eigenvalues), len(self.dimensions)
        shapes = {
            "batch_sizes": (s,),
            "deviation": (s, b),
            "cosine": (s, b, k),
            "residuals": (k,),
            "noise_eigenvalues": (k,),
            "noise_residuals": (k,),
            "overlap": (k, k),
            "noise_along": (k,),
            "curvature_along": (k,),
            "angles": (d, k),
        }
        wrong = [name for name, shape in shapes.items() if getattr(self, name).shape != shape]
        ascending = all((np.diff(x) > 0).all() for x in (self.batch_sizes, self.dimensions))
        if wrong or not ascending or not ((1 <= self.dimensions) & (self.dimensions <= k)).all():
            raise InputError(
                f"gradient_norm {self.gradient_norm.shape}, {k} eigenvalues and "
                f"{', '.join(wrong) or 'batch_sizes or dimensions'} do not belong together"
            )

    # -- gradients -------------------------------------------------------------------------------

    def gradient_share(self, k: int) -> Array:
        """The part of |g|^2 in the span of the top k eigenvectors of H, (s, b).

        For a gradient of random direction it is k / n on average.
        """
        return np.square(self.cosine[:, :, self._top(k)]).sum(axis=2)

    def mean_gradient_share(self, k: int) -> Array:
        """Mean of ``gradient_share`` over the minibatches of each size, (s,)."""
        return _mean(self.gradient_share(k))

    def gradient_share_error(self, k: int) -> Array:
        """Standard error of ``mean_gradient_share``, (s,); 0 for all the data.

        NaN for a single minibatch.
        """
        return np.where(self._is_full, 0.0, _standard_error(self.gradient_share(k)))

    def mean_deviation(self) -> Array:
        """Mean of |g_B - g|^2 over the minibatches of each size, (s,)."""
        return _mean(self.deviation)

    def deviation_error(self) -> Array:
        """Standard error of ``mean_deviation``, (s,); 0 for all the data."""
        return np.where(self._is_full, 0.0, _standard_error(self.deviation))

    def expected_deviation(self) -> Array:
        """``variance_factor`` times tr C, (s,), the expectation of ``mean_deviation``.

        NaN where tr C is unknown or C is not centred.
        """
        factors = [variance_factor(self.num_samples, int(size)) for size in self.batch_sizes]
        return np.array(factors) * (self.noise_trace if self.centered else math.nan)

    # -- H and C ---------------------------------------------------------------------------------

    def subspace_overlap(self, k: int) -> float:
        """|P_H P_C|_F^2 / k, P the projections on the top subspaces of k dimensions: 0 to 1.

        The mean squared cosine of their principal angles; k / n for random subspaces.
        """
        top = self._top(k)
        return float(np.square(self.overlap[top, top]).sum() / k)

    def principal_angles(self, k: int) -> Array:
        """Between the top subspaces of k dimensions, (k,), radians, the largest first.

        Raises:
            InputError: k is none of ``dimensions``.
        """
        found = np.flatnonzero(self.dimensions == k)
        if not len(found):
            raise InputError(
                f"no angles of {k:g} dimensions; expected one of "
                f"{', '.join(map(str, self.dimensions))}"
            )
        return self.angles[found[0], :k]

    def noise_share(self, k: int) -> float:
        """sum of v^T C v / tr C over the top k eigenvectors v of H."""
        return _ratio(self.noise_along[self._top(k)].sum(), self.noise_trace)

    def curvature_share(self, k: int) -> float:
        """sum of u^T H u / tr H over the top k eigenvectors u of C.

        Not a share where H has large negative eigenvalues: then it may exceed 1.
        """
        return _ratio(self.curvature_along[self._top(k)].sum(), self.trace)

    # -- inside ----------------------------------------------------------------------------------

    @property
    def _is_full(self) -> NDArray[np.bool_]:
        return self.batch_sizes == self.num_samples

    def _top(self, k: int) -> slice:
        most = len(self.eigenvalues)
        if k != int(k) or not 1 <= k <= most:
            raise InputError(f"{k:g} eigenvectors: expected a whole number, 1 to {most}")
        return slice(most - int(k), None)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _mean(values: Array) -> Array:
    """Over the finite values of each row."""
    counts = np.isfinite(values).sum(axis=1)
    sums = np.nansum(values, axis=1)
    return np.divide(sums, counts, out=np.full(len(values), math.nan), where=counts > 0)


def _standard_error(values: Array) -> Array:
    """Of ``_mean``; NaN for fewer than two values."""
    counts = np.isfinite(values).sum(axis=1)
    squares = np.nansum(np.square(values - _mean(values)[:, None]), axis=1)
    weights = counts * (counts - 1)
    found = np.divide(squares, weights, out=np.full(len(values), math.nan), where=counts > 1)
    return np.sqrt(found)
