"""What a point of the loss is: by its gradient, certified eigenvalues, and higher-order terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.algorithms.eigenpairs import eigenpairs
from hessian_spectrum.algorithms.residual_check import arithmetic_error
from hessian_spectrum.analyses.critical_terms import lines
from hessian_spectrum.distributed.arrays import length
from hessian_spectrum.krylov.dense_eigen import eigh
from hessian_spectrum.landscape.results.critical_points import CriticalPoint
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.curvature import Hessian
from hessian_spectrum.operators.linearization import ProductPlan

Array = NDArray[np.float64]

TOL = 1e-8  # |gradient| over |lambda|max and the parameters' size
COARSE = 16.0  # times eps: a gradient that cannot be told from 0, in these units
DENSE = 300  # parameters up to which the whole spectrum is computed
AT_ONCE = 32  # products for it; more take memory, and no less time
K = 10
PAIRS_TOL = 1e-9  # residual over |lambda|max, where only the ends are computed
SCALE_TOL = 1e-2
ROUNDING = 32.0  # times eps and the root of n: least noise of eigenvalues over |lambda|max
NOISE = 10.0  # times a product's measured rounding error
# An eigenvalue counts where it is so many times what a Newton step changes it by. Beside a point
# where it is 0 a step halves it (order 3), or leaves less (4/9 and down to 1/e, higher orders).
DRIFT = 3.0
CHANGES = 32  # eigenvalues for which that change is measured, those next to 0 first


@dataclass(frozen=True)
class Spectrum:
    """Both ends of a spectrum, or all of it; the same on every rank."""

    values: Array  # (k,), ascending
    residuals: Array  # (k,)
    vectors: Array  # (k, n), rows
    floor: float  # noise of the products
    is_whole: bool
    lower: int  # how many of the pairs are of the lower end; the others are of the upper one
    certified: bool  # no eigenvalue farther out is missing
    products: int


def classify(
    ev: Evaluator,
    theta: Tensor | None = None,
    *,
    tol: float | None = None,
    k: int = K,
    max_products: int | None = None,
    seed: int = 0,
) -> CriticalPoint:
    """Is this point critical, and if so a minimum, a maximum or a saddle?

    1. Critical where |gradient| <= tol |lambda|max max(1, |theta|): scaling the loss changes
       nothing. Where the arithmetic cannot tell, since ``tol`` is below 16 eps, that is the answer.
    2. Eigenvalues, all of them up to 300 parameters and otherwise ``k`` at each end, are told from
       0 where they exceed a noise floor: the residual, the products' measured rounding error, and
       three times what a Newton step to the critical point nearby, or one of 16 eps
       max(1, |theta|) if that is longer, changes the eigenvalue by. Those of both signs make a
       saddle; all of one sign a strict minimum or maximum.
    3. Otherwise, in float64, derivatives of orders 3 and 4 along null directions decide. A line on
       which the loss falls excludes a minimum. Lines on which it rises are enough only where
       D3(u, u, .) stays within the null space (Lyapunov-Schmidt: then no curve does better to this
       order), and so (y - x^2)(y - 3 x^2) is undecided at 0.

    Args:
        theta: shape (n,), the same on every rank; default: the model's own parameters.
        tol: of the gradient, as in 1. Default: 1e-8 in float64, 16 eps in float32.
        k: eigenpairs at each end of a spectrum that is not computed whole.
        max_products: of the search for eigenpairs; default: as ``hs.eigenpairs``.
        seed: of its random vectors.

    Returns:
        A CriticalPoint; ``str`` of it says in one sentence what it is and how sure that is. To
        store it: ``hs.save("critical.h5", hs.CriticalPoints.of([point]))``.

    Raises:
        InputError: an argument is of no use, or differs between ranks.

    Cost: one gradient and n products up to 300 parameters, otherwise those of ``hs.eigenpairs``;
    two products for up to 32 eigenvalues next to 0; with null directions five for each line: 1 line
    of one direction, 8 of two, 2 m, at most 48, of m.
    """
    require_whole(1, k=k)
    least = COARSE * torch.finfo(ev.dtype).eps
    tol = max(TOL, least) if tol is None else tol
    if not math.isfinite(tol) or tol <= 0:
        raise InputError(f"tol={tol}: expected a finite number above 0")
    theta = ev.checked(theta)
    try:
        return _classified(ev, theta, tol, k, max_products, seed)
    except FloatingPointError:
        return _point("not finite")


def _classified(
    ev: Evaluator, theta: Tensor, tol: float, k: int, most: int | None, seed: int
) -> CriticalPoint:
    loss, gradient = ev.loss(theta).item(), _double(ev.gradient(theta))
    norm = float(np.linalg.norm(gradient))
    if not math.isfinite(norm):
        return _point("not finite", loss=loss)
    matrix = hessian(ev, theta).in_float64()
    found = _spectrum(matrix, k, most, seed)
    scale, size = float(np.abs(found.values).max()), max(1.0, theta.double().norm().item())
    distance = norm / scale if scale else (math.inf if norm else 0.0)
    told: dict[str, Any]
    told = {"loss": loss, "gradient_norm": norm, "distance": distance, "products": found.products}
    told |= _ends(found)
    coarse = COARSE * torch.finfo(ev.dtype).eps
    if distance > max(tol, coarse) * size:
        return _point("not critical", **told)
    if tol < coarse:
        return _point("undecided", "too coarse", **told)
    floors, more = _floors(ev, theta, found, gradient)
    told["products"] += more
    signs = np.where(np.abs(found.values) > floors, np.sign(found.values), 0.0)
    return _by_signs(ev, theta, found, signs, floors, told)


def _by_signs(
    ev: Evaluator,
    theta: Tensor,
    found: Spectrum,
    signs: Array,
    floors: Array,
    told: dict[str, Any],
) -> CriticalPoint:
    negative, positive = int((signs < 0).sum()), int((signs > 0).sum())
    null = int((signs == 0).sum())
    # Those that were not computed lie between the two ends.
    unknown = 0 if found.is_whole else ev.n - len(signs)
    rest = _signs_between(found, signs) if unknown else {0.0}
    told |= {
        "floor": float(floors[signs == 0].max(initial=found.floor)),
        "negative": negative + (unknown if rest == {-1.0} else 0),
        "negative_most": negative + null + (unknown if rest & {-1.0, 0.0} else 0),
        "null": null,
    }
    if negative and positive:
        return _point("saddle", order=2, **told)
    if not found.certified:
        return _point("undecided", "eigenvalues", **told)
    if not null and len(rest - {0.0}) <= 1 and (not unknown or 0.0 not in rest):
        return _point("minimum" if positive else "maximum", order=2, **told)
    return _by_lines(ev, theta, found, signs, told, all_null=not unknown or 0.0 not in rest)


def _by_lines(
    ev: Evaluator,
    theta: Tensor,
    found: Spectrum,
    signs: Array,
    told: dict[str, Any],
    all_null: bool,
) -> CriticalPoint:
    """By the terms of orders 3 and 4; no two eigenvalues have certified signs that differ."""
    if ev.dtype != torch.float64:
        return _point("undecided", "float32", **told)
    null = found.vectors[signs == 0]
    if not len(null):
        return _point("undecided", "eigenvalues", **told)
    size = max(1.0, length(theta) / ev.n**0.5)

    def product(t: float, u: Array) -> Array:
        told["products"] += 1
        direction = torch.from_numpy(u).to(theta)
        return _double(Hessian(ev, theta + t * direction) @ direction)

    terms = lines(product, null, told["floor"], size, told["loss"])
    # With curvature, what is excluded is the minimum or maximum of that sign; without, one of the
    # two remains where the loss falls, or rises, on all lines.
    possible = set(signs[signs != 0]) or {-1.0, 1.0}
    kinds = {1.0: "minimum", -1.0: "maximum"}
    verdicts = {sign: terms.verdict(sign) for sign in sorted(possible)}
    if all(verdict == "excluded" for verdict in verdicts.values()):
        return _point("saddle", order=terms.order, **told)
    strict = [kinds[sign] for sign, verdict in verdicts.items() if verdict == "strict"]
    if not terms.examined or not all_null:
        return _point("undecided", "null directions", **told)
    if not strict:
        return _point("undecided", "flat", **told)
    if terms.bends:
        return _point("undecided", "straight lines", **told)
    return _point(strict[0], order=terms.order, **told)


# -- eigenvalues -----------------------------------------------------------------------------


def hessian(ev: Evaluator, theta: Tensor) -> Hessian:
    """The Hessian; where it is formed whole, several products at once, always in the same way.

    No plan is measured: points are the same on any number of ranks, and after a resume.
    """
    made = Hessian(ev, theta)
    if ev.n > DENSE:
        return made
    return made.planned(ProductPlan("reverse-batched", chunk=AT_ONCE))


def _spectrum(matrix: SymmetricOperator, k: int, most: int | None, seed: int) -> Spectrum:
    return whole_spectrum(matrix) if matrix.n <= DENSE else _both_ends(matrix, k, most, seed)


def whole_spectrum(matrix: SymmetricOperator) -> Spectrum:
    """The whole spectrum; noise is the asymmetry and the rounding of the products."""
    n = matrix.n
    products = _double(matrix @ torch.eye(n, dtype=matrix.dtype, device=matrix.device))
    if not np.isfinite(products).all():
        matrix.raise_failure()
        raise FloatingPointError("the Hessian is not finite")
    unit = 2.0 ** math.frexp(float(np.abs(products).max()))[1]
    values, columns = eigh((products + products.T) / (2 * unit))
    values, vectors = matrix.layout.world.from_first((values * unit, columns.T.copy()))
    asymmetry = float(np.linalg.norm(products - products.T, 2))
    scale = float(np.abs(values).max())
    floor = NOISE * asymmetry + ROUNDING * n**0.5 * torch.finfo(torch.float64).eps * scale
    residuals = np.full(n, floor)
    return Spectrum(values, residuals, vectors, floor, True, n, True, n)


def scale_of(matrix: SymmetricOperator) -> float:
    """|lambda|max, by one eigenpair to a few per cent."""
    found = eigenpairs(matrix, 1, "magnitude", SCALE_TOL, copies=False, vectors=False)
    return float(np.abs(found.values).max())


def _both_ends(matrix: SymmetricOperator, k: int, most: int | None, seed: int) -> Spectrum:
    k = min(k, matrix.n // 2)
    counts = matrix.evaluator.counts if isinstance(matrix, Hessian) else None
    before = counts.products if counts else 0
    pairs = eigenpairs(
        matrix, k, "both", PAIRS_TOL, seed=seed, max_products=most, certify=True, vectors=True
    )
    assert pairs.vectors is not None and pairs.num_lower is not None
    vectors = np.asarray(pairs.vectors, dtype=np.float64)
    scale = float(np.abs(pairs.values).max())
    rows = torch.from_numpy(vectors[[0, -1]]).to(matrix.device, matrix.dtype)
    error = arithmetic_error(matrix, matrix.layout.local(rows), seed)
    floor = NOISE * error + ROUNDING * matrix.n**0.5 * torch.finfo(torch.float64).eps * scale
    count = counts.products - before if counts else 0
    return Spectrum(
        pairs.values,
        np.maximum(pairs.residuals, floor),
        vectors,
        floor,
        False,
        pairs.num_lower,
        bool(pairs.converged.all()),
        count,
    )


def _signs_between(found: Spectrum, signs: Array) -> set[float]:
    """Signs that the eigenvalues between the computed ends may have."""
    low, high = signs[found.lower - 1], signs[found.lower]
    return {sign for sign in (-1.0, 0.0, 1.0) if low <= sign <= high}


def _floors(ev: Evaluator, theta: Tensor, found: Spectrum, gradient: Array) -> tuple[Array, int]:
    """(k,), what each eigenvalue must exceed; and the products that this took.

    Residuals, and what a Newton step changes the eigenvalue by, measured for those next to 0.
    """
    floors = found.residuals.copy()
    clear = np.abs(found.values) > floors
    if not clear.any():
        return floors, 0
    rows = found.vectors[clear]
    step = -((rows @ gradient) / found.values[clear]) @ rows
    size = max(1.0, theta.double().norm().item())
    least, length = COARSE * torch.finfo(ev.dtype).eps * size, float(np.linalg.norm(step))
    if length < least:  # the gradient is rounding: in no direction that is known
        step = np.random.default_rng(0).standard_normal(len(step))
        step *= least / np.linalg.norm(step)
    elif length > size:  # the step of an eigenvalue that is next to nothing: no farther than theta
        step *= size / length
    nearest = np.flatnonzero(clear)[np.argsort(np.abs(found.values[clear]))][:CHANGES]
    vectors = torch.from_numpy(found.vectors[nearest].T.copy())
    moved = theta.double() + torch.from_numpy(step).to(theta.device)
    pair = [Hessian(ev, point).in_float64() for point in (theta, moved.to(theta))]
    images = [_double(matrix @ vectors.to(matrix.device, matrix.dtype)) for matrix in pair]
    changes = np.abs(np.einsum("nk,kn->k", images[1] - images[0], found.vectors[nearest]))
    floors[nearest] = np.maximum(floors[nearest], DRIFT * changes)
    return floors, 2 * len(nearest)


def _ends(found: Spectrum) -> dict[str, Any]:
    return {
        "eigenvalues": found.values if found.is_whole else None,
        "smallest": float(found.values[0]),
        "smallest_residual": float(found.residuals[0]),
        "largest": float(found.values[-1]),
        "largest_residual": float(found.residuals[-1]),
    }


def _point(kind: str, reason: str = "decided", **told: Any) -> CriticalPoint:
    unknown = dict.fromkeys(
        (
            *("loss", "gradient_norm", "distance", "smallest", "smallest_residual", "largest"),
            *("largest_residual", "floor", "negative", "negative_most"),
        ),
        math.nan,
    )
    whole = told.pop("eigenvalues", None)
    numbers = {**unknown, "null": 0.0, "order": 0.0, "products": 0.0, **told}
    numbers = {name: float(x) for name, x in numbers.items()}
    return CriticalPoint(kind, reason, **numbers, eigenvalues=whole)


def _double(tensor: Tensor) -> Array:
    found: Array = tensor.detach().double().cpu().numpy()
    return found
