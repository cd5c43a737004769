"""In which arithmetic a model can be differenced: float64, or less where it casts by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hessian_spectrum._core.errors import is_out_of_memory
from hessian_spectrum.loss.batching import cast
from hessian_spectrum.loss.casts import Casts
from hessian_spectrum.loss.functional import LossFunction
from hessian_spectrum.loss.samples import Piece


@dataclass(frozen=True)
class DifferenceArithmetic:
    """What differences are formed in, and with which steps."""

    dtype: torch.dtype  # of theta and the data
    eps: float  # rounding of one operation, of the lowest type that occurs
    why: str | None  # where this is not float64: what prevents it

    @property
    def is_double(self) -> bool:
        return self.why is None

    @property
    def steps(self) -> tuple[float, ...]:
        """Relative changes of the parameters: larger where rounding is larger."""
        return (1e-6, 1e-5) if self.is_double else (3e-3, 1e-2)

    @property
    def finer_steps(self) -> tuple[float, ...]:
        """Further steps, where those find a wrong gradient; none where they would be rounding."""
        if self.is_double:
            return (1e-7, 1e-8)
        return (1e-3, 3e-4) if self.eps <= torch.finfo(torch.float32).eps else ()


def arithmetic_of(function: LossFunction, pieces: tuple[Piece, ...]) -> DifferenceArithmetic:
    """Evaluate the first samples in float64, and see which types occur."""
    double, own = torch.float64, function.dtype
    if not pieces:
        return DifferenceArithmetic(double, torch.finfo(double).eps, None)
    why, lowest = None, double
    for dtype in dict.fromkeys((double, own)):
        try:
            with Casts(dtype) as casts:
                batch = cast(pieces[0].batch, dtype)
                function.loss(function.theta.to(dtype), batch, function.constants(dtype))
        except RuntimeError as failed:
            if is_out_of_memory(failed) or dtype == own:
                raise
            why = (
                f"the model cannot be evaluated in float64 ({' '.join(str(failed).split())[:150]})"
            )
            continue
        lowest = casts.lowest
        if lowest != double and why is None:
            name = str(lowest).removeprefix("torch.")
            why = f"the model or the loss casts to {name} by itself"
        return DifferenceArithmetic(dtype, torch.finfo(lowest).eps, why)
    raise AssertionError("the loop returns")
