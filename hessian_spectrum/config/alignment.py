"""Options of the ``alignment`` command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import positive
from hessian_spectrum.config.curvature import CurvatureConfig


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig(CurvatureConfig):
    """How gradients of minibatches align with the Hessian of all the data: g^T H g / |g|^2."""

    out: Path = Path("alignment.h5")
    """The result file."""
    batch_sizes: tuple[str, ...] = ("100", "1000")
    """Samples in a minibatch; full: all the data. Several, or the option again."""
    num_batches: int = 50
    """Minibatches of each size, drawn without replacement, from SEED."""
    k: int | None = None
    """Compute the K largest eigenpairs first, for shares of lambda_1 and the gradients' cosines
    with the eigenvectors; 0: without. Default: 10, if there are no EIGENPAIRS."""
    eigenpairs: Path | None = None
    """A result file that has the largest eigenpairs of the same matrix, instead."""

    @property
    def sizes(self) -> tuple[int | str, ...]:
        """``batch_sizes`` as numbers, or "full"."""
        return tuple(size if size == "full" else int(size) for size in self.batch_sizes)

    @property
    def num_pairs(self) -> int:
        """How many eigenpairs are computed first."""
        return 0 if self.eigenpairs is not None else 10 if self.k is None else self.k

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        positive(self, "num_batches")
        if self.k is not None and (self.k < 0 or self.eigenpairs is not None):
            what = "expected 0 or more" if self.k < 0 else "leave it out, or --eigenpairs"
            raise InputError(f"--k {self.k}: {what}")
        for size in self.batch_sizes or ("",):
            if size != "full" and not re.fullmatch("0*[1-9][0-9]*", size):
                raise InputError(f"--batch-sizes {size!r}: expected 1 or more samples, or full")
