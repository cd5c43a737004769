"""Which products of a sharded model are believed: those that agree with what they should be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_out_of_memory
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.operators.derivative_check import no_second_derivatives

if TYPE_CHECKING:
    from hessian_spectrum.sharded.hessian import ShardedHessian

SEED = 0xC4EC
UNEVEN = 1e3  # units of rounding by which u^T H v and v^T H u may differ, relative to |u| |H v|
WRONG = 0.05  # relative difference from a difference of gradients, beside that one's own error


def chosen(operator: ShardedHessian, wanted: str) -> tuple[str, list[str]]:
    """The kind of products that works, and in words what could not be verified.

    Called by every rank.

    Raises:
        InputError: none works, or what was asked for is wrong.
    """
    if wanted == "differences":
        operator.differences.calibrate()
        return "differences", []
    try:
        return "exact", _verify(operator)
    except NotExact as failed:
        if wanted == "exact":
            raise InputError(str(failed)) from failed
        why = str(failed)
    operator.differences.calibrate()
    return "differences", [f"products are differences of gradients: {why}"]


class NotExact(Exception):
    """torch has no second derivative of an operation of the model, or a wrong one."""


def _verify(operator: ShardedHessian) -> list[str]:
    ev = operator.evaluator
    u, v = gaussian_probes(ev.layout, range(2), SEED, ev.dtype, ev.device)
    failed, rows = None, torch.stack([u, v])
    try:
        hu, hv = operator.exact(rows)
    except (RuntimeError, NotImplementedError) as error:
        # Raised while the graph is made, which is alike on all ranks.
        if is_out_of_memory(error) or type(error).__name__ == "RankLost":
            raise
        failed = error
    together(ev.world, lambda: None)
    if failed is not None:
        raise NotExact(no_second_derivatives("model", failed)) from failed
    parts = [a.double() @ b.double() for a, b in ((u, hv), (v, hu), (u, u), (hu, hu), (hv, hv))]
    uhv, vhu, uu, uhu, vhv = ev.world.sum_together(torch.stack(parts))[0].tolist()
    if not all(map(math.isfinite, (uhv, vhu, uhu, vhv))):
        raise InputError(
            "Hessian products are not finite; are the derivatives of the loss finite at these "
            f"parameters in {ev.function.compute}?"
        )
    eps = ev.function.rounding
    # Errors of a product have no particular direction: u^T e is |u| |e| / sqrt(n).
    size = math.sqrt(uu * max(uhu, vhv) / max(ev.n, 1)) + abs(uhv)
    if abs(uhv - vhu) > max(UNEVEN * eps, 1e-9) * size + 1e-300 and eps < 1e-3:
        raise NotExact(
            f"Hessian products are not symmetric: u^T H v = {uhv:.9g}, v^T H u = {vhu:.9g}; does "
            "the model hold an operation whose second derivative is wrong, such as a custom "
            "autograd.Function that is once_differentiable?"
        )
    return _compared(operator, u / math.sqrt(uu), hu / math.sqrt(uu), math.sqrt(uhu / uu))


def _compared(operator: ShardedHessian, u: Tensor, hu: Tensor, size: float) -> list[str]:
    """H u beside a difference of the gradient; refused where they differ for certain."""
    differences = operator.differences
    ev = operator.evaluator
    eps = ev.function.rounding
    found = min(
        (differences.at(u, rho) for rho in (eps ** (1 / 3) / 30, eps ** (1 / 3))),
        key=lambda d: d.error,
    )
    square = ev.world.sum((found.value - hu).double().square().sum()).item()
    apart = math.sqrt(square)
    known = 3 * found.error + 3 * differences.noise_at(eps ** (1 / 3) / 30, u)
    if known > 0.3 * max(size, found.size):
        return ["second derivatives: differences of the gradient are too coarse to compare with"]
    if apart <= known + WRONG * max(size, found.size):
        return []
    raise NotExact(
        f"Hessian products would be wrong: H u differs from differences of the gradient by "
        f"{apart / max(size, found.size):.0%}; is there a custom autograd.Function that is "
        "once_differentiable, or whose backward detaches what it uses? Use differentiable "
        "operations"
    )
