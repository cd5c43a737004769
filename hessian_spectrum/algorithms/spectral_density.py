"""Operator -> spectral measure: stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms import leave_group_out
from hessian_spectrum.algorithms.budget import Estimator, choose
from hessian_spectrum.algorithms.residual_check import errors_of
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.distributed.world import Flags
from hessian_spectrum.krylov import block_lanczos, lanczos
from hessian_spectrum.krylov.state import ProbeState
from hessian_spectrum.krylov.storage import Place
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.operators.same_call import place_of, require_same_computation, vectors_of
from hessian_spectrum.operators.transforms import Restricted, products_of_blocks
from hessian_spectrum.planning.planned_operator import planned
from hessian_spectrum.spectral.arithmetic import Arithmetic
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.held_out_probes import certified
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import Array, BlockRule

LEAST_SCALE = 1e-140  # of products: their squares, and those of their rounding, are summed
# Steps after which the error is compared with its target: the overshoot is at most a fifth.
TARGET_CHECKS = tuple(accumulate(range(40), lambda m, _: math.ceil(1.2 * m), initial=4))


def spectral_density(
    operator: SymmetricOperator,
    num_probes: int | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    *,
    estimator: Estimator = "block",
    num_products: int | None = None,
    target_error: float | None = None,
    sigma2: float | None = None,
    data_groups: int | None = None,
    basis: Place = "device",
    state: ProbeState | None = None,
    on_step: Callable[[ProbeState], None] | None = None,
    flags: Flags | None = None,
    on_group: Callable[[], None] | None = None,
) -> SpectralMeasure:
    """The operator's spectral measure, by Lanczos quadrature from random vectors.

    Each of the b probes z, uniform on the sphere, gives a Gauss rule of ``f -> z^T f(A) z``,
    whose mean over z is tr f(A) / n (Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38 (2017)).

    Products of a curvature matrix that was made without ``plan=`` are formed in the fastest way
    that fits the memory, as the command line plans them; the operator itself is not changed.

    Args:
        num_probes: b, the block size. Any of num_probes, num_steps and num_products that is None is
            chosen: see budget.py.
        num_steps: m; at most the operator's size.
        seed: of the probes, below 2^64; the same seed gives the same answer at every world size.
        estimator: "block": all probes share one block Krylov space, and eigenvalues that the
            others have found are projected out of each probe and counted exactly
            (held_out_probes.py): for the same products a density several times as accurate.
            "slq": independent recurrences in lockstep (Ghorbani, Krishnan and Xiao 2019, algorithm
            1, except that every recurrence is fully reorthogonalized here). "lean": block
            quadrature that keeps only three blocks of vectors, without reorthogonalization.
        num_products: b m. Default: 180; with a target, the most that may be spent, 1,800.
        target_error: stop as soon as the expected L1 error of the density smoothed with
            ``sigma2`` is this small (``SpectralMeasure.density_error``).
        sigma2: variance of the smoothing that ``target_error`` refers to. Default: that of
            ``SpectralMeasure.default_sigma2``.
        data_groups: K; each of so many random groups of the samples is left out in turn, for
            ``SpectralMeasure.data_error``: the standard error over data sets of this size. 8 to 20
            are enough.
        basis: where the Krylov vectors live: "device", "host", or a folder on a disk.
        state: the state to continue from, as ``on_step`` was given it.
        on_step: called with the state after each step, on every rank.
        flags: what ranks tell each other, sent with a reduction that each step makes anyway.
        on_group: called after each of the data groups, on every rank.

    Raises:
        InputError: an argument is of no use, or differs between ranks.

    Cost: one exchange at the start; b m products in m passes over the data; b (m + 1) n / P entries
    on each of P ranks. In float32 four products more, and four in float64 where the operator has
    them (``with_product_error``). The block estimator adds O((b m)^3) flops of dense algebra for
    each of up to 24 groups of probes.
    ``data_groups``: once more as many products and passes, however many groups.
    """
    _require_operator(operator)
    require_same_computation(
        operator,
        "spectral_density",
        num_probes=num_probes,
        num_steps=num_steps,
        seed=seed,
        estimator=estimator,
        num_products=num_products,
        target_error=target_error,
        sigma2=sigma2,
        data_groups=data_groups,
        basis=place_of(basis),
        state=vectors_of(state),
    )
    _check_seed(seed)
    if sigma2 is not None and not 0 < sigma2 < np.inf:
        raise InputError(f"sigma2={sigma2}: expected a variance, more than 0")
    if sigma2 is not None and target_error is None:
        raise InputError("sigma2 without target_error changes nothing here; leave it out")
    num_probes, num_steps = choose(
        operator.n, estimator, num_probes, num_steps, num_products, target_error
    )
    groups = []
    if data_groups is not None:
        groups = leave_group_out.groups_of(operator, estimator, data_groups, seed)
    operator = planned(
        operator,
        num_probes,
        num_steps if data_groups is None else 2 * num_steps,
        kept=_held_on_device(
            basis, vectors_kept(operator.n, estimator, num_probes, num_steps), num_probes
        ),
    )
    if state is None:
        state = start(operator, estimator, num_probes, num_steps, seed, basis)
    while not is_done(state, operator, num_steps, target_error, sigma2):
        state = state.step(operator, flags)
        if on_step:
            on_step(state)
    found = with_product_error(measure(state, operator), state, operator, seed)
    if not groups:
        return found
    assert isinstance(operator, Curvature)  # groups_of has checked
    return replace(
        found, replicates=leave_group_out.replicates(operator, state, found, groups, on_group)
    )


def start(
    operator: SymmetricOperator,
    estimator: Estimator,
    num_probes: int,
    num_steps: int,
    seed: int,
    basis: Place = "device",
) -> ProbeState:
    """The state before the first step, with room for ``num_steps``."""
    probes = _probes(operator, num_probes, seed)
    if estimator == "slq":
        return lanczos.start(operator, probes, num_steps, basis)
    return block_lanczos.start(operator, probes, num_steps, basis, lean=estimator == "lean")


def is_done(
    state: ProbeState,
    operator: SymmetricOperator,
    num_steps: int,
    target_error: float | None = None,
    sigma2: float | None = None,
) -> bool:
    """Whether all steps are made, no step can add a direction, or the target is reached."""
    if state.num_steps >= num_steps or state.is_finished:
        return True
    return target_error is not None and _reached(state, operator, target_error, sigma2)


def _probes(operator: SymmetricOperator, num_probes: int, seed: int) -> Tensor:
    return gaussian_probes(
        operator.layout, range(num_probes), seed, operator.dtype, operator.device
    )


def vectors_kept(n: int, estimator: Estimator, num_probes: int, num_steps: int) -> int:
    """How many Krylov vectors a run holds at once."""
    if estimator == "lean":
        return min(3 * num_probes, n)
    every = num_probes * (num_steps + 1)
    return every if estimator == "slq" else min(every, n)


def _held_on_device(basis: Place, vectors: int, together: int) -> int:
    """Krylov vectors on the device: all, or those of one block product."""
    return vectors if basis == "device" else together


def _reached(
    state: ProbeState, operator: SymmetricOperator, target_error: float, sigma2: float | None
) -> bool:
    """Whether the density's expected error has reached its target.

    Rank 0 decides, since dense algebra may round differently on another processor; at some steps
    only, since it takes O(N^3).
    """
    if state.num_steps not in TARGET_CHECKS:
        return False
    world, enough, error = operator.layout.world, False, None
    if world.rank == 0:
        try:
            enough = measure(state, operator).density_error(sigma2).total <= target_error
        except Exception as failed:  # raised on all ranks, which would wait otherwise
            error = failed
    world.raise_together(error)
    return world.any(enough)


def spectral_densities(
    operator: SymmetricOperator,
    blocks: Mapping[str, str | Sequence[str] | Tensor],
    num_probes: int = 10,
    num_steps: int = 90,
    seed: int = 0,
    *,
    basis: Place = "device",
    on_step: Callable[[int], None] | None = None,
) -> dict[str, SpectralMeasure]:
    """The spectral measures of many diagonal blocks of one operator, each pass serving all.

    ``{name: spectral_density(Restricted(operator, patterns))}``, with one block product a step for
    the probes of all blocks. A block smaller than ``num_steps`` takes as many steps as its size.

    Args:
        blocks: name patterns of parameters by label, or entries of theta, as ``layer_blocks`` and
            ``parameter_blocks`` give them.
        num_probes, num_steps, seed, basis: as for ``spectral_density``, for each block.
        on_step: called with the number of steps done, on every rank.

    Cost: b m products for each block, in m passes over the data; b (m + 1) n_block / P entries for
    each block.
    """
    if not isinstance(blocks, Mapping) or not blocks:
        raise InputError("blocks: expected name patterns by label, such as {'first': 'layer1.*'}")
    _require_operator(operator)
    require_same_computation(
        operator,
        "spectral_densities",
        blocks={n: vectors_of(b) if isinstance(b, Tensor) else b for n, b in blocks.items()},
        num_probes=num_probes,
        num_steps=num_steps,
        seed=seed,
        basis=place_of(basis),
    )
    _check_seed(seed)
    choose(operator.n, "slq", num_probes, num_steps)
    sizes = [_block(operator, block).n for block in blocks.values()]
    kept = math.ceil(num_probes * (num_steps + 1) * sum(sizes) / operator.n)
    together = num_probes * len(blocks)
    operator = planned(operator, together, num_steps, kept=_held_on_device(basis, kept, together))
    restricted = {name: _block(operator, block) for name, block in blocks.items()}
    states = {
        name: lanczos.start(block, _probes(block, num_probes, seed), min(num_steps, block.n), basis)
        for name, block in restricted.items()
    }
    for done in range(1, num_steps + 1):
        going = [
            name
            for name, state in states.items()
            if state.num_steps < restricted[name].n and not state.is_finished
        ]
        if not going:
            break
        products = products_of_blocks(
            [restricted[name] for name in going],
            [states[name].next_vectors.to(operator.device) for name in going],
        )
        for name, product in zip(going, products):
            states[name] = states[name].extended(restricted[name], product)
        if on_step:
            on_step(done)
    return {name: measure(states[name], block) for name, block in restricted.items()}


def _block(operator: SymmetricOperator, block: str | Sequence[str] | Tensor) -> Restricted:
    if isinstance(block, Tensor):
        return Restricted(operator, entries=block)
    return Restricted(operator, block)


def layer_blocks(operator: SymmetricOperator) -> dict[str, list[str]]:
    """The parameters of each layer, by the layer's name: ``fc.weight`` and ``fc.bias`` are "fc"."""
    blocks: dict[str, list[str]] = {}
    for name in operator.layout.names:
        blocks.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return blocks


def _require_operator(operator: SymmetricOperator) -> None:
    if not isinstance(operator, SymmetricOperator):
        raise InputError(
            f"spectral_density of a {type(operator).__name__}; expected an operator such as "
            "hs.Hessian(evaluator)"
        )


def _check_seed(seed: int) -> None:
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise InputError(f"seed={seed}: expected a whole number, 0 or more and below 2^64")


def measure(state: ProbeState, operator: SymmetricOperator) -> SpectralMeasure:
    """The spectral measure that the recurrences give so far; no products.

    Raises:
        InputError: squares of the eigenvalues, which it is computed from, are no numbers.
    """
    if state.scale and not LEAST_SCALE < state.scale < 1 / LEAST_SCALE:
        raise InputError(
            f"the operator's products are of size {state.scale:.1e}, and float64 does not hold the "
            "squares of such numbers; multiply the loss, or the matrix, by a constant"
        )
    eps = torch.finfo(operator.dtype).eps
    # A residual below the error of a product is not known to be real.
    stated = operator.product_error
    floor, tolerance = (max(max(f * eps, state.noise) * state.scale, stated) for f in (1, 10))
    rules = [BlockRule(*matrix, tolerance) for matrix in state.reduced()]
    if state.can_hold_out_probes:
        found = certified(rules[0], operator.n, floor)
    else:
        found = SpectralMeasure.of_rules(rules, operator.n, floor)
    length = found.frobenius_norm / operator.n**0.5  # root mean square of |A z| for unit z
    error = max(max(eps, state.noise) * length, stated)
    is_double = operator.dtype == torch.float64
    return replace(found, arithmetic=Arithmetic(error, eps, is_double))


def with_product_error(
    found: SpectralMeasure, state: ProbeState, operator: SymmetricOperator, seed: int = 0
) -> SpectralMeasure:
    """``found`` with the error of products, where there are such in float64 measured against these.

    |E|_F / sqrt(n) of the difference E: of Ritz vectors, since an error of a large eigenvalue
    hardly shows in others, and of new random vectors, which see the rest. Of the Ritz vectors two
    sums with random signs are multiplied, whose squared error has the sum of theirs as its mean.

    Cost: four products, and four in float64; none where there are none in float64.

    Raises:
        FloatingPointError: a product is not finite; on every rank.
    """
    exact = operator.in_float64()
    if exact is operator:
        return found
    layout, k = operator.layout, found.num_probes
    basis = state.to_arrays().vectors
    mix = layout.world.from_first(_sums_of_ritz_vectors(found, basis.shape[1], seed))
    krylov = torch.from_numpy(mix).to(basis) @ basis.flatten(0, 1) / len(basis) ** 0.5
    random = gaussian_probes(layout, range(k, k + 2), seed, operator.dtype, operator.device)
    rows = torch.cat([krylov.to(random), random]) / layout.n**0.5
    product = operator.products(rows).double()
    operator.forget()  # there may be no room for both
    errors = errors_of(product, exact, rows)
    error = (errors.square().sum().item() / 2) ** 0.5
    if not math.isfinite(error):
        operator.raise_failure()
        raise FloatingPointError("a product is not finite where float32 and float64 are compared")
    own = found.arithmetic
    assert own is not None  # of ``measure``
    error = max(error, own.product_error)
    return replace(found, arithmetic=Arithmetic(error, own.vector_rounding, True))


def _sums_of_ritz_vectors(found: SpectralMeasure, held: int, seed: int) -> Array:
    """(2, rules * held), coordinates of sums with random signs; of what is held of the basis."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (2, len(found.rules), held))
    for i, rule in enumerate(found.rules):
        order = len(rule.t)
        if order <= held:
            signs[:, i, :order] = signs[:, i, :order] @ rule.eigen[1].T
            signs[:, i, order:] = 0.0
    return signs.reshape(2, -1)


def repeat_error(operator: SymmetricOperator, seed: int = 0) -> float:
    """|A q - (A q)'| / |A q| of one random vector multiplied twice; 0.0 if deterministic.

    Cost: two products.
    """
    q = gaussian_probes(operator.layout, [0], seed, operator.dtype, operator.device)
    once, again = operator.products(q), operator.products(q)
    squares = torch.stack([(once - again).double().square().sum(), once.double().square().sum()])
    difference, norm = operator.layout.world.sum(squares).sqrt().tolist()
    if not math.isfinite(norm):
        operator.raise_failure()
    return difference / norm if norm else 0.0


def extremes(measure: SpectralMeasure, tol: float = 1e-3) -> EigenPairs:
    """The smallest and the largest Ritz value of a density run, with their residual bounds.

    Ritz values lie inside the spectrum, so lambda_min <= values[0] and values[1] <=
    lambda_max, and an eigenvalue lies within ``residuals`` of each. No products.

    Args:
        tol: converged where the residual is at most tol * |lambda|max.
    """
    ends = [0, len(measure.nodes) - 1]
    values, residuals = measure.nodes[ends], measure.residuals[ends]
    converged = residuals <= tol * np.abs(values).max()
    return EigenPairs(values, residuals, converged, num_lower=1)
