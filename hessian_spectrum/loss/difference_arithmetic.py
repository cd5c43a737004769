"""In which arithmetic a model can be differenced: float64, or less where it casts by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hessian_spectrum._core.errors import is_out_of_memory
from hessian_spectrum.loss.batching import cast
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


def arithmetic_of(function: LossFunction, pieces: tuple[Piece, ...]) -> DifferenceArithmetic:
    """Evaluate the first samples in float64, and see which types occur."""
    double, own = torch.float64, function.dtype
    if not pieces:
        return DifferenceArithmetic(double, torch.finfo(double).eps, None)
    why, lowest = None, double
    for dtype in dict.fromkeys((double, own)):
        try:
            with _Casts(dtype) as casts:
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


class _Casts(TorchDispatchMode):
    """While active, records the lowest floating-point type that a result has."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.lowest = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t.dtype for t in tree_leaves(args) if _is_floating(t)]
        if given:
            for t in tree_leaves(out):
                if _is_floating(t) and torch.finfo(t.dtype).eps > torch.finfo(self.lowest).eps:
                    if torch.finfo(t.dtype).eps > min(torch.finfo(d).eps for d in given):
                        self.lowest = t.dtype
        return out


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
