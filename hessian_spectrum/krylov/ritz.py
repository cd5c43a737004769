"""Ritz pairs of a Krylov space, and the selection of those that are wanted; NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum.krylov.dense_eigen import eigh

Array = NDArray[np.float64]
Which = Literal["largest", "smallest", "both", "magnitude"]
WHICH = get_args(Which)
K = int | tuple[int, int]  # with "both" at each end, or at the lower and at the upper one

COPY_WIDTH = 10  # residuals: eigenvalues no farther apart than this may be one


@dataclass(frozen=True)
class Ritz:
    """Ritz pairs of an orthonormal basis Q with A Q = H Q + C Q_next + what was dropped."""

    values: Array  # (r,), ascending
    coordinates: Array  # (r, r), columns: of the Ritz vectors in Q
    residuals: Array  # (r,), |A u - theta u|
    order: int  # n: with r = n nothing is missing

    @property
    def scale(self) -> float:
        """The largest |theta|: what tolerances are relative to."""
        return float(np.abs(self.values).max(initial=0.0))


def ritz(h: Array, coupling: Array, leak: Array, n: int) -> Ritz:
    """Rayleigh and Ritz's pairs of span(Q), with residuals that count what is not symmetric.

    Args:
        h: (r, r), Q A Q^T row by row as it was computed: A q_i = sum_j h_ij q_j + ...
        coupling: (r, b), C.
        leak: (r,), |what was dropped of A q_i|.
    """
    values, s = eigh((h + h.T) / 2)
    inside = h.T @ s - s * values
    squares = (inside**2).sum(0) + ((coupling.T @ s) ** 2).sum(0) + (s**2).T @ leak**2
    return Ritz(values, s, np.sqrt(squares), n)


def counts(which: Which, k: K) -> list[int]:
    """How many pairs are wanted at each end."""
    if isinstance(k, tuple):
        return list(k)
    return [k, k] if which == "both" else [k]


def ends(which: Which, k: K, values: Array) -> list[NDArray[np.intp]]:
    """Indices of the wanted values, of each end, from the outermost inwards."""
    inward = np.arange(len(values))
    numbers = counts(which, k)
    match which:
        case "largest":
            return [inward[::-1][: numbers[0]]]
        case "smallest":
            return [inward[: numbers[0]]]
        case "magnitude":
            return [np.argsort(-np.abs(values), kind="stable")[: numbers[0]]]
    low = inward[: numbers[0]]
    return [low, np.setdiff1d(inward[::-1][: numbers[1]], low)[::-1]]


def wanted(which: Which, k: K, values: Array) -> NDArray[np.intp]:
    """Indices of the wanted values, ascending."""
    return np.sort(np.concatenate(ends(which, k, values)))


def num_lower(which: Which, k: K, values: Array) -> int:
    """How many of the wanted ``values`` belong to the lower end; the others to the upper one."""
    if which == "magnitude":  # all that are as large: the negative ones are the smallest there are
        return int(np.count_nonzero(values < 0))
    return {"largest": 0, "smallest": len(values)}.get(which, min(counts(which, k)[0], len(values)))


def may_miss_copies(found: Ritz, which: Which, k: K, starts: int, floor: float) -> bool:
    """Could an undetected multiplicity change which eigenpairs are wanted?

    A space that was started from s random vectors holds min(s, multiplicity) copies of each
    eigenvalue: one that appears fewer than s times has no more. More copies of the innermost
    wanted one would change nothing.

    Args:
        starts: s.
        floor: the largest difference that rounding can cause.
    """
    if len(found.values) >= found.order:
        return False
    for indices in ends(which, k, found.values):
        innermost = indices[-1]
        for i in indices:
            width = COPY_WIDTH * max(found.residuals[i], floor)
            copies = np.abs(found.values - found.values[i]) <= width
            if copies.sum() >= starts and not copies[innermost]:
                return True
    return False


def kept(found: Ritz, which: Which, k: K, room: int) -> NDArray[np.intp]:
    """Indices, ascending, of at most ``room`` Ritz pairs that a restart keeps.

    These are the wanted pairs, and as many more of both ends. Eigenvalues next to the wanted ones,
    and outliers at the other end, slow convergence unless they are kept (thick restarting, Wu and
    Simon, SIAM J. Matrix Anal. Appl. 22 (2000) 602-616). Half of the room beside the wanted pairs
    was best on the Hessians of small networks, equally at both ends even where one is wanted.
    """
    chosen = wanted(which, k, found.values)
    rest = np.setdiff1d(np.arange(len(found.values)), chosen)
    extra = max(0, room - len(chosen))
    low, high = rest[: (extra + 1) // 2], rest[len(rest) - min(extra // 2, len(rest)) :]
    return np.unique(np.concatenate([chosen, low, high]))
