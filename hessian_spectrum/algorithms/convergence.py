"""Decide after a step: continue, restart, follow a new random vector, or finish.

Dense algebra may round, or choose signs, differently on another processor. Each rank decides from
numbers that are the same on all ranks whether there is anything to do: a residual is compared with
bounds far above rounding. Rank 0 then decides which vectors are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum.krylov.copy_search import CopySearch
from hessian_spectrum.krylov.krylov_schur import RitzSpace
from hessian_spectrum.krylov.ritz import (
    Array,
    K,
    Ritz,
    Which,
    counts,
    edges,
    kept,
    outside_window,
    ritz,
    wanted,
)

# A space is examined each time that it has grown by one part in so many: that takes O(r^3).
EXAMINATIONS = 25
# A product is usually good to this many units of rounding of the largest eigenvalue.
PRODUCT_ROUNDING = 10
KEPT = 0.8  # of the room beside the wanted pairs: what a restart keeps
LEFT = 0.9  # of the tolerance: where a search for missing eigenvalues begins

Indices = NDArray[np.intp]


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
    SEARCH = "search"  # the same, to see whether an eigenvalue is missing
    FOLLOW = "follow"  # one is: restart, with the Ritz vector that shows it


@dataclass(frozen=True)
class WantedPairs:
    """The wanted Ritz pairs of a space, with what its recurrence knows of their residuals."""

    values: Array  # (k,), ascending
    coordinates: Array  # (r, k), columns, in the basis
    residuals: Array  # (k,)
    scale: float  # the largest |theta| of the space
    in_doubt: NDArray[np.bool_]  # (k,), an eigenvalue farther out may be missing


class Examined(NamedTuple):
    """The decision, and what it needs."""

    decision: Decision
    found: WantedPairs
    # columns, of the Ritz vectors that a restart keeps; the last one to be followed
    coordinates: Array | None = None
    search: CopySearch | None = None  # after a restart


def is_due(space: RitzSpace, goal: Goal) -> bool:
    """Whether the space is examined after this step: not after every one, since it takes O(r^3)."""
    if space.is_full or space.is_finished or space.products >= goal.max_products:
        return True
    order = space.order - (space.search.locked if space.search else 0)
    return space.num_steps % max(1, order // (EXAMINATIONS * space.width)) == 0


def examined(space: RitzSpace, n: int, eps: float, goal: Goal) -> Examined:
    """The decision, with the wanted pairs.

    Args:
        n: the operator's size.
        eps: of the operator's arithmetic.
    """
    if space.search:
        return _searched(space, space.search, n, eps, goal)
    pairs = ritz(space.h, space.coupling, space.leak, n)
    best = wanted(goal.which, goal.k, pairs.values)
    decision, indices = _decision(space, pairs, best, goal, eps)
    # What was not searched for may be missing, once nothing else is.
    settled = pairs.residuals[best] <= goal.tol * pairs.scale
    in_doubt = np.full(len(best), goal.copies and space.order < n and bool(settled.all()))
    found = _found(pairs, best, space.order, pairs.scale, in_doubt)
    return Examined(decision, found, None if indices is None else pairs.coordinates[:, indices])


def _found(
    pairs: Ritz, best: Indices, order: int, scale: float, in_doubt: NDArray[np.bool_]
) -> WantedPairs:
    coordinates = np.zeros((order, len(best)))
    coordinates[: len(pairs.values)] = pairs.coordinates[:, best]
    return WantedPairs(pairs.values[best], coordinates, pairs.residuals[best], scale, in_doubt)


def _decision(
    space: RitzSpace, pairs: Ritz, best: Indices, goal: Goal, eps: float
) -> tuple[Decision, Indices | None]:
    enough = len(best) == min(sum(counts(goal.which, goal.k)), pairs.order)
    if space.products >= goal.max_products or space.order >= pairs.order:
        return Decision.FINISH, None
    # Smaller residuals are noise of the products: further steps would not reduce them.
    floor = 2 * max(eps, space.noise) * pairs.scale
    worst, invariant = pairs.residuals[best].max(), space.is_finished
    explored = invariant or space.num_steps >= space.fresh_at + space.patience
    room = space.capacity - len(best) - 2 * max(1, space.width)
    fitting = kept(pairs, goal.which, goal.k, len(best) + int(KEPT * room))
    if enough and explored:
        if not goal.copies and (worst <= max(goal.tol * pairs.scale, floor) or invariant):
            return Decision.FINISH, None
        # The block that a search drops stays part of the residuals: there is room for more.
        if worst <= max(LEFT * goal.tol * pairs.scale, floor) or invariant:
            return Decision.SEARCH, _locked(space, pairs, best, goal, eps)
    if invariant:
        every = np.arange(len(pairs.values))
        return Decision.REFRESH, fitting if len(every) > len(fitting) + room // 2 else every
    return (Decision.RESTART, fitting) if space.is_full else (Decision.CONTINUE, None)


# -- the search for what is missing --------------------------------------------------------------


def _margin(space: RitzSpace, scale: float, goal: Goal, eps: float) -> float:
    """An eigenvalue no farther out than this counts as equal to a wanted one."""
    return max(goal.tol, PRODUCT_ROUNDING * max(eps, space.noise)) * scale


def _locked(space: RitzSpace, pairs: Ritz, best: Indices, goal: Goal, eps: float) -> Indices:
    """The pairs that a search is orthogonal to: the wanted ones, and others, which shorten it.

    A pair at a distance g inwards from the wanted ones, with a residual r, moves an eigenvalue of
    the rest that is as far out as these by r^2 / g at most: all together by the margin, or less.
    """
    low, high = edges(goal.which, goal.k, pairs.values[best])
    rest = np.setdiff1d(np.arange(len(pairs.values)), best)
    rest = rest[outside_window(pairs.values[rest], low, high, _most_others(space, best))]
    margin = _margin(space, pairs.scale, goal, eps)
    return np.sort(np.concatenate([best, rest[_accurate(space, pairs, rest, low, high, margin)]]))


def _most_others(space: RitzSpace, best: Indices) -> int:
    """How many pairs may be locked beside the wanted ones: half of the room."""
    return (space.capacity - len(best) - 2) // 2


def _accurate(
    space: RitzSpace, pairs: Ritz, indices: Indices, low: float, high: float, margin: float
) -> NDArray[np.bool_]:
    gaps = np.minimum(high - pairs.values[indices], pairs.values[indices] - low)
    return np.asarray(space.capacity * pairs.residuals[indices] ** 2 <= margin * gaps)


def _searched(space: RitzSpace, search: CopySearch, n: int, eps: float, goal: Goal) -> Examined:
    p = search.locked
    known, rest = (
        ritz(space.h[part, part], space.coupling[part], space.leak[part], n)
        for part in (slice(p), slice(p, None))
    )
    best, scale = wanted(goal.which, goal.k, known.values), max(known.scale, rest.scale)
    values, margin = known.values[best], _margin(space, scale, goal, eps)
    low, high = edges(goal.which, goal.k, values)
    farther = (rest.values > high + margin) | (rest.values < low - margin)
    missed = bool(farther.any())
    everything = space.is_finished or space.order >= n

    def excluded(value: float) -> bool:
        """Nothing farther out than this wanted value is missing."""
        if goal.which == "magnitude":
            sides = [-abs(value) - margin, abs(value) + margin]
        else:
            sides = [value - margin if value <= low else value + margin]
        return all(search.excludes(rest, x) for x in sides)

    if missed or everything:
        in_doubt = np.full(len(best), missed)
    else:
        done = all(excluded(x) for x in (low, high) if np.isfinite(x))
        in_doubt = np.array([not done and not excluded(x) for x in values])
    found = _found(known, best, space.order, scale, in_doubt)
    if space.products >= goal.max_products or space.order >= n:
        return Examined(Decision.FINISH, found)
    if missed:
        # Locked pairs that are less accurate than wanted ones would stay so: they are dropped.
        good = known.residuals <= LEFT * goal.tol * scale
        good[best] = True
        followed = np.zeros((space.order, int(good.sum()) + 1))
        followed[:p, :-1] = known.coordinates[:, good]
        followed[p:, -1] = rest.coordinates[:, farther].sum(1)
        return Examined(Decision.FOLLOW, found, followed)
    if not in_doubt.any():
        return Examined(Decision.FINISH, found)
    if not space.is_full:
        return Examined(Decision.CONTINUE, found)
    room = space.capacity - p - 2
    indices = outside_window(rest.values, low, high, int(KEPT * room))
    # What has converged since is locked as well. Its component in the random vector would drown
    # those of the others, which a bound is made of, in rounding.
    accurate = indices[_accurate(space, rest, indices, low, high, margin)]
    accurate = accurate[: max(0, _most_others(space, best) + len(best) - p)]
    indices = np.setdiff1d(indices, accurate)
    coordinates = np.zeros((space.order, p + len(accurate) + len(indices)))
    coordinates[:p, :p] = np.eye(p)
    coordinates[p:, p:] = rest.coordinates[:, np.concatenate([accurate, indices])]
    after = search.restarted(rest, accurate, indices)
    return Examined(Decision.RESTART, found, coordinates, after)
