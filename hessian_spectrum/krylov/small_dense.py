"""Dense algebra of small Gram matrices, with the same bits on every processor.

Each rank computes for itself the factors that it multiplies its entries by, so that all must come
to the same bits and decisions. Here sums are taken term by term, in sums, products, quotients and
roots, which IEEE 754 rounds in one way only.

LAPACK's bits depend on the processor. With OpenBLAS 0.3 and graded matrices of order 2 to 40,
``numpy.linalg.cholesky``, ``dpstrf``, ``numpy.linalg.svd`` and the Jacobi SVD ``dgejsv`` all gave
other bits with the kernels for Sandy Bridge than with those for Haswell (OPENBLAS_CORETYPE), while
those of this module were the same. Libraries are as accurate and
faster (see each function), but a step of a Krylov method calls these functions once or twice
beside products that take longer, and the rotations only where directions are short. A factor
computed on rank 0 and sent to the others would cost one exchange more in each step.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

EPS = float(np.finfo(np.float64).eps)
COLUMNS = 1 << 20  # of float32 rows that are converted to float64 at a time
SWEEPS = 40  # of Jacobi rotations; about ten are needed


def gram(rows: Tensor) -> Tensor:
    """This rank's part of R R^T, (k, n_local) -> (k, k), in float64 whatever the rows are."""
    return inner(rows, rows)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """This rank's part of A B^T, (k, n_local) and (r, n_local) -> (k, r), in float64."""
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    columns = COLUMNS if a.dtype != torch.float64 else max(1, a.shape[1])
    for part, other in zip(a.split(columns, 1), b.split(columns, 1)):
        total.addmm_(part.double(), other.double().T)
    return total


def cholesky(a: Array) -> Array | None:
    """Lower L with L L^T = A, (k, k); None if a pivot is not positive.

    Measured on graded Gram matrices at scales 1e-8, 1 and 1e8: entries of L L^T - A relative to
    the diagonal are at most 2e-16, 6e-16 and 1e-15 for k = 2, 15 and 96, with LAPACK's potrf 2e-16,
    3e-16 and 3e-16. Milliseconds on one core: 0.03, 0.2 and 6; potrf 0.01, 0.01 and 0.06.
    """
    a, lower = a.copy(), np.zeros_like(a)
    for j in range(len(a)):
        if not a[j, j] > 0:
            return None
        column = a[j:, j] / np.sqrt(a[j, j])
        lower[j:, j] = column
        a[j:, j:] -= column[:, None] * column
    return lower


def shifted_cholesky(a: Array, eps: float) -> Array:
    """L with L L^T = A + shift I, for an A whose error is about ``eps`` times its largest entry.

    Fukaya, Kannan, Nakatsukasa, Yamamoto and Yanagisawa, SIAM J. Sci. Comput. 42 (2020).
    """
    largest = a.diagonal().max(initial=0.0)
    shift = 4 * eps * largest if largest > 0 else 1.0
    lower = None
    while lower is None:
        lower = cholesky(a + shift * np.eye(len(a)))
        shift *= 16
    return lower


def independent(a: Array, candidates: Indices, most: int) -> tuple[Indices, Array]:
    """Linearly independent rows among those with Gram matrix A: their indices and Cholesky factor.

    Args:
        a: (k, k).
        candidates: indices of rows, those that are preferred first.
        most: how many may be kept.

    A row is dropped where less than 1e-4 of its square lies outside of the span of those kept
    before it: LAPACK's dpstrf, which pivots by size, would not keep the order.
    """
    kept: list[int] = []
    columns: list[Array] = []
    for j in candidates:
        if len(kept) < most and a[j, j] > 0:
            left = a[j, j] - sum([float(column[j] * column[j]) for column in columns])
            if left > 1e-4 * a[j, j]:
                column = a[:, j].copy()
                for earlier in columns:
                    column -= earlier * earlier[j]
                columns.append(column / np.sqrt(left))
                kept.append(int(j))
    lower = np.array([column[kept] for column in columns]).reshape(len(kept), len(kept)).T
    return np.array(kept, dtype=np.int64), np.tril(lower)


def smallest(lower: Array) -> float:
    """1 / |L^-1|_F, at most the smallest singular value of L and at least that over sqrt(k)."""
    k = len(lower)
    inverse = np.zeros_like(lower)
    for i in range(k):
        row = np.zeros(k)
        for j in range(i):
            row -= lower[i, j] * inverse[j]
        row[i] += 1.0
        inverse[i] = row / lower[i, i]
    if not k:
        return np.inf
    with np.errstate(over="ignore"):  # of a matrix so small that nothing is left of it: 0
        return float(1.0 / np.sqrt(_column_sums(np.square(inverse)).cumsum()[-1]))


def product(a: Array, b: Array) -> Array:
    """A B."""
    total = np.zeros((a.shape[0], b.shape[1]))
    for j in range(a.shape[1]):
        total += a[:, j, None] * b[j]
    return total


def singular(b: Array) -> tuple[Array, Array, Array]:
    """P, lengths, Z with B = P diag(lengths) Z^T, longest first: one-sided Jacobi (Hestenes 1958).

    Columns of P that belong to a length of 0 are 0.

    Measured against 60 digits, on columns graded from 1 to 1e-12 in any order, at scales 1e-8, 1
    and 1e8: relative errors of the lengths are at most 2e-14 for k = 2, 6 and 15; LAPACK's dgejsv
    has 3e-14, its gesdd and gesvd are wrong by up to 1e-2. Milliseconds on one busy core for
    k = 6, 15 and 40: 8, 46 and 270; dgejsv 0.03, 0.08 and 0.5.
    """
    k = b.shape[1]
    a, z = np.array(b.T, order="C"), np.eye(k)  # rows: the columns of B Z and of Z
    for _ in range(SWEEPS):
        turned = False
        for left, right in _rounds(k):
            x, y = a[left], a[right]
            xx, yy, xy = (_column_sums((u * v).T) for u, v in ((x, x), (y, y), (x, y)))
            turn = np.abs(xy) > 4 * EPS * np.sqrt(xx * yy)
            if not turn.any():
                continue
            turned = True
            zeta = (yy - xx)[turn] / (2 * xy[turn])
            t = np.where(zeta >= 0, 1.0, -1.0) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta))
            cos = (1 / np.sqrt(1 + t * t))[:, None]
            sin = cos * t[:, None]
            left, right = left[turn], right[turn]
            for rows in (a, z):
                first, second = rows[left], rows[right]
                rows[left], rows[right] = cos * first - sin * second, sin * first + cos * second
        if not turned:
            break
    lengths = np.sqrt(_column_sums(np.square(a).T))
    order = np.argsort(-lengths, kind="stable")
    a, z, lengths = a[order], z[order], lengths[order]
    p = np.divide(a, lengths[:, None], out=np.zeros_like(a), where=lengths[:, None] > 0)
    return p.T, lengths, z.T


def _rounds(k: int) -> list[tuple[Indices, Indices]]:
    """Every pair of k columns once, in rounds of disjoint pairs."""
    players, half = list(range(k + k % 2)), (k + 1) // 2
    rounds = []
    for _ in range(len(players) - 1):
        pairs = [(a, b) for a, b in zip(players[:half], players[half:][::-1]) if max(a, b) < k]
        if pairs:
            rounds.append((np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds


def _column_sums(a: Array) -> Array:
    """The sum over rows, one row after the other."""
    total = np.zeros(a.shape[1])
    for row in a:
        total = total + row
    return total
