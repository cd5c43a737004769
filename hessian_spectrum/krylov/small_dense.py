"""Small algebra of Gram matrices: the same bits on every processor.

Each rank works out for itself what it multiplies its entries by, so all must come to the same
decisions. LAPACK may round, or choose signs, in another way on another processor. Here sums are
taken term by term, in sums, products, quotients and roots that IEEE 754 rounds in one way.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
COLUMNS = 1 << 20  # of float32 rows that are taken to float64 at a time
SWEEPS = 40  # of Jacobi rotations; about ten are needed


def gram(rows: Tensor) -> Tensor:
    """This rank's part of R R^T, (k, n_local) -> (k, k), in float64 whatever the rows are."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(COLUMNS if rows.dtype != torch.float64 else max(1, rows.shape[1]), 1):
        part = part.double()
        total.addmm_(part, part.T)
    return total


def cholesky(a: Array) -> Array | None:
    """Lower L with L L^T = A, (k, k); None if a pivot is not positive."""
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


def independent(a: Array, candidates: Array, most: int) -> tuple[Array, Array]:
    """Of the rows whose Gram matrix A is, those that others before them do not span, and their L.

    A row counts as spanned where less than 1e-4 of its square is left.
    """
    a, kept, columns = a.copy(), [], []
    for j in candidates:
        if len(kept) < most and a[j, j] > 0:
            left = a[j, j] - sum(float(column[j] * column[j]) for column in columns)
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
    return float(1.0 / np.sqrt(_column_sums(np.square(inverse)).cumsum()[-1])) if k else np.inf


def product(a: Array, b: Array) -> Array:
    """A B."""
    total = np.zeros((a.shape[0], b.shape[1]))
    for j in range(a.shape[1]):
        total += a[:, j, None] * b[j]
    return total


def singular(b: Array) -> tuple[Array, Array, Array]:
    """P, lengths, Z with B = P diag(lengths) Z^T, longest first: one-sided Jacobi (Hestenes 1958).

    Columns of P of length 0 are 0.
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


def _rounds(k: int) -> list[tuple[Array, Array]]:
    """Every pair of k columns once, in rounds of disjoint pairs."""
    players, half = list(range(k + k % 2)), (k + 1) // 2
    rounds = []
    for _ in range(len(players) - 1):
        pairs = [(a, b) for a, b in zip(players[:half], players[half:][::-1]) if max(a, b) < k]
        if pairs:
            rounds.append(tuple(np.array(side) for side in zip(*pairs)))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds


def _column_sums(a: Array) -> Array:
    """The sum over rows, one row after the other."""
    total = np.zeros(a.shape[1])
    for row in a:
        total = total + row
    return total
