"""Options of every command that multiplies vectors by a curvature matrix."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import seeds, size_in_bytes
from hessian_spectrum.config.output import ComputingConfig

Operator = Literal[
    "hessian",
    "gauss-newton",
    "fisher",
    "gradient-covariance",
    "gradient-second-moment",
    "gauss-newton-residual",
    "likelihood-curvature",
]


@dataclass(frozen=True, kw_only=True)
class CurvatureConfig(ComputingConfig):
    """Which curvature matrix, and how its products with vectors are formed."""

    operator: Operator = "hessian"
    """Curvature matrix: hessian; gauss-newton; fisher, for cross entropy and squared error;
    gradient-covariance, of the per-sample gradients; gradient-second-moment, their uncentered
    covariance (empirical Fisher); gauss-newton-residual, hessian minus gauss-newton; or
    likelihood-curvature, hessian minus gradient-second-moment for a negative log-likelihood."""
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


@dataclass(frozen=True, kw_only=True)
class KrylovConfig(CurvatureConfig):
    """As CurvatureConfig, of a command whose Krylov vectors may be too many for the memory."""

    scratch: str | None = None
    """Folder for Krylov vectors that are moved to a disk, such as '${SLURM_TMPDIR}' on a node's own
    disk; variables are those of the node. Default: beside OUT."""

    @property
    def scratch_folder(self) -> Path:
        """Of Krylov vectors on a disk.

        Raises:
            InputError: there is no such folder here, or the variable that names it is not set.
        """
        if self.scratch is None:
            return self.out.parent
        folder = Path(os.path.expandvars(self.scratch))
        if "$" in str(folder):
            raise InputError(f"--scratch {self.scratch}: this variable is not set here")
        if not folder.is_dir():
            raise InputError(
                f"--scratch {self.scratch}: there is no folder {folder} on {socket.gethostname()}; "
                "make it, or leave --scratch out"
            )
        return folder
