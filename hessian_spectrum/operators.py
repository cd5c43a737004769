"""Symmetric operators on sharded vectors: what Krylov methods multiply by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from hessian_spectrum.distributed import World
from hessian_spectrum.errors import InputError
from hessian_spectrum.layout import Layout

Matrix = TypeVar("Matrix", Tensor, np.ndarray)


class SymmetricOperator(ABC):
    """A real symmetric n x n matrix that is known through its products.

    Inside the package vectors are rows, (k, n_local), sharded as ``layout`` says:
    ``products``. From outside, ``H @ V`` takes whole vectors as columns, (n,) or (n, k).
    """

    layout: Layout
    dtype: torch.dtype

    @abstractmethod
    def products(self, vectors: Tensor) -> Tensor:
        """V -> V A for rows V, shape (k, n_local) -> (k, n_local). Called by every rank."""

    def not_finite_on(self) -> list[int]:
        """The ranks whose part of the latest product was not finite, where that is known.

        Called by every rank.
        """
        return []

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

        Arrays of NumPy give arrays, tensors give tensors. One block product for all k.
        """
        whole = torch.as_tensor(vectors).detach()
        if whole.ndim not in (1, 2) or len(whole) != self.n:
            raise InputError(
                f"cannot multiply an operator of shape {self.shape} by shape "
                f"{tuple(whole.shape)}; expected ({self.n},) or ({self.n}, k)"
            )
        rows = whole.reshape(self.n, -1).T.to(self.device, self.dtype)
        local = self.layout.local(rows).contiguous()
        result = self.layout.gather(self.products(local)).T.reshape(whole.shape)
        if isinstance(vectors, Tensor):
            return result.to(vectors.device)
        return result.cpu().numpy()

    def to_scipy(self) -> LinearOperator:
        """The same operator for scipy.sparse.linalg, in float64 or float32 as this one."""
        dtype = np.dtype(str(self.dtype).removeprefix("torch."))
        return LinearOperator(
            self.shape,
            matvec=lambda v: self @ np.asarray(v, dtype).reshape(-1),
            matmat=lambda v: self @ np.asarray(v, dtype),
            rmatvec=lambda v: self @ np.asarray(v, dtype).reshape(-1),
            dtype=dtype,
        )


class Dense(SymmetricOperator):
    """A matrix that is stored whole, shape (n, n), on every rank; each multiplies its columns."""

    def __init__(self, matrix: Tensor, world: World | None = None):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InputError(f"matrix of shape {tuple(matrix.shape)}; expected a square one")
        self.layout = Layout.of_size(len(matrix), world or World(device=matrix.device))
        self.dtype = matrix.dtype
        self._columns = matrix[:, self.layout.start : self.layout.stop]

    def products(self, vectors: Tensor) -> Tensor:
        return self.layout.gather(vectors) @ self._columns
