"""Symmetric operators on sharded vectors: what Krylov methods multiply by."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import TypeVar

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import CALL, agreed
from hessian_spectrum.distributed.arrays import as_tensor
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import World

Matrix = TypeVar("Matrix", Tensor, np.ndarray)


SYMMETRIC = 1000  # A and A^T may differ by this many units of rounding of the largest entry


class SymmetricOperator(ABC):
    """A real symmetric n x n matrix, given by its products with vectors.

    ``products``, which everything inside the package uses, takes rows, shape (k, n_local), sharded
    by ``layout``. ``H @ V`` takes whole vectors as columns, shape (n,) or (n, k).
    """

    layout: Layout
    dtype: torch.dtype

    @property
    def product_error(self) -> float:
        """|error of a product with a unit vector| beside rounding, as the operator states it.

        Of all products so far; the same on every rank.
        """
        return 0.0

    @abstractmethod
    def products(self, vectors: Tensor) -> Tensor:
        """V -> V A for rows V, shape (k, n_local) -> (k, n_local). Called by every rank.

        Where it fails on one of several ranks, it is NaN on all; ``raise_failure`` says why.
        """

    def in_float64(self) -> SymmetricOperator:
        """The same matrix with products in float64 if there are such, otherwise this operator."""
        return self

    def forget(self) -> None:  # noqa: B027 (most keep nothing)
        """Drop what is kept between products; the next product forms it again."""

    def expect_repeats(self) -> None:  # noqa: B027 (most keep nothing)
        """Announce a product ``A @ V``, which may be one of many: unplanned operators keep more.

        Called before each, on every rank. No communication.
        """

    def not_finite_on(self) -> list[int]:
        """The ranks whose part of the latest product was not finite, if that is known.

        Called by every rank.

        Raises:
            Exception: as ``raise_failure``.
        """
        return []

    def raise_failure(self) -> None:  # noqa: B027 (most cannot fail on one rank alone)
        """Raise on every rank the error that made a product fail on one; nothing if none failed.

        A product that fails on one rank is NaN on all. Called by every rank, where a number that is
        reduced over ranks was not finite.
        """

    @property
    def n(self) -> int:
        return self.layout.n

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.n

    @property
    def device(self) -> torch.device:
        return self.layout.world.device

    def __matmul__(self, vectors: Matrix) -> Matrix:
        """A @ V for whole vectors, (n,) or (n, k), the same on every rank.

        NumPy arrays give arrays, tensors give tensors. One block product for all k. Without a
        plan, a curvature matrix keeps its first-order graphs from the second product on, where
        they fit the memory, and reuses them until ``forget``.

        Raises:
            InputError: the vectors are not of the operator's size, or not alike on all ranks.
            Exception: on every rank, what was raised on one.
        """
        # Block products of different sizes on ranks end in an abort inside gloo.
        whole = agreed(
            self.layout.world,
            lambda: self._whole(vectors),
            lambda whole: {CALL: "a product with an operator", "shape": tuple(whole.shape)},
        )
        rows = whole.reshape(self.n, -1).T.to(self.device, self.dtype)
        local = self.layout.local(rows).contiguous()
        self.expect_repeats()
        gathered = self.layout.gather(self.products(local))
        if self.layout.world.size > 1 and not bool(gathered.isfinite().all()):
            self.raise_failure()
        result = gathered.T.reshape(whole.shape)
        if isinstance(vectors, Tensor):
            return result.to(vectors.device)
        return result.cpu().numpy()

    def _whole(self, vectors: Matrix) -> Tensor:
        whole = as_tensor(vectors)
        if whole.ndim not in (1, 2) or len(whole) != self.n:
            raise InputError(
                f"cannot multiply an operator of shape {self.shape} by shape "
                f"{tuple(whole.shape)}; expected ({self.n},) or ({self.n}, k)"
            )
        return whole

    def to_scipy(self) -> LinearOperator:
        """The same operator for scipy.sparse.linalg, in float64 or float32 as this one.

        Its products are ``A @ V``.
        """
        dtype = np.dtype(str(self.dtype).removeprefix("torch."))
        return LinearOperator(
            self.shape,
            matvec=lambda v: self @ np.asarray(v, dtype).reshape(-1),
            matmat=lambda v: self @ np.asarray(v, dtype),
            rmatvec=lambda v: self @ np.asarray(v, dtype).reshape(-1),
            dtype=dtype,
        )


class Dense(SymmetricOperator):
    """A dense matrix, shape (n, n), whole on every rank; each rank multiplies by its own columns.

    Raises:
        InputError: the matrix is not square, not symmetric to rounding, or not finite.
    """

    def __init__(self, matrix: Tensor, world: World | None = None):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InputError(f"matrix of shape {tuple(matrix.shape)}; expected a square one")
        if not matrix.is_floating_point() or not len(matrix):
            raise InputError(
                f"matrix of {matrix.dtype}, {len(matrix)} rows; expected real numbers in floating "
                "point, and at least one row"
            )
        size, uneven = (part.abs().max().item() for part in (matrix, matrix - matrix.T))
        if not math.isfinite(size):
            raise InputError("matrix holds a NaN or an infinity; expected finite entries")
        if uneven > SYMMETRIC * torch.finfo(matrix.dtype).eps * size:
            raise InputError(
                f"matrix is not symmetric: entries that should be equal differ by {uneven:.2g}, "
                f"where the largest is {size:.2g}; pass (A + A.T) / 2 if that is meant"
            )
        self.layout = Layout.of_size(len(matrix), world or World(device=matrix.device))
        self.dtype = matrix.dtype
        self._columns = matrix[:, self.layout.start : self.layout.stop]

    def in_float64(self) -> SymmetricOperator:
        """The same matrix in float64: its own entries, converted; once more 8 n n_local bytes."""
        if self.dtype == torch.float64:
            return self
        other = copy.copy(self)
        other.dtype, other._columns = torch.float64, self._columns.double()
        return other

    def products(self, vectors: Tensor) -> Tensor:
        return self.layout.gather(vectors) @ self._columns
