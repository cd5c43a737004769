"""Operator -> extreme eigenpairs, with residuals that can be believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.distributed.world import Flags, World
from hessian_spectrum.krylov import krylov_schur
from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.krylov.krylov_schur import RitzSpace
from hessian_spectrum.krylov.ritz import (
    WHICH,
    Array,
    K,
    Ritz,
    Which,
    counts,
    kept,
    may_miss_copies,
    num_lower,
    ritz,
    wanted,
)
from hessian_spectrum.krylov.storage import Place
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.spectral.measure import EigenPairs

# Vectors multiplied together. Of each eigenvalue a block of two shows two copies, if there are:
# what appears once is known to be single.
BLOCK = 2
ROOM = 300  # Krylov vectors that may be held before a restart, and ten for each eigenpair
WANTED_ROOM = 10
LEAST_ROOM = 4  # blocks beside the wanted ones
MOST = 2000  # products, and a hundred for each eigenpair
WANTED_MOST = 100
LOOKS = 25  # a space is looked at when it has grown by this part: it takes O(r^3)
STILL = 1e-2  # of the given vectors' length: what a warm start adds to them at random
WARM_STEPS = 8  # at least, from a warm start
CERTAIN = 1e-12  # above this, no processor's rounding decides whether a residual is small
COMBINATIONS = 2  # products that check all residuals together
TOGETHER = 8  # vectors that get products of their own at once
# A product is usually good to this many units of rounding of the largest eigenvalue.
PRODUCT_ROUNDING = 10
AGREES = 2.0  # residuals may be so much larger than the recurrence says


@dataclass(frozen=True)
class Goal:
    """What is asked for."""

    k: K
    which: Which
    tol: float  # of residuals, relative to the largest |theta|
    max_products: int
    seed: int
    copies: bool = True  # are they looked for?


def eigenpairs(
    operator: SymmetricOperator,
    k: K = 6,
    which: Which = "both",
    tol: float = 1e-6,
    *,
    seed: int = 0,
    copies: bool = True,
    block_size: int | None = None,
    basis_size: int | None = None,
    max_products: int | None = None,
    start: Tensor | np.ndarray | BlockSpace | None = None,
    certify: bool = False,
    vectors: bool = True,
    basis: Place = "device",
    state: RitzSpace | None = None,
    on_step: Callable[[RitzSpace], None] | None = None,
) -> EigenPairs:
    """The k extreme eigenpairs at one end or both, from one Krylov space.

    Block Krylov-Schur with thick restarts (Stewart, SIAM J. Matrix Anal. Appl. 23 (2002) 601-614;
    Wu and Simon, ibid. 22 (2000) 602-616), fully reorthogonalized, so that no eigenvalue is found
    more often than it is one. Both ends converge in the same space.

    **Multiplicities.** A space from b random vectors holds b copies of an eigenvalue, if it has so
    many. Where all b are found, and more could push another one out of what was asked for, a new
    random vector is followed, orthogonal to all that has converged, until nothing new appears.

    **Residuals** are |A v - theta v| as the recurrence computed it, asymmetry of the products
    included. At the end products of random combinations of all pairs are compared with them; where
    they are larger, each pair gets a product of its own, and its residual is what that says. Of a
    curvature matrix in float32 two such products are formed in float64 too: by how much they
    differ, for all pairs together, is counted in each residual, though most will have less of it.

    Args:
        k: how many, at most the operator's size; with "both" at each end, or (at the lower end, at
            the upper one).
        which: "largest", "smallest" (most negative), "both", or "magnitude".
        tol: a pair has converged where its residual is at most tol times the largest |theta|.
        seed: of the random vectors, below 2^64.
        copies: False: do not look for copies of eigenvalues, as SciPy's eigsh does not; of one that
            is multiple, or in a cluster narrower than ``tol``, some may be missing.
        block_size: b. Default: 2, which shows that what appears once is single; without ``copies``
            1, which takes the fewest products.
        basis_size: Krylov vectors that may be held at once. Default: 300, and ten for each pair.
        max_products: stop there, converged or not. Default: 2,000, and a hundred for each pair.
        start: vectors (j, n) near the wanted ones, whole, to start from; or what ``on_step`` of
            ``spectral_density`` was given last, whose Krylov space is gone on with.
        certify: every pair gets a product in float64 of its own: its value is the Rayleigh quotient
            and its residual |A v - value v|, both in float64.
        vectors: return them, whole, (pairs, n), on every rank.
        basis: where Krylov vectors live: "device", "host", or a folder on a disk.
        state: what to go on from, as ``on_step`` was given it.
        on_step: called with the state after each step, on every rank.

    Returns:
        Pairs in ascending order, the best there are also where not all converged. Vectors are rows
        of unit norm.

    Raises:
        InputError: an argument is of no use; no room on the disk.
        FloatingPointError: a product is not finite.

    Cost: products as needed, two at the end, and of float32 four (``certify``: one for each pair);
    basis_size n / P entries on each of P ranks, and twice the eigenvectors; two or three small
    reductions a step. At restarts and at the end one exchange more, of what the first rank decides;
    for a ``tol`` below 1e-12 wherever the space is looked at.
    """
    _check(operator, tol, seed, start)
    block_size = default_block(copies) if block_size is None else block_size
    capacity, most = sizes(operator.n, k, which, block_size, basis_size, max_products)
    goal = Goal(k, which, tol, most, seed, copies)
    space = state or first(operator, goal, block_size, capacity, start, basis)
    while True:
        space, found = advance(operator, space, goal)
        if found is not None:
            break
        if on_step:
            on_step(space)
    pairs, rows, _ = believed(operator, space, goal, found, certify)
    whole = operator.layout.gather(rows).cpu().numpy() if vectors else None
    return replace(pairs, vectors=whole)


def first(
    operator: SymmetricOperator,
    goal: Goal,
    block_size: int,
    capacity: int,
    given: Any = None,
    place: Place = "device",
) -> RitzSpace:
    """The space before its first step."""
    if isinstance(given, BlockSpace):
        return krylov_schur.of_block_space(given, capacity, operator.layout.world, place)
    layout, dtype = operator.layout, operator.dtype
    rows = gaussian_probes(layout, range(block_size), goal.seed, dtype, operator.device)
    if given is None:
        return krylov_schur.start(operator, rows, capacity, place)
    near = layout.local(torch.as_tensor(given).detach().to(operator.device, dtype))
    mixed = np.random.default_rng(goal.seed).standard_normal((max(1, block_size - 1), len(near)))
    near = torch.from_numpy(mixed).to(near) @ near
    lengths = (_norms(near, layout.world) / layout.n**0.5).to(rows)[:, None]
    # One vector stays random, and is followed for a while: what is new here shows in it.
    rows = torch.cat([near + STILL * lengths * rows[: len(near)], rows[len(near) :]])
    return replace(krylov_schur.start(operator, rows, capacity, place), patience=WARM_STEPS)


def advance(
    operator: SymmetricOperator, space: RitzSpace, goal: Goal, flags: Flags | None = None
) -> tuple[RitzSpace, Found | None]:
    """One step, and what it leads to: a restart, a new random vector, or the end with its pairs.

    Args:
        flags: what ranks tell each other in this step.
    """
    world = operator.layout.world
    if space.width:
        space = krylov_schur.step(operator, space, flags)
    elif flags:  # no product, and nothing to travel with
        flags.hear(world.sum_together(flags.answers())[0])
    if not _is_looked_at(space, goal):
        return space, None
    seen = _seen(space, operator, goal)
    if seen[0] == GO_ON and goal.tol >= CERTAIN:
        return space, None
    choice, found, on = world.from_first(seen)
    if choice == FINISHED:
        return space, found
    if choice == RESTART:
        space = krylov_schur.restarted(space, on)
    if choice == REFRESH:
        probe = gaussian_probes(
            operator.layout, [space.starts], goal.seed, operator.dtype, operator.device
        )
        space = krylov_schur.refreshed(operator, space, on, probe)
    return space, None


def finished(operator: SymmetricOperator, space: RitzSpace, goal: Goal) -> Found | None:
    """The pairs of a space that was saved when nothing was left to do: one more step would change
    their last bits."""
    if not _is_looked_at(space, goal):
        return None
    choice, found, _ = operator.layout.world.from_first(_seen(space, operator, goal))
    return found if choice == FINISHED else None


def current(operator: SymmetricOperator, space: RitzSpace, goal: Goal) -> EigenPairs:
    """The wanted pairs so far, with the residuals that the recurrence knows; no products."""
    found = operator.layout.world.from_first(_seen(space, operator, goal)[1])
    floor = PRODUCT_ROUNDING * torch.finfo(operator.dtype).eps * found.scale
    residuals = np.maximum(found.residuals, floor)  # not measured yet: the usual rounding
    converged = residuals <= goal.tol * found.scale
    lower = num_lower(goal.which, goal.k, found.values)
    return EigenPairs(found.values, residuals, converged, num_lower=lower)


def believed(
    operator: SymmetricOperator,
    space: RitzSpace,
    goal: Goal,
    found: Found,
    certify: bool = False,
    on_products: Callable[[int], None] = lambda count: None,
) -> tuple[EigenPairs, Tensor, float]:
    """The wanted pairs after a look at their products.

    Args:
        on_products: called with their number after each few products in float64, on every rank.

    Returns:
        (pairs, this rank's entries of their vectors, what float32 adds to each residual).
    """
    world, values, added = operator.layout.world, found.values, 0.0
    rows = krylov_schur.vectors(space, found.coordinates).to(operator.device)
    rows /= _norms(rows, world).to(rows)[:, None]
    if certify:
        operator.forget()
        values, residuals = _rayleigh(operator.in_float64(), rows, found.scale, on_products)
        order = np.argsort(values, kind="stable")
        values, residuals, rows = values[order], residuals[order], rows[torch.from_numpy(order)]
    else:
        residuals = _looked_at(operator, rows, found, goal.seed)
        if operator.in_float64() is not operator:
            added = arithmetic_error(operator, rows, goal.seed)
            on_products(COMBINATIONS)
            residuals = np.hypot(residuals, added)
    converged = residuals <= goal.tol * found.scale
    lower = num_lower(goal.which, goal.k, values)
    return EigenPairs(values, residuals, converged, num_lower=lower), rows, added


def _looked_at(operator: SymmetricOperator, rows: Tensor, found: Found, seed: int) -> Array:
    """|A v - theta v| of each row: as the recurrence has it, where two products agree with that.

    Of u = sum_i s_i v_i / r_i with random signs s the misfit has the mean square
    sum_i |A v_i - theta_i v_i|^2 / r_i^2, k if the residuals r are right: a small one that is wrong
    is seen beside large ones. With r_i at least ``rounding``, misfit / sqrt(k) * rounding is the
    measured error of a product with a unit vector, or more: no residual below it is stated.
    """
    values, eps = found.values, torch.finfo(operator.dtype).eps
    residuals = np.maximum(found.residuals, eps * found.scale)
    rounding = PRODUCT_ROUNDING * eps * (found.scale or 1.0)  # 1.0: of a matrix that is zero
    units = np.maximum(residuals, rounding)
    mix = _signs(seed, len(values)) / units
    u, expected = (torch.from_numpy(m).to(rows) @ rows for m in (mix, mix * values))
    misfits = _norms(_products(operator, u) - expected, operator.layout.world)
    misfit = misfits.max().item() / len(values) ** 0.5
    if misfit <= AGREES:
        return np.maximum(residuals, misfit * rounding)
    each = []
    for part in _parts(len(rows)):
        expected = rows[part] * torch.from_numpy(values[part]).to(rows)[:, None]
        each.append(_norms(_products(operator, rows[part]) - expected, operator.layout.world))
    return np.maximum(torch.cat(each).cpu().numpy(), eps * found.scale)


def arithmetic_error(operator: SymmetricOperator, rows: Tensor, seed: int) -> float:
    """By how much products in float64 differ, sqrt(sum_i |e_i|^2) for all rows together.

    The larger of two random sums of the rows, whose squared error has that mean: no e_i is larger.
    """
    u = torch.from_numpy(_signs(seed, len(rows))).to(rows) @ rows
    product, exact = _products(operator, u).double(), operator.in_float64()
    operator.forget()  # there may be no room for both
    error = _norms(_products(exact, u.to(exact.dtype)) - product, exact.layout.world)
    return error.max().item()


def _rayleigh(
    exact: SymmetricOperator, rows: Tensor, scale: float, on_products: Callable[[int], None]
) -> tuple[Array, Array]:
    """(rho = v A v^T, |v A - rho v|) of each row."""
    world, found = exact.layout.world, []
    for part in _parts(len(rows)):
        v = rows[part].to(exact.dtype)
        v /= _norms(v, world).to(v)[:, None]
        product = _products(exact, v)
        rho = world.sum((v * product).double().sum(1))
        lengths = _norms(product - rho.to(v)[:, None] * v, world)
        found.append(torch.stack([rho, lengths]).cpu().numpy())
        on_products(len(v))
    values, residuals = np.concatenate(found, axis=1)
    return values, np.maximum(residuals, torch.finfo(exact.dtype).eps * scale)


def _products(operator: SymmetricOperator, rows: Tensor) -> Tensor:
    found = operator.products(rows)
    if not operator.layout.world.sum(found.double().sum()).isfinite():
        operator.raise_failure()
        raise FloatingPointError(f"a product with the operator is not finite in {operator.dtype}")
    return found


def _signs(seed: int, k: int) -> Array:
    """Coefficients of random combinations of k rows."""
    return np.random.default_rng(seed).choice([-1.0, 1.0], (COMBINATIONS, k))


def _parts(k: int) -> list[slice]:
    return [slice(i, i + TOGETHER) for i in range(0, k, TOGETHER)]


# -- decisions ------------------------------------------------------------------------------------
#
# Dense algebra may round, or choose signs, in another way on another processor. Each rank sees for
# itself, from numbers that are the same on all, whether there is anything to decide: a residual is
# compared with what is far above rounding. What is then gone on with, the first rank says.

GO_ON, FINISHED, RESTART, REFRESH = range(4)


@dataclass(frozen=True)
class Found:
    """The wanted pairs of a space."""

    values: Array  # ascending
    coordinates: Array  # columns, in the basis
    residuals: Array
    scale: float  # the largest |theta| of the space


def _is_looked_at(space: RitzSpace, goal: Goal) -> bool:
    """Not after every step: it takes O(r^3)."""
    if space.is_full or space.width == 0 or space.products >= goal.max_products:
        return True
    return space.steps % max(1, space.order // (LOOKS * space.width)) == 0


def _seen(
    space: RitzSpace, operator: SymmetricOperator, goal: Goal
) -> tuple[int, Found, Array | None]:
    """What to do, the wanted pairs, and the coordinates of the pairs to go on with."""
    pairs = ritz(space.h, space.coupling, space.leak, operator.n)
    choice, indices = _choice(space, pairs, goal, torch.finfo(operator.dtype).eps)
    best = wanted(goal.which, goal.k, pairs.values)
    parts = pairs.values[best], pairs.coordinates[:, best], pairs.residuals[best]
    on = None if indices is None else pairs.coordinates[:, indices]
    return choice, Found(*parts, pairs.scale), on


def _choice(
    space: RitzSpace, pairs: Ritz, goal: Goal, eps: float
) -> tuple[int, NDArray[np.intp] | None]:
    best = wanted(goal.which, goal.k, pairs.values)
    enough = len(best) == min(sum(counts(goal.which, goal.k)), pairs.order)
    if space.products >= goal.max_products or space.order >= pairs.order:
        return FINISHED, None
    # What is smaller is noise of the products: more of them would show nothing new.
    floor = 2 * max(eps, space.noise) * pairs.scale
    worst = pairs.residuals[best].max()
    invariant = space.width == 0
    if enough and (worst <= max(goal.tol * pairs.scale, floor) or invariant):
        explored = invariant or space.steps >= space.fresh_at + space.patience
        missing = goal.copies and may_miss_copies(
            pairs, goal.which, goal.k, space.starts, 10 * eps * pairs.scale
        )
        if explored and not missing:
            return FINISHED, None
        # A restart drops what is left of the residuals: they stay below the tolerance.
        if explored and (worst <= max(goal.tol * pairs.scale / 2, floor) or invariant):
            return REFRESH, best
    room = space.capacity - len(best) - 2 * max(1, space.width)
    fitting = kept(pairs, goal.which, goal.k, len(best) + room // 2)
    if invariant:
        return REFRESH, fitting if len(pairs.values) > len(fitting) + room // 2 else np.arange(
            len(pairs.values)
        )
    return (RESTART, fitting) if space.is_full else (GO_ON, None)


# -- input ---------------------------------------------------------------------------------------


def sizes(
    n: int,
    k: K,
    which: Which,
    block_size: int = BLOCK,
    basis_size: int | None = None,
    max_products: int | None = None,
) -> tuple[int, int]:
    """(Krylov vectors that are held, products that may be spent).

    Raises:
        InputError: a number is of no use.
    """
    if which not in WHICH:
        raise InputError(f"which={which!r}: expected one of {', '.join(WHICH)}")
    if isinstance(k, tuple) and (which != "both" or len(k) != 2):
        raise InputError(
            f"k={k} with which={which!r}: expected a number, or (lower, upper) of both"
        )
    numbers = {"k": k} if not isinstance(k, tuple) else dict(zip(("k[0]", "k[1]"), k))
    numbers |= {"block_size": block_size, "basis_size": basis_size, "max_products": max_products}
    require_whole(1, **{name: value for name, value in numbers.items() if value is not None})
    if max(counts(which, k)) > n:
        raise InputError(f"k={k} exceeds the operator's size {n}; use k <= {n}")
    pairs, least = sum(counts(which, k)), least_basis(n, k, which, block_size)
    if basis_size is not None and basis_size < least:
        raise InputError(
            f"basis_size={basis_size}: {pairs} pairs by blocks of {block_size} take at least "
            f"{least}; use more, or a smaller k"
        )
    room = ROOM + WANTED_ROOM * pairs if basis_size is None else basis_size
    return min(room, n + block_size), max_products or MOST + WANTED_MOST * pairs


def default_block(copies: bool) -> int:
    """How many vectors are multiplied together."""
    return BLOCK if copies else 1


def least_basis(n: int, k: K, which: Which, block_size: int) -> int:
    """The fewest Krylov vectors that k pairs can be found with."""
    return min(sum(counts(which, k)) + LEAST_ROOM * block_size, n + block_size)


def _check(operator: SymmetricOperator, tol: float, seed: int, start: Any) -> None:
    if not isinstance(operator, SymmetricOperator):
        raise InputError(
            f"eigenpairs of a {type(operator).__name__}; expected an operator such as "
            "hs.Hessian(evaluator)"
        )
    if not isinstance(tol, (int, float)) or not 0 <= tol < 1:
        raise InputError(f"tol={tol}: expected a number from 0 to 1, relative to |lambda|max")
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise InputError(f"seed={seed}: expected a whole number, 0 or more and below 2^64")
    if isinstance(start, BlockSpace):
        if start.lean or not start.num_steps:
            raise InputError("start: expected the space of a block density with a step or more")
    elif start is not None:
        shape = tuple(np.shape(start))
        if len(shape) != 2 or shape[1] != operator.n or not shape[0]:
            raise InputError(f"start of shape {shape}; expected vectors (j, {operator.n})")


def _norms(rows: Tensor, world: World) -> Tensor:
    return world.sum(rows.double().square().sum(1)).sqrt()
