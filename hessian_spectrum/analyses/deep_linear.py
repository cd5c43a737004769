"""Deep linear networks x -> W_H ... W_1 x with squared error: derivatives in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.krylov.dense_eigen import eigh

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DeepLinear:
    """L(theta) = |W_H ... W_1 X - Y|^2 / (2 N), the mean over N samples of half the squared error.

    theta holds W_1, ..., W_H row by row, as the parameters of ``nn.Linear(..., bias=False)`` one
    after the other. By Kawaguchi (2016, arXiv:1605.07110, theorem 2.3) all local minima are global;
    from three layers on there are saddles without a negative eigenvalue.

    Example:
        >>> import hessian_spectrum as hs
        >>> net = hs.DeepLinear.of([1, 1, 1, 1], [[1.0]], [[1.0]])  # (w1 w2 w3 - 1)^2 / 2
        >>> net.hessian([0.0, 0.0, 2.0]).tolist()
        [[0.0, -2.0, 0.0], [-2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    sizes: tuple[int, ...]  # of the input, each layer's output
    sxx: Array  # (d_0, d_0), X X^T / N
    syx: Array  # (d_H, d_0), Y X^T / N
    syy: float  # |Y|^2 / N

    @classmethod
    def of(cls, sizes: Sequence[int], x: ArrayLike, y: ArrayLike) -> DeepLinear:
        """Of samples x, shape (N, d_0), and targets y, shape (N, d_H).

        Raises:
            InputError: fewer than two sizes, or samples of other shapes.
        """
        inputs, targets = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        expected = [(len(inputs), size) for size in (sizes[0], sizes[-1])]
        if len(sizes) < 2 or [inputs.shape, targets.shape] != expected or not len(inputs):
            raise InputError(
                f"samples of shapes {inputs.shape} and {targets.shape} for a network of sizes "
                f"{list(sizes)}; expected (N, {sizes[0]}) and (N, {sizes[-1]})"
            )
        n = len(inputs)
        return cls(
            tuple(sizes),
            inputs.T @ inputs / n,
            targets.T @ inputs / n,
            float((targets**2).sum() / n),
        )

    def weights(self, theta: ArrayLike) -> list[Array]:
        """[W_1, ..., W_H] of theta, (n,)."""
        flat, found, first = np.asarray(theta, dtype=np.float64), [], 0
        shapes = list(zip(self.sizes[1:], self.sizes))
        n = sum(rows * columns for rows, columns in shapes)
        if flat.shape != (n,):
            raise InputError(f"theta of shape {flat.shape}; expected ({n},)")
        for rows, columns in shapes:
            found.append(flat[first : first + rows * columns].reshape(rows, columns))
            first += rows * columns
        return found

    def loss(self, theta: ArrayLike) -> float:
        """tr(W Sxx W^T) / 2 - tr(W Sxy) + tr(Syy) / 2, W = W_H ... W_1."""
        w = _product(self.weights(theta), self.sizes[0])
        return float(((w @ self.sxx) * w).sum() / 2 - (w * self.syx).sum() + self.syy / 2)

    def gradient(self, theta: ArrayLike) -> Array:
        """(n,): dL/dW_k = A_k^T E B_k^T, of the layers A_k after and B_k before k."""
        weights = self.weights(theta)
        after, before, error = self._parts(weights)
        return np.concatenate([(a.T @ error @ b.T).ravel() for a, b in zip(after, before)])

    def hessian(self, theta: ArrayLike) -> Array:
        """(n, n): the Gauss-Newton part, and what the error E adds off the diagonal blocks.

        For j > k the bilinear form (V_j, V_k) -> <E, A_j V_j M V_k B_k> is added, with
        M = W_(j-1) ... W_(k+1).
        """
        weights = self.weights(theta)
        after, before, error = self._parts(weights)
        jacobian = np.hstack([np.kron(a, b.T) for a, b in zip(after, before)])  # of W, by rows
        found: Array = jacobian.T @ np.kron(np.eye(self.sizes[-1]), self.sxx) @ jacobian
        starts = np.cumsum([0, *(w.size for w in weights)])
        for j in range(len(weights)):
            for k in range(j):
                middle = _product(weights[k + 1 : j], self.sizes[k + 1])
                outer = after[j].T @ error @ before[k].T
                block = np.einsum("ab,cd->acdb", outer, middle)
                rows, columns = slice(*starts[j : j + 2]), slice(*starts[k : k + 2])
                found[rows, columns] += block.reshape(weights[j].size, weights[k].size)
                found[columns, rows] = found[rows, columns].T
        return found

    @property
    def least_loss(self) -> float:
        """Of all theta: least squares W of rank at most the smallest size (Sxx invertible).

        With Sigma = Syx Sxx^-1 Sxy it is (tr Syy - the largest eigenvalues of Sigma) / 2, as many
        as the rank (Baldi and Hornik 1989).
        """
        explained = eigh(self.syx @ np.linalg.solve(self.sxx, self.syx.T))[0]
        return float(self.syy - explained[::-1][: min(self.sizes)].sum()) / 2

    def _parts(self, weights: list[Array]) -> tuple[list[Array], list[Array], Array]:
        """(A_k for each k, B_k for each k, E = W Sxx - Syx)."""
        depth = range(len(weights))
        after = [_product(weights[k + 1 :], self.sizes[k + 1]) for k in depth]
        before = [_product(weights[:k], self.sizes[0]) for k in depth]
        return after, before, _product(weights, self.sizes[0]) @ self.sxx - self.syx


def _product(weights: Sequence[Array], size: int) -> Array:
    """W_k ... W_j of [W_j, ..., W_k]; the identity of ``size`` of none."""
    found: Array = np.eye(size)
    for w in weights:
        found = w @ found
    return found
