"""The largest eigenpairs of an operator, as far as a rank needs them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.spectral.eigenpairs import EigenPairs


class TopPairs(NamedTuple):
    """The largest eigenpairs: this rank's entries of the vectors, and their inner products.

    ``vectors`` and ``gram`` are None where there are no vectors.
    """

    values: np.ndarray  # (k,)
    residuals: np.ndarray  # (k,)
    vectors: Tensor | None  # (k, n_local)
    gram: np.ndarray | None  # (k, k)

    @classmethod
    def of(
        cls, operator: SymmetricOperator, pairs: EigenPairs | None, most: int | None = None
    ) -> TopPairs:
        """Those of the upper end, or the ``most`` largest of them.

        Raises:
            InputError: there are none, or they are of another matrix. One product says so.
        """
        if pairs is None:
            return cls(np.empty(0), np.empty(0), None, None)
        first = pairs.num_lower or 0
        upper = range(first if most is None else max(first, len(pairs) - most), len(pairs))
        if not len(upper):
            raise InputError("pairs are of the lower end only; expected the largest among them")
        values, residuals = (np.asarray(x)[upper.start :] for x in (pairs.values, pairs.residuals))
        stored: Any = pairs.vectors
        if stored is None:
            return cls(values, residuals, None, None)
        if tuple(stored.shape) != (len(pairs), operator.n):
            raise InputError(
                f"pairs.vectors has shape {tuple(stored.shape)}; expected "
                f"({len(pairs)}, {operator.n}), one row an eigenvector"
            )
        layout = operator.layout
        vectors = torch.stack(  # lazy vectors are read one at a time
            [_tensor(stored[i])[layout.start : layout.stop] for i in upper]
        )
        precision = torch.finfo(vectors.dtype).eps
        vectors = vectors.to(operator.device, operator.dtype)
        gram = layout.world.sum((vectors @ vectors.T).double()).cpu().numpy()
        error = np.abs(gram - np.eye(len(gram))).max()
        if not error <= max(precision, torch.finfo(operator.dtype).eps) ** 0.5:
            raise InputError(f"the rows of pairs.vectors are not orthonormal: off by {error:.1e}")
        top = cls(values, residuals, vectors, gram)
        top._require_of(operator)
        return top

    def _require_of(self, operator: SymmetricOperator) -> None:
        """Refuse pairs of other parameters or data, whose cosines mean nothing. One product."""
        assert self.vectors is not None
        v = self.vectors[-1:]
        residual = operator.products(v).sub_(v, alpha=float(self.values[-1]))
        off = operator.layout.world.sum(squares_of(residual)).sqrt().item()
        if not np.isfinite(off):
            operator.raise_failure()
        scale = np.abs(self.values).max()
        if not off <= 2 * self.residuals[-1] + 1e-3 * scale:
            raise InputError(
                f"pairs are of another matrix: for the last, lambda = {self.values[-1]:.6g}, "
                f"|H v - lambda v| is {off:.2g}, not {self.residuals[-1]:.2g}; compute them with "
                "these parameters, data and loss"
            )

    def captured(self, along: np.ndarray) -> np.ndarray:
        """Squared length of unit vectors' projections on the span, (b, k) -> (b,).

        Args:
            along: their inner products with the rows of ``vectors``.
        """
        if self.gram is None:
            return np.full(len(along), np.nan)
        return np.einsum("bk,kb->b", along, np.linalg.solve(self.gram, along.T))


def _tensor(row: Tensor | np.ndarray) -> Tensor:
    # A copy, since torch cannot wrap read-only arrays.
    return row if isinstance(row, Tensor) else torch.from_numpy(np.array(row))


def squares_of(vectors: Tensor) -> Tensor:
    """This rank's part of |v|^2 for each row, (b,), float64."""
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).square()
