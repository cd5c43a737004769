r"""Products by differences of gradients, with the error that they have.

With D(h) = (g(theta + h v) - g(theta - h v)) / 2h and |v| = 1,

    H v = (4 D(h) - D(2h)) / 3 + O(h^4)        (Richardson),

and d = |D(2h) - D(h)| / 3 estimates the error of D(h). What is left has two parts. Truncation: the
terms of D's series fall as they do from H v to the first, so that the next one is 4 d^2 / |H v|.
Rounding: gradients of noise s give D(h) the noise s / (sqrt(2) h), and the extrapolation 1.36 times
that. The noise is measured once, by third differences of the gradient (Moré and Wild 2011,
SIAM J. Sci. Comput. 33, 1292-1314); a deterministic gradient repeats its rounding.

The step h = rho |theta| is chosen on a random vector and on one that a few products have turned
towards the largest eigenvalues, whose third derivatives are thousands of times as large, and which
a Krylov space contains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.random_vectors import gaussian_probes

if TYPE_CHECKING:
    from hessian_spectrum.sharded.evaluator import ShardedEvaluator

SEED, TURNS = 0x5D1F, 4  # of the vector that is turned towards large eigenvalues
SAFETY = 2.0  # rounding is an estimate of a size
# Terms of the series may grow faster than its first two: of eigenvectors of trained transformers
# the truncation was up to 8 times that of a geometric one.
STEEP = 12.0
EXPLAINED = 3.0  # d up to so many times that of the noise is noise
COARSE = 0.3  # error of a product whose direction is of use
LARGEST = 0.5  # step, relative to |theta|
SERIES = 0.05  # of the product: a larger d belongs to a step at which the series says nothing
# Steps relative to |theta|, from eps^(2/3) upwards: so many, each so many times the one before.
STEPS, RATIO = 9, 4.0
FAR = 1e2  # times the least error: larger steps are not tried
_THIRD = math.sqrt(20.0)  # variance of a third difference, in that of its terms: 1 + 9 + 9 + 1


@dataclass(frozen=True)
class Difference:
    """A product by differences."""

    value: Tensor  # this rank's entries of H v
    size: float  # |H v|
    error: float  # estimated |value - H v|


class Differences:
    """Differences of the gradient of the data's part of the loss, at one theta.

    Args:
        most: the largest error that is accepted, relative to the largest product so far.

    Attributes:
        rho: step of a unit vector over |theta|; None before the first product.
        noise: |error of a gradient|, measured.
        error: the largest error of a product with a unit vector so far.
        scale: the largest product so far.
    """

    def __init__(self, evaluator: ShardedEvaluator, theta: Tensor, most: float):
        self.evaluator, self.theta, self.most = evaluator, theta, most
        self.rho: float | None = None
        self.noise = self.error = self.scale = 0.0
        self._length = self._norm(theta) or 1.0

    def product(self, v: Tensor) -> Tensor:
        """H v, this rank's entries. Four gradients; before the first product some hundred.

        Raises:
            InputError: its error is too large.
        """
        length = self._norm(v)
        if not length:
            return torch.zeros_like(v)
        if self.rho is None:
            self.calibrate()
        assert self.rho is not None
        found = self.at(v / length, self.rho)
        self.scale, self.error = max(self.scale, found.size), max(self.error, found.error)
        self._require_fine(found)
        return found.value * length

    def calibrate(self) -> None:
        """Measure the noise of gradients, and choose the step with the least error."""
        ev = self.evaluator
        rows = gaussian_probes(ev.layout, range(2), SEED, ev.dtype, ev.device)
        plain, turned = (row / self._norm(row) for row in rows)
        eps = ev.function.rounding
        tried = [eps ** (2 / 3) * RATIO**k for k in range(STEPS)]
        tried = [rho for rho in tried if rho < LARGEST]
        self.noise = self._noise(plain, tried[0])
        of_plain = self._ladder(plain, tried)
        rho = min(of_plain, key=lambda rho: of_plain[rho].error)
        for _ in range(TURNS):
            # Larger eigenvalues have larger third derivatives, and want smaller steps.
            found = self.at(turned, rho)
            while found.error > COARSE * found.size and rho / RATIO >= tried[0]:
                rho /= RATIO
                found = self.at(turned, rho)
            turned = found.value / (found.size or 1.0)
        of_turned = self._ladder(turned, list(of_plain))
        self.rho = min(of_turned, key=lambda rho: max(of_plain[rho].error, of_turned[rho].error))
        self.scale = of_turned[self.rho].size
        # At the step that is taken rounding of theta itself may count (bfloat16).
        self.noise = max(self.noise, self._noise(plain, self.rho / 3))
        for v in (plain, turned):
            found = self.at(v, self.rho)
            self.error = max(self.error, found.error)
            self._require_fine(found)

    def _ladder(self, v: Tensor, tried: list[float]) -> dict[float, Difference]:
        """The difference for each step, upwards, until errors are far above the least one."""
        found: dict[float, Difference] = {}
        for rho in tried:
            found[rho] = replace(self.at(v, rho), value=v[:0])
            least = min(d.error for d in found.values())
            if least < found[rho].error / FAR:
                break
        return found

    def at(self, v: Tensor, rho: float) -> Difference:
        """The difference for a unit vector with the step rho |theta|.

        Where D(h) and D(2h) differ by more than ``SERIES`` of their size and noise does not explain
        it, the step is outside of the series, and the product, which is then often far too small,
        says nothing: its error is infinite.
        """
        h = rho * self._length
        near, far = self._central(v, h), self._central(v, 2 * h)
        value = (4 * near - far) / 3
        size, d = self._norm(value), self._norm(far - near) / 3
        rounding = self.noise / (math.sqrt(2) * h)
        seen = math.sqrt(1 + 0.25) * rounding / 3  # what noise alone makes of d
        if d <= EXPLAINED * seen:
            error = SAFETY * max(1.36 * rounding, 3.6 * d)
        elif d <= SERIES * size:
            error = math.hypot(SAFETY * 1.36 * rounding, STEEP * 4 * d * d / size)
        else:
            error = math.inf
        return Difference(value, size, error)

    def _central(self, v: Tensor, h: float) -> Tensor:
        ahead = self._gradient(self.theta + h * v)
        return (ahead - self._gradient(self.theta - h * v)) / (2 * h)

    def _gradient(self, theta: Tensor) -> Tensor:
        return self.evaluator.data_gradient(theta)

    def noise_at(self, rho: float, v: Tensor) -> float:
        """What the noise of gradients makes of a difference with this step, measured."""
        self.noise = max(self.noise, self._noise(v, rho / 3))
        return self.noise / (rho * self._length)

    def _noise(self, v: Tensor, rho: float) -> float:
        """|error of a gradient|, from the third difference of four on a line."""
        h = rho * self._length
        first, second, third, fourth = (
            self._gradient(self.theta + k * h * v) for k in (-3, -1, 1, 3)
        )
        return self._norm(fourth - 3 * third + 3 * second - first) / _THIRD

    def _require_fine(self, found: Difference) -> None:
        if found.error > self.most * self.scale:
            raise InputError(
                f"differences of gradients give a product of size {found.size:.3g} with an error "
                f"of {found.error:.2g}, more than {self.most:.0%} of the largest product; evaluate "
                f"in higher arithmetic (dtype, compute_dtype; now {self.evaluator.function.compute}"
                "), use products='exact', or accept more by max_error="
            )

    def _norm(self, v: Tensor) -> float:
        square = v.double().square().sum()
        return math.sqrt(self.evaluator.world.sum(square).item())
