"""Extreme eigenpairs of an operator, with residuals that are checked by products."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.algorithms import convergence
from hessian_spectrum.algorithms.convergence import (
    PRODUCT_ROUNDING,
    Decision,
    Examined,
    Goal,
    WantedPairs,
)
from hessian_spectrum.algorithms.residual_check import checked_pairs, norms
from hessian_spectrum.distributed.arrays import as_tensor
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.distributed.world import Flags
from hessian_spectrum.krylov import krylov_schur
from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.krylov.krylov_schur import RitzSpace
from hessian_spectrum.krylov.ritz import WHICH, K, Which, counts, num_lower
from hessian_spectrum.krylov.storage import Place
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.in_range import InRange
from hessian_spectrum.operators.same_call import place_of, require_same_computation, vectors_of
from hessian_spectrum.planning.planned_operator import planned
from hessian_spectrum.planning.product_planner import vectors_that_fit
from hessian_spectrum.spectral.eigenpairs import EigenPairs

BLOCK_SIZE = 1  # vectors multiplied together; one takes the fewest products
BASIS_SIZE = 300  # Krylov vectors that may be held before a restart,
BASIS_SIZE_PER_PAIR = 10  # and so many more for each eigenpair
LEAST_BLOCKS = 4  # held beside the wanted vectors
MAX_PRODUCTS = 2000
MAX_PRODUCTS_PER_PAIR = 100  # more
EXPECTED_STEPS = 100  # products that other searches are planned for
# How many products a search takes is not known before. With the search for copies and tol 1e-3 or
# 1e-5 trained and untrained networks took 0.6 to 1.4 times this many for each end, and for pairs.
PER_END, PER_ROOT_OF_PAIRS = 20, 22
RANDOM_SHARE = 1e-2  # of the given vectors' length: what a warm start adds to them at random
WARM_STEPS = 8  # at least, from a warm start
# From this tolerance on no processor's rounding decides whether a residual is small enough.
LEAST_TOL_OF_EACH_RANK = 1e-12


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
    more often than its multiplicity. Both ends converge in the same space.

    **Multiplicities.** A space from one random vector holds one copy of each eigenvalue. Once all
    wanted pairs have converged, a new random vector, orthogonal to them and to others that are
    accurate, is followed until an upper bound on the part that an eigenvector could have in it
    (krylov/copy_search.py) says that no eigenvalue farther out than the innermost wanted one is
    missing: wrongly, where one is, with a probability of less than 0.8 %. What it finds joins the
    list, and the search begins again. Pairs of which ``max_products`` leaves this open are not
    called converged. An eigenvalue that is farther out by less than ``tol`` counts as equal.

    **Residuals** are |A v - theta v| as the recurrence computed it, asymmetry of the products
    included. At the end they are compared with products of random combinations of all pairs; where
    these show larger residuals, each pair gets a product of its own, which gives its residual. In
    float32 two such products are formed again, in float64 or, of an operator that has none,
    with another rounding: their difference, which bounds the error of all pairs together, is added
    to each residual.

    Products of a curvature matrix that was made without ``plan=`` are formed in the fastest way
    that fits the memory, as the command line plans them; the operator itself is not changed.

    Args:
        k: how many, at most the operator's size; with "both" at each end, or (at the lower end, at
            the upper one).
        which: "largest", "smallest" (most negative), "both", or "magnitude".
        tol: a pair has converged where its residual is at most tol times the largest |theta|.
        seed: of the random vectors, below 2^64.
        copies: False: do not look for copies of eigenvalues, as SciPy's eigsh does not; some of a
            multiple eigenvalue, or of a cluster narrower than ``tol``, may be missing.
        block_size: vectors multiplied together. Default: 1, which takes the fewest products; more
            take fewer passes over the data.
        basis_size: Krylov vectors that may be held at once. Default: 300, and ten for each pair,
            or on the device as many of them as fit half of the memory.
        max_products: stop there, converged or not. Default: 2,000, and a hundred for each pair.
        start: vectors (j, n) near the wanted ones, whole, to start from; or the last state that
            ``on_step`` of ``spectral_density`` was given, whose Krylov space is continued.
        certify: every pair gets a product in float64 of its own: its value is the Rayleigh quotient
            and its residual |A v - value v|, both in float64.
        vectors: return them, whole, (pairs, n), on every rank.
        basis: where Krylov vectors live: "device", "host", or a folder on a disk.
        state: the state to continue from, as ``on_step`` was given it.
        on_step: called with the state after each step, on every rank.

    Returns:
        Pairs in ascending order, the best there are also where not all converged. Vectors are rows
        of unit norm.

    Raises:
        InputError: an argument is of no use, or differs between ranks; no room on the disk.
        FloatingPointError: a product is not finite.

    Cost: products as needed, two at the end, and of float32 four (``certify``: one for each pair);
    basis_size n / P entries on each of P ranks, and twice the eigenvectors; two or three small
    reductions a step, and one exchange at the start. At restarts and at the end one exchange more,
    of rank 0's decision; for a ``tol`` below 1e-12 wherever the space is examined.
    """
    _require_operator(operator)
    require_same_computation(
        operator,
        "eigenpairs",
        k=k,
        which=which,
        tol=tol,
        seed=seed,
        copies=copies,
        block_size=block_size,
        basis_size=basis_size,
        max_products=max_products,
        start=vectors_of(start),
        certify=certify,
        vectors=vectors,
        basis=place_of(basis),
        state=vectors_of(state),
    )
    _check(operator, tol, seed, start)
    block_size = BLOCK_SIZE if block_size is None else block_size
    capacity, most = sizes(operator.n, k, which, block_size, basis_size, max_products)
    goal = Goal(k, which, tol, most, seed, copies)
    if basis_size is None and basis == "device":
        capacity = capacity_that_fits(operator, capacity, k, which, block_size)
    operator = planned(
        operator,
        block_size,
        expected_steps(most, block_size, k, which),
        kept=capacity if basis == "device" else block_size,
    )
    pairs, rows, _ = search(
        operator,
        goal,
        capacity,
        start,
        block_size=block_size,
        certify=certify,
        basis=basis,
        state=state,
        on_step=on_step,
    )
    missed = int((~pairs.converged).sum())
    if missed and operator.layout.world.rank == 0:
        logging.getLogger("hessian_spectrum").warning(
            "%d of %d eigenpairs have not converged; their residuals and ``converged`` say so",
            missed,
            len(pairs),
        )
    whole = operator.layout.gather(rows).cpu().numpy() if vectors else None
    return replace(pairs, vectors=whole)


def search(
    operator: SymmetricOperator,
    goal: Goal,
    capacity: int,
    start: Any = None,
    *,
    block_size: int = BLOCK_SIZE,
    certify: bool = False,
    basis: Place = "device",
    state: RitzSpace | None = None,
    on_step: Callable[[RitzSpace], None] | None = None,
) -> tuple[EigenPairs, Tensor, RitzSpace]:
    """``eigenpairs`` of an operator that is planned and checked, without a word where some have not
    converged.

    Returns:
        The pairs without vectors; the vectors, (k, n_local) rows; the space at the end.
    """
    operator = InRange(operator)
    space = state or first(operator, goal, block_size, capacity, start, basis)
    while True:
        space, found = advance(operator, space, goal)
        if found is not None:
            break
        if on_step:
            on_step(space)
    pairs, rows, _ = checked_pairs(operator, space, goal, found, certify)
    unit = operator.unit
    return replace(pairs, values=pairs.values * unit, residuals=pairs.residuals * unit), rows, space


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
    near = layout.local(as_tensor(given).to(operator.device, dtype))
    mixed = np.random.default_rng(goal.seed).standard_normal((max(1, block_size - 1), len(near)))
    near = torch.from_numpy(mixed).to(near) @ near
    lengths = (norms(near, layout.world) / layout.n**0.5).to(rows)[:, None]
    # One vector stays random for a while: eigenvectors that are new here have a part along it.
    rows = torch.cat([near + RANDOM_SHARE * lengths * rows[: len(near)], rows[len(near) :]])
    return replace(krylov_schur.start(operator, rows, capacity, place), patience=WARM_STEPS)


def advance(
    operator: SymmetricOperator, space: RitzSpace, goal: Goal, flags: Flags | None = None
) -> tuple[RitzSpace, WantedPairs | None]:
    """One step, then a restart, a new random vector, or at the end the pairs, as decided.

    Args:
        flags: what ranks tell each other in this step.
    """
    world = operator.layout.world
    if not space.is_finished:
        space = space.step(operator, flags)
    elif flags:  # no product, and nothing to travel with
        flags.hear(world.sum_together(flags.answers())[0])
    if not convergence.is_due(space, goal):
        return space, None
    examined = _examined(space, operator, goal)
    if examined.decision is Decision.CONTINUE and goal.tol >= LEAST_TOL_OF_EACH_RANK:
        return space, None
    decision, found, coordinates, search = world.from_first(examined)
    match decision:
        case Decision.FINISH:
            return space, found
        case Decision.RESTART:
            space = replace(krylov_schur.restarted(space, coordinates), search=search)
        case Decision.FOLLOW:
            missed = krylov_schur.vectors(space, coordinates[:, -1:])
            space = krylov_schur.refreshed(operator, space, coordinates[:, :-1], missed)
        case Decision.REFRESH | Decision.SEARCH:
            probe = gaussian_probes(
                operator.layout, [space.starts], goal.seed, operator.dtype, operator.device
            )
            searching = decision is Decision.SEARCH
            space = krylov_schur.refreshed(operator, space, coordinates, probe, searching)
    return space, None


def finished(operator: SymmetricOperator, space: RitzSpace, goal: Goal) -> WantedPairs | None:
    """The pairs of a space that was saved when it was finished; None if it was not.

    One more step would change their last bits.
    """
    if not convergence.is_due(space, goal):
        return None
    examined = operator.layout.world.from_first(_examined(space, operator, goal))
    return examined.found if examined.decision is Decision.FINISH else None


def current(operator: SymmetricOperator, space: RitzSpace, goal: Goal) -> EigenPairs:
    """The wanted pairs so far, with the residuals that the recurrence knows; no products."""
    found = operator.layout.world.from_first(_examined(space, operator, goal).found)
    floor = PRODUCT_ROUNDING * torch.finfo(operator.dtype).eps * found.scale
    residuals = np.maximum(found.residuals, floor)  # the usual rounding; not measured yet
    converged = (residuals <= goal.tol * found.scale) & ~found.in_doubt
    lower = num_lower(goal.which, goal.k, found.values)
    return EigenPairs(found.values, residuals, converged, num_lower=lower)


def _examined(space: RitzSpace, operator: SymmetricOperator, goal: Goal) -> Examined:
    eps, stated = torch.finfo(operator.dtype).eps, operator.product_error
    if stated and space.scale:
        eps = max(eps, stated / space.scale)
    return convergence.examined(space, operator.n, eps, goal)


# -- input ---------------------------------------------------------------------------------------


def sizes(
    n: int,
    k: K,
    which: Which,
    block_size: int = BLOCK_SIZE,
    basis_size: int | None = None,
    max_products: int | None = None,
) -> tuple[int, int]:
    """(basis_size, max_products), with defaults for those that are None.

    Raises:
        InputError: a number is of no use.
    """
    if which not in WHICH:
        raise InputError(f"which={which!r}: expected one of {', '.join(WHICH)}")
    if isinstance(k, tuple) and (which != "both" or len(k) != 2):
        raise InputError(
            f"k={k} with which={which!r}: expected a number, or (lower, upper) of both"
        )
    numbers: dict[str, int | None]
    numbers = {"k[0]": k[0], "k[1]": k[1]} if isinstance(k, tuple) else {"k": k}
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
    if basis_size is None:
        basis_size = BASIS_SIZE + BASIS_SIZE_PER_PAIR * pairs
    most = max_products or MAX_PRODUCTS + MAX_PRODUCTS_PER_PAIR * pairs
    return min(basis_size, n + block_size), most


def capacity_that_fits(
    operator: SymmetricOperator, capacity: int, k: K, which: Which, block_size: int
) -> int:
    """Of ``capacity`` Krylov vectors on the device so many as the memory has room for."""
    fitting = vectors_that_fit(operator.layout, operator.dtype)
    return max(least_basis(operator.n, k, which, block_size), min(capacity, fitting))


def least_basis(n: int, k: K, which: Which, block_size: int) -> int:
    """The fewest Krylov vectors that k pairs can be found with."""
    return min(sum(counts(which, k)) + LEAST_BLOCKS * block_size, n + block_size)


def expected_steps(max_products: int, block_size: int, k: K, which: Which) -> int:
    """Block products that a plan is made for."""
    numbers = counts(which, k)
    products = PER_END * sum(map(bool, numbers)) + PER_ROOT_OF_PAIRS * math.sqrt(sum(numbers))
    return max(1, min(math.ceil(products), max_products) // block_size)


def _require_operator(operator: SymmetricOperator) -> None:
    if not isinstance(operator, SymmetricOperator):
        raise InputError(
            f"eigenpairs of a {type(operator).__name__}; expected an operator such as "
            "hs.Hessian(evaluator)"
        )


def _check(operator: SymmetricOperator, tol: float, seed: int, start: Any) -> None:
    if not isinstance(tol, (int, float)) or not 0 <= tol < 1:
        raise InputError(f"tol={tol}: expected a number from 0 to 1, relative to |lambda|max")
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise InputError(f"seed={seed}: expected a whole number, 0 or more and below 2^64")
    if start is not None and not isinstance(start, BlockSpace):
        shape = tuple(np.shape(start))
        if len(shape) != 2 or shape[1] != operator.n or not shape[0]:
            raise InputError(f"start of shape {shape}; expected vectors (j, {operator.n})")
