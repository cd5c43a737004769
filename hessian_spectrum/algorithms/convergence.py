"""Decide after a step: continue, restart, follow a new random vector, or finish.

Dense algebra may round, or choose signs, differently on another processor. Each rank decides from
numbers that are the same on all ranks whether there is anything to do: a residual is compared with
bounds far above rounding. Rank 0 then decides which vectors are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum.krylov.krylov_schur import RitzSpace
from hessian_spectrum.krylov.ritz import (
    Array,
    K,
    Ritz,
    Which,
    counts,
    kept,
    may_miss_copies,
    ritz,
    wanted,
)

# A space is examined each time that it has grown by one part in so many: that takes O(r^3).
EXAMINATIONS = 25
# A product is usually good to this many units of rounding of the largest eigenvalue.
PRODUCT_ROUNDING = 10


@dataclass(frozen=True)
class Goal:
    """Which eigenpairs are wanted, how accurately, and at what cost."""

    k: K
    which: Which
    tol: float  # of residuals, relative to the largest |theta|
    max_products: int
    seed: int
    copies: bool = True  # look for further copies of multiple eigenvalues


class Decision(Enum):
    """What follows a step."""

    CONTINUE = "continue"
    FINISH = "finish"
    RESTART = "restart"
    REFRESH = "refresh"  # restart, with a new random vector


@dataclass(frozen=True)
class WantedPairs:
    """The wanted Ritz pairs of a space, with what its recurrence knows of their residuals."""

    values: Array  # (k,), ascending
    coordinates: Array  # (r, k), columns, in the basis
    residuals: Array  # (k,)
    scale: float  # the largest |theta| of the space


def is_due(space: RitzSpace, goal: Goal) -> bool:
    """Whether the space is examined after this step: not after every one, since it takes O(r^3)."""
    if space.is_full or space.is_finished or space.products >= goal.max_products:
        return True
    return space.num_steps % max(1, space.order // (EXAMINATIONS * space.width)) == 0


def examined(
    space: RitzSpace, n: int, eps: float, goal: Goal
) -> tuple[Decision, WantedPairs, Array | None]:
    """The decision, the wanted pairs, and the coordinates of the Ritz pairs that a restart keeps.

    Args:
        n: the operator's size.
        eps: of the operator's arithmetic.
    """
    pairs = ritz(space.h, space.coupling, space.leak, n)
    decision, indices = _decision(space, pairs, goal, eps)
    best = wanted(goal.which, goal.k, pairs.values)
    parts = pairs.values[best], pairs.coordinates[:, best], pairs.residuals[best]
    coordinates = None if indices is None else pairs.coordinates[:, indices]
    return decision, WantedPairs(*parts, pairs.scale), coordinates


def _decision(
    space: RitzSpace, pairs: Ritz, goal: Goal, eps: float
) -> tuple[Decision, NDArray[np.intp] | None]:
    best = wanted(goal.which, goal.k, pairs.values)
    enough = len(best) == min(sum(counts(goal.which, goal.k)), pairs.order)
    if space.products >= goal.max_products or space.order >= pairs.order:
        return Decision.FINISH, None
    # Smaller residuals are noise of the products: further steps would not reduce them.
    floor = 2 * max(eps, space.noise) * pairs.scale
    worst = pairs.residuals[best].max()
    invariant = space.is_finished
    if enough and (worst <= max(goal.tol * pairs.scale, floor) or invariant):
        explored = invariant or space.num_steps >= space.fresh_at + space.patience
        missing = goal.copies and may_miss_copies(
            pairs, goal.which, goal.k, space.starts, 10 * eps * pairs.scale
        )
        if explored and not missing:
            return Decision.FINISH, None
        # The block that a refresh drops stays part of the residuals: half the tolerance is left.
        if explored and (worst <= max(goal.tol * pairs.scale / 2, floor) or invariant):
            return Decision.REFRESH, best
    room = space.capacity - len(best) - 2 * max(1, space.width)
    fitting = kept(pairs, goal.which, goal.k, len(best) + room // 2)
    if invariant:
        every = np.arange(len(pairs.values))
        return Decision.REFRESH, fitting if len(every) > len(fitting) + room // 2 else every
    return (Decision.RESTART, fitting) if space.is_full else (Decision.CONTINUE, None)
