"""Options of every command that multiplies vectors by a curvature matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hessian_spectrum._core.validation import seeds, size_in_bytes
from hessian_spectrum.config.output import ComputingConfig

Operator = Literal[
    "hessian", "gauss-newton", "fisher", "gradient-covariance", "gradient-second-moment"
]


@dataclass(frozen=True, kw_only=True)
class CurvatureConfig(ComputingConfig):
    """Products with a curvature matrix: which, and how they are formed."""

    operator: Operator = "hessian"
    """hessian; gauss-newton; fisher (for cross entropy and squared errors); or of the samples'
    gradients the gradient-covariance, or their gradient-second-moment (empirical Fisher)."""
    hvp: str | None = None
    """How products are formed: reverse, reverse-batched, forward or linearize.
    Default: the fastest that fits the memory, measured for long runs."""
    hvp_dtype: Literal["float64", "float32", "tf32", "bfloat16"] | None = None
    """Arithmetic of the products; the vectors keep --dtype. Default: that of --dtype."""
    memory: str | None = None
    """Memory that may be used beyond the model and the data, such as 4GiB. Default: 80% of
    what is available."""
    dry_run: bool = False
    """Print the plan and what it will cost, and stop there."""
    seed: int = 0
    """Seed of the random vectors."""

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` in bytes."""
        return None if self.memory is None else size_in_bytes(self.memory)

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        seeds(self, "seed")
        if self.memory is not None:
            size_in_bytes(self.memory)
