"""Alignment of minibatch gradients with the Hessian: the result. NumPy only, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.exports import Exported
from hessian_spectrum._core.stored_fields import stored, stored_attribute

Array = NDArray[np.float64]

PER_BATCH = ("alignment", "gradient_norm", "cosine", "captured")
QUANTITIES = ("alignment", "share", "captured", "gradient_norm")


@dataclass(frozen=True)
class Alignment(Exported):
    """Curvature along minibatch gradients g, and cosines between g and top eigenvectors v_j of H.

    ``alignment = g^T H g / |g|^2`` with H of all the data (Xing et al. 2018, "A walk with SGD",
    eq. 4; Ghorbani et al. 2019, section 4.3). It is lambda_1 if g points along the top
    eigenvector, and on average tr H / n if the direction of g is uniformly random. Rows are batch
    sizes, columns are minibatches. NaN: there is no such minibatch (all the data is a single one),
    or its gradient is zero or not finite.
    """

    # (s,), samples in a minibatch, ascending
    batch_sizes: NDArray[np.int64] = field(
        metadata=stored("samples in a minibatch", ("batch_size",), "1", coordinate=True)
    )
    # (s, b), in units of the eigenvalues
    alignment: Array = field(
        metadata=stored(
            "g^T H g / |g|^2 of a minibatch's gradient g", ("batch_size", "minibatch"), "eigenvalue"
        )
    )
    # (s, b)
    gradient_norm: Array = field(
        metadata=stored("|g|", ("batch_size", "minibatch"), "loss per unit of the parameters")
    )
    # (s, b, k); k = 0 without eigenvectors
    cosine: Array = field(
        metadata=stored(
            "<g, v> / |g| for each eigenvector v", ("batch_size", "minibatch", "eigenpair"), "1"
        )
    )
    # (s, b); NaN without eigenvectors
    captured: Array = field(
        metadata=stored(
            "part of |g|^2 in the span of the eigenvectors", ("batch_size", "minibatch"), "1"
        )
    )
    # (k,), of the v_j, ascending
    eigenvalues: Array = field(
        metadata=stored("of the top eigenvectors", ("eigenpair",), "eigenvalue", coordinate=True)
    )
    # (k,)
    residuals: Array = field(metadata=stored("|H v - lambda v|", ("eigenpair",), "eigenvalue"))
    num_samples: int = field(metadata=stored_attribute("samples in the data", 1))
    seed: int = field(metadata=stored_attribute("seed of the minibatches", 0))

    def __post_init__(self):
        s, b = self.alignment.shape if self.alignment.ndim == 2 else (-1, -1)
        k = self.eigenvalues.shape
        shapes = {
            "batch_sizes": (s,),
            "gradient_norm": (s, b),
            "cosine": (s, b, *k),
            "captured": (s, b),
            "residuals": k,
        }
        wrong = [name for name, shape in shapes.items() if getattr(self, name).shape != shape]
        if wrong or len(k) != 1 or (np.diff(self.batch_sizes) <= 0).any():
            raise InputError(
                f"alignment {self.alignment.shape} and {', '.join(wrong) or 'batch_sizes'} do not "
                "belong together; expected (sizes, minibatches), and sizes in ascending order"
            )

    @property
    def num_batches(self) -> int:
        return self.alignment.shape[1]

    @property
    def top(self) -> float:
        """lambda_1, the largest of the given eigenvalues; NaN if there are none."""
        return float(self.eigenvalues[-1]) if self.eigenvalues.size else math.nan

    @property
    def share(self) -> Array:
        """The alignment divided by lambda_1, (s, b)."""
        return self.alignment / self.top

    def counts(self, quantity: str = "alignment") -> NDArray[np.int64]:
        """The number of minibatches that have a value, (s,)."""
        return np.isfinite(self._of(quantity)).sum(axis=1)

    def mean(self, quantity: str = "alignment") -> Array:
        """Mean over the minibatches of each size, (s,).

        Args:
            quantity: "alignment", "share", "captured" or "gradient_norm".
        """
        values = self._of(quantity)
        return _divided(np.nansum(values, axis=1), self.counts(quantity))

    def std(self, quantity: str = "alignment") -> Array:
        """Standard deviation over the minibatches of each size, (s,); NaN for fewer than two."""
        squares = (self._of(quantity) - self.mean(quantity)[:, None]) ** 2
        return np.sqrt(_divided(np.nansum(squares, axis=1), self.counts(quantity) - 1))

    def standard_error(self, quantity: str = "alignment") -> Array:
        """Standard error of ``mean``, (s,); 0 for all the data, where the mean is exact."""
        error = self.std(quantity) / np.sqrt(np.maximum(self.counts(quantity), 1))
        return np.where(self.batch_sizes == self.num_samples, 0.0, error)

    def mean_square_cosine(self) -> Array:
        """Mean over the minibatches of the share of |g|^2 along each eigenvector, (s, k)."""
        values = self.cosine**2
        found = np.isfinite(values).sum(axis=1)
        return _divided(np.nansum(values, axis=1), found)

    def _of(self, quantity: str) -> Array:
        if quantity not in QUANTITIES:
            raise InputError(f"no quantity {quantity!r}; expected one of {', '.join(QUANTITIES)}")
        return getattr(self, quantity)


def joined(parts: Sequence[Alignment]) -> Alignment:
    """One result from several with other batch sizes and the same data, eigenvectors and seed.

    Raises:
        InputError: the results differ in their data, eigenvectors or seeds.
    """
    first = parts[0]
    for part in parts[1:]:
        same = part.num_samples == first.num_samples and part.seed == first.seed
        if not same or not np.array_equal(part.eigenvalues, first.eigenvalues):
            raise InputError("these alignments differ in their data, eigenvectors or seeds")
    columns = max(part.num_batches for part in parts)
    order = np.argsort(np.concatenate([part.batch_sizes for part in parts]), kind="stable")
    rows: dict[str, Any] = {
        name: np.concatenate([_widened(getattr(part, name), columns) for part in parts])[order]
        for name in PER_BATCH
    }
    sizes = np.concatenate([part.batch_sizes for part in parts])[order]
    return replace(first, batch_sizes=sizes, **rows)


def _widened(values: Array, columns: int) -> Array:
    """Padded with NaN to that many minibatches."""
    missing = columns - values.shape[1]
    padding = ((0, 0), (0, missing), *((0, 0),) * (values.ndim - 2))
    return np.pad(values, padding, constant_values=math.nan)


def _divided(sums: Array, counts: NDArray[np.int64]) -> Array:
    return np.divide(sums, counts, out=np.full(np.shape(sums), math.nan), where=counts > 0)
