"""Residuals of converged pairs, checked by products with their vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum.algorithms.convergence import PRODUCT_ROUNDING, Goal, WantedPairs
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov import krylov_schur
from hessian_spectrum.krylov.krylov_schur import RitzSpace
from hessian_spectrum.krylov.ritz import num_lower
from hessian_spectrum.krylov.state import Array
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.spectral.eigenpairs import EigenPairs

NUM_COMBINATIONS = 2  # products that check all residuals together
ROWS_PER_PRODUCT = 8  # vectors in one block product, where each pair gets a product of its own
ODD = 1.3  # no power of two: products with v and with ODD v round differently
TOGETHER = 2**28  # bytes of vectors in one block product that checks others
MISFIT_ACCEPTED = 2.0  # misfit over the recurrence's residuals up to which these are accepted


def checked_pairs(
    operator: SymmetricOperator,
    space: RitzSpace,
    goal: Goal,
    found: WantedPairs,
    certify: bool = False,
    on_products: Callable[[int], None] = lambda count: None,
) -> tuple[EigenPairs, Tensor, float]:
    """The wanted pairs of a finished run, with residuals that products have confirmed.

    Args:
        certify: a product in float64 for each pair: values are Rayleigh quotients, residuals
            |A v - value v|, both in float64. Otherwise a few products with random combinations of
            all pairs, in the operator's arithmetic and, if that is float32, again: in float64 or,
            where there are no such products, rounded differently.
        on_products: called with their number after every block product of the second kind, on all
            ranks.

    Returns:
        (pairs, this rank's entries of their vectors, the error of float32 in each residual).
    """
    world, values, added = operator.layout.world, found.values, 0.0
    in_doubt = found.in_doubt
    rows = krylov_schur.vectors(space, found.coordinates).to(operator.device)
    rows /= norms(rows, world).to(rows)[:, None]
    if certify:
        operator.forget()
        values, residuals = _rayleigh_quotients(
            operator.in_float64(), rows, found.scale, on_products
        )
        order = np.argsort(values, kind="stable")
        values, residuals, rows = values[order], residuals[order], rows[torch.from_numpy(order)]
        in_doubt = in_doubt[order]
    else:
        residuals = _checked_residuals(operator, rows, found, goal.seed)
        if operator.dtype != torch.float64 or operator.in_float64() is not operator:
            added = arithmetic_error(operator, rows, goal.seed)
            on_products(NUM_COMBINATIONS)
            residuals = residuals + added
    # A misfit shows what products have in common with themselves: an error of their own is added.
    stated = operator.product_error
    added, residuals = added + stated, residuals + stated
    converged = (residuals <= goal.tol * found.scale) & ~in_doubt
    lower = num_lower(goal.which, goal.k, values)
    return EigenPairs(values, residuals, converged, num_lower=lower), rows, added


def _checked_residuals(
    operator: SymmetricOperator, rows: Tensor, found: WantedPairs, seed: int
) -> Array:
    """|A v - theta v| of each row: the recurrence's value, where two products confirm it.

    Of u = sum_i s_i v_i / r_i with random signs s the misfit has the mean square
    sum_i |A v_i - theta_i v_i|^2 / r_i^2, k if the residuals r are right: a small one that is wrong
    shows beside large ones. With r_i at least ``rounding``, misfit / sqrt(k) * rounding is the
    measured error of a product with a unit vector, or more: it is the least residual returned.
    """
    values, eps = found.values, torch.finfo(operator.dtype).eps
    residuals = np.maximum(found.residuals, eps * found.scale)
    rounding = PRODUCT_ROUNDING * eps * (found.scale or 1.0)  # 1.0: of a matrix that is zero
    units = np.maximum(residuals, rounding)
    mix = _signs(seed, len(values)) / units
    u, expected = (torch.from_numpy(m).to(rows) @ rows for m in (mix, mix * values))
    misfits = norms(_products(operator, u) - expected, operator.layout.world)
    misfit = misfits.max().item() / len(values) ** 0.5
    if misfit <= MISFIT_ACCEPTED:
        return np.maximum(residuals, misfit * rounding)
    each = []
    for part in _parts(len(rows)):
        expected = rows[part] * torch.from_numpy(values[part]).to(rows)[:, None]
        each.append(norms(_products(operator, rows[part]) - expected, operator.layout.world))
    return np.maximum(torch.cat(each).cpu().numpy(), eps * found.scale)


def arithmetic_error(operator: SymmetricOperator, rows: Tensor, seed: int) -> float:
    """sqrt(sum_i |e_i|^2) with e_i the rounding error of row i's product.

    Estimated as the larger of two random signed sums u of the rows, whose squared error has that
    mean: no e_i is larger. The error is the difference from products in float64. An operator that
    has none multiplies 1.3 u instead: the difference of the two products, whose rounding errors
    are independent, is sqrt(2) times as large.

    Cost: two products, and two in float64 or with 1.3 u.
    """
    u = torch.from_numpy(_signs(seed, len(rows))).to(rows) @ rows
    product, exact = _products(operator, u).double(), operator.in_float64()
    if exact is operator:
        return _errors(_products(operator, ODD * u).double() / ODD - product, operator)
    operator.forget()  # there may be no room for both
    return float(errors_of(product, exact, u).max())


def errors_of(product: Tensor, exact: SymmetricOperator, rows: Tensor) -> Tensor:
    """|e| of each row, float64, with e the difference of its product from that with ``exact``.

    As many rows at a time as ``TOGETHER`` bytes hold, one of a large model: a block product keeps
    what its derivatives need for all of its vectors at once.

    Raises:
        FloatingPointError: a product is not finite; on every rank.
    """
    together = max(1, TOGETHER // (exact.dtype.itemsize * exact.n))
    return torch.cat(
        [
            norms(_products(exact, part.to(exact.dtype)) - given, exact.layout.world)
            for part, given in zip(rows.split(together), product.split(together))
        ]
    )


def _errors(differences: Tensor, operator: SymmetricOperator) -> float:
    return float(norms(differences, operator.layout.world).max())


def _rayleigh_quotients(
    exact: SymmetricOperator, rows: Tensor, scale: float, on_products: Callable[[int], None]
) -> tuple[Array, Array]:
    """(rho = v A v^T, |v A - rho v|) of each row."""
    world, found = exact.layout.world, []
    for part in _parts(len(rows)):
        v = rows[part].to(exact.dtype)
        v /= norms(v, world).to(v)[:, None]
        product = _products(exact, v)
        rho = world.sum((v * product).double().sum(1))
        lengths = norms(product - rho.to(v)[:, None] * v, world)
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
    return np.random.default_rng(seed).choice([-1.0, 1.0], (NUM_COMBINATIONS, k))


def _parts(k: int) -> list[slice]:
    return [slice(i, i + ROWS_PER_PRODUCT) for i in range(0, k, ROWS_PER_PRODUCT)]


def norms(rows: Tensor, world: World) -> Tensor:
    """|v| of each row, float64; one small reduction."""
    return world.sum(rows.double().square().sum(1)).sqrt()
