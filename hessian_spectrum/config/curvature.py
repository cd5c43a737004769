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
    """Which curvature matrix, and how its products with vectors are formed."""

    operator: Operator = "hessian"
    """Curvature matrix: hessian; gauss-newton; fisher, for cross entropy and squared error;
    gradient-covariance, of the per-sample gradients; or gradient-second-moment, their uncentered
    covariance (empirical Fisher)."""
    hvp: str | None = None
    """How products are formed: reverse, reverse-batched, forward or linearize. Default: the fastest
    that fits into memory, measured where the run is long enough."""
    hvp_dtype: Literal["float64", "float32", "tf32", "bfloat16"] | None = None
    """Arithmetic of the products; vectors keep --dtype. Default: that of --dtype."""
    memory: str | None = None
    """Memory that may be used beyond the model and the data, such as 4GiB. Default: 80% of what is
    available."""
    dry_run: bool = False
    """Print the plan and its estimated cost, and stop."""
    seed: int = 0
    """Seed of the random vectors."""

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` in bytes."""
        return None if self.memory is None else size_in_bytes(self.memory)

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        seeds(self, "seed")
        if self.memory is not None:
            size_in_bytes(self.memory)
