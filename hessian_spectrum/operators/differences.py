"""Compare a product with differences of what it is the derivative of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from hessian_spectrum.loss.difference_arithmetic import DifferenceArithmetic

# A product may differ from a difference by ten times this, relative; so may two differences from
# each other by this, which then are a derivative.
AGREEMENT = 1e-3
COARSE = 1e-2  # the same in lower arithmetic
ROUNDING = 1e3  # units of rounding in what is differenced
CLEAR = 0.1  # rounding over a difference, from which on it says nothing


class Difference(NamedTuple):
    """(f(theta + h u) - f(theta - h u)) / 2h."""

    value: Tensor
    step: float  # h
    size: float  # |f|

    def along(self, w: Tensor) -> Difference:
        """That of w^T f, shape (1,)."""
        return Difference((w * self.value).sum().reshape(1), self.step, self.size * w.norm().item())


def steps(arithmetic: DifferenceArithmetic) -> tuple[float, float]:
    """Two steps h, for u as large as theta: the larger one first.

    In float64 so small that of all units of a minibatch few switch between the two ends.
    """
    return (1e-8, 1e-9) if arithmetic.is_double else (1e-2, 3e-3)


def misfit(
    found: Tensor, differences: Iterable[Difference], arithmetic: DifferenceArithmetic
) -> float | None:
    """The relative error of a product; 0.0 if it agrees with a difference, None if neither.

    It is wrong if two differences agree with each other, and not with it. In lower arithmetic
    nothing is called wrong: the steps are so large that many kinks pass for a derivative.
    """
    agreement = AGREEMENT if arithmetic.is_double else COARSE
    seen: list[Tensor] = []
    for value, step, size in differences:
        length, error = value.norm().item(), (found - value).norm().item()
        rounding = ROUNDING * arithmetic.eps * size / step
        is_clear = rounding <= CLEAR * length
        if error <= 10 * agreement * length + rounding and is_clear:
            return 0.0
        if arithmetic.is_double and not found.any() and length <= rounding:
            return 0.0  # f is linear
        if is_clear:
            seen.append(value)
    if len(seen) < 2 or not arithmetic.is_double:
        return None
    size = seen[-1].norm()
    if not (seen[0] - seen[1]).norm() <= agreement * size:
        return None  # a kink
    return ((found - seen[-1]).norm() / size).item()
