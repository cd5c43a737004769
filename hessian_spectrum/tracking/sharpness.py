"""The eigenvalues at both ends, started from those of the record before."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum.algorithms.convergence import Goal
from hessian_spectrum.algorithms.eigenpairs import capacity_that_fits, search, sizes
from hessian_spectrum.algorithms.residual_check import arithmetic_error
from hessian_spectrum.krylov.extremal import Extremes, extremes
from hessian_spectrum.krylov.ritz import K, Which
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.spectral.eigenpairs import EigenPairs

Array = np.ndarray


@dataclass(frozen=True)
class Ends:
    """Extreme eigenpairs, and how they were found."""

    values: Array  # (k,), ascending
    residuals: Array  # (k,), an eigenvalue lies within this of each
    vectors: Tensor  # (k, n), whole, rows of unit norm
    num_lower: int  # of the lower end
    converged: bool

    @classmethod
    def unknown(cls, lower: int, upper: int) -> Ends:
        """Of a matrix that is not finite."""
        nan = np.full(lower + upper, np.nan)
        return cls(nan, nan, torch.empty(0), lower, False)

    @property
    def is_known(self) -> bool:
        return bool(np.isfinite(self.values).all())

    @property
    def upper(self) -> Array:
        return self.values[self.num_lower :]

    def pairs(self) -> EigenPairs:
        return EigenPairs(
            self.values,
            self.residuals,
            np.full(len(self.values), self.converged),
            self.vectors,
            self.num_lower,
        )


class EndsFinder:
    """Finds the ends of matrices that change little from one call to the next.

    Args:
        tol: largest residual over the largest |eigenvalue|. An eigenvalue's own error is about the
            square of that, where it is separated.
        max_products: for one matrix; what has not converged by then is returned as it is.
    """

    spent: int = 0  # products with the matrix that is looked at

    def __init__(self, tol: float, max_products: int, seed: int):
        self.tol, self.max_products, self.seed = tol, max_products, seed
        self.vectors: Tensor | None = None  # (k, n), of the latest ends
        self.values = np.empty(0)  # theirs
        self.num_lower = 0
        self._rounding: float | None = None  # of products, over the largest |eigenvalue|

    def outermost(self, operator: SymmetricOperator, lower: int) -> Ends:
        """One pair of the upper end, and of the lower one where ``lower``; the fewest products."""
        warm = None
        if self.vectors is not None and len(self.vectors) and self.num_lower == lower:
            kept = [0, -1] if lower else [-1]  # of perhaps more
            rows = operator.layout.local(self.vectors[kept].to(operator.device, operator.dtype))
            warm = Extremes(self.values[kept], np.zeros(len(kept)), rows, 0, True)
        found = extremes(
            operator,
            warm,
            tol=self.tol,
            max_products=self.max_products,
            seed=self.seed,
            largest_only=not lower,
        )
        self.spent += found.products
        whole = operator.layout.gather(found.vectors)
        ends = Ends(found.values, found.residuals, whole, lower, found.converged)
        return self._remembered(self._with_rounding(operator, ends, found.vectors))

    def several(
        self, operator: SymmetricOperator, lower: int, upper: int, level: float = math.inf
    ) -> Ends:
        """So many pairs of each end, with the products that are left.

        Args:
            level: residuals are judged against it where it is below the largest |eigenvalue| that
                is known (it is looked for first where none is): an eigenvalue near the level could
                be missing otherwise.
        """
        if math.isfinite(level) and not self.values.size and operator.n > 1:
            self.outermost(operator, min(lower, 1))
        scale = np.abs(self.values).max(initial=0.0)
        tol = self.tol * min(1.0, level / scale) if scale else self.tol
        tol = max(tol, min(self.tol, 2 * (self._rounding or 0.0)))  # no search for what is noise
        k: K = (lower, upper) if lower else upper
        which: Which = "both" if lower else "largest"
        left = max(1, self.max_products - self.spent)
        capacity, most = sizes(operator.n, k, which, 1, None, left)
        capacity = capacity_that_fits(operator, capacity, k, which, 1)
        goal = Goal(k, which, tol, most, self.seed, copies=False)
        found, rows, space = search(operator, goal, capacity, self._nearest(lower, upper))
        self.spent += space.products
        vectors = operator.layout.gather(rows)
        converged = bool(found.converged.all())
        ends = self._remembered(Ends(found.values, found.residuals, vectors, lower, converged))
        has_grown = np.abs(ends.values).max() > 2 * scale  # residuals are relative to the largest
        if math.isfinite(level) and scale and has_grown and self.spent < self.max_products:
            return self.several(operator, lower, upper, level)
        return ends

    def keep_inner(self, vectors: Tensor | None, values: Array, num_lower: int) -> None:
        """Beside the latest ends remember the inner pairs of these, of an earlier matrix."""
        if vectors is None or num_lower != self.num_lower or len(vectors) <= len(self.values):
            return
        assert self.vectors is not None
        inner = slice(num_lower, len(vectors) - (len(self.values) - num_lower))
        rows = self.vectors[:num_lower], vectors[inner], self.vectors[num_lower:]
        self.vectors = torch.cat(rows)
        parts = self.values[:num_lower], values[inner], self.values[num_lower:]
        self.values = np.concatenate(parts)

    def _nearest(self, lower: int, upper: int) -> Tensor | None:
        """Of the vectors that are remembered, those nearest to the ends that are looked for."""
        if self.vectors is None or not len(self.vectors):
            return None
        first = max(self.num_lower, len(self.vectors) - upper)
        return torch.cat([self.vectors[: min(lower, self.num_lower)], self.vectors[first:]])

    def state_dict(self) -> dict[str, Any]:
        return {
            "vectors": self.vectors,
            "values": self.values.tolist(),
            "num_lower": self.num_lower,
            "rounding": self._rounding,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        vectors = state["vectors"]
        self.vectors = None if vectors is None else vectors.to(device)
        self.values = np.array(state["values"], dtype=np.float64)
        self.num_lower, self._rounding = int(state["num_lower"]), state["rounding"]

    def _remembered(self, ends: Ends) -> Ends:
        self.vectors, self.values, self.num_lower = ends.vectors, ends.values, ends.num_lower
        return ends

    def _with_rounding(self, operator: SymmetricOperator, ends: Ends, rows: Tensor) -> Ends:
        """In float32 residuals have the rounding of products, measured at the first matrix."""
        if operator.dtype == torch.float64:
            return ends
        scale = np.abs(ends.values).max()
        if self._rounding is None and scale:
            self._rounding = float(arithmetic_error(operator, rows, seed=0) / scale)
        return replace(ends, residuals=ends.residuals + (self._rounding or 0.0) * scale)


class SpareTime:
    """Seconds in which more may be searched for than was asked; all ranks decide as the first.

    Args:
        seconds: None: no limit.
    """

    def __init__(self, seconds: float | None = None):
        self.seconds, self.taken = seconds, 0.0
        self._next = 0.0  # seconds that the next search may take: twice as many pairs
        self._began = time.perf_counter()

    def allows_more(self, operator: SymmetricOperator) -> bool:
        if self.seconds is None:
            return True
        enough = self.taken + self._next <= self.seconds
        return bool(operator.layout.world.from_first(enough))

    def start(self) -> None:
        self._began = time.perf_counter()

    def stop(self, is_spare: bool) -> None:
        """A search has ended."""
        seconds = time.perf_counter() - self._began
        self._next = 2 * seconds
        if is_spare:
            self.taken += seconds


def ends(
    finder: EndsFinder,
    operator: SymmetricOperator,
    lower: int,
    upper: int,
    above: float = math.inf,
    spare: SpareTime | None = None,
) -> Ends:
    """``lower`` and ``upper`` pairs, and more of the upper end until one is not above ``above``.

    The first guess is one more than were above it in the matrix before. The search for more ends
    with the finder's products, and with the spare time; ``Ends.upper`` is then all above it.
    """
    spare = spare or SpareTime()
    finder.spent = 0
    most = operator.n - lower
    asked = min(upper, most)
    known = finder.vectors, finder.values, finder.num_lower
    before = finder.values[finder.num_lower :]
    count = min(max(asked, int((before > above).sum()) + 1), most)
    if count > asked and spare.seconds is not None:
        count = asked  # how long that takes is known first
    spare.start()
    if count == 1 and lower <= 1 < operator.n:
        found = finder.outermost(operator, lower)
    else:
        found = finder.several(operator, lower, count, above)
    spare.stop(is_spare=False)
    if found.upper.min() > above:  # there may be as many as before
        finder.keep_inner(*known)
    while (
        math.isfinite(above)
        and len(found.upper) < most
        and found.upper.min() > above
        and finder.spent < finder.max_products
        and spare.allows_more(operator)
    ):
        count = min(max(2 * len(found.upper) + 1, int((before > above).sum()) + 1), most)
        spare.start()
        found = finder.several(operator, lower, count, above)
        spare.stop(is_spare=True)
    return found
