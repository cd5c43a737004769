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
    """Measure how minibatch gradients g align with the Hessian H of all the data: g^T H g / |g|^2.

    Writes OUT, an HDF5 file with the alignment of each minibatch and, unless --k 0, the largest
    eigenpairs and the cosines of the gradients with them; prints a table by batch size.

        hessian-spectrum alignment --problem mine.py:make --batch-sizes 64 512 full --out a.h5
    """

    out: Path = Path("alignment.h5")
    """Result file, HDF5."""
    batch_sizes: tuple[str, ...] = ("100", "1000")
    """Samples per minibatch; full means all the data. Several values, or repeat the option."""
    num_batches: int = 50
    """Minibatches of each size, drawn from SEED without replacement."""
    k: int | None = None
    """First compute the K largest eigenpairs, for shares of lambda_1 and the gradients' cosines
    with the eigenvectors; 0: none. Default: 10, or 0 with EIGENPAIRS."""
    eigenpairs: Path | None = None
    """Take the largest eigenpairs of the same matrix from this result file instead."""

    @property
    def sizes(self) -> tuple[int | str, ...]:
        """``batch_sizes`` as numbers, or "full"."""
        return sizes_in(self.batch_sizes)

    @property
    def num_pairs(self) -> int:
        """How many eigenpairs are computed first."""
        return 0 if self.eigenpairs is not None else 10 if self.k is None else self.k

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        positive(self, "num_batches")
        if self.k is not None and (self.k < 0 or self.eigenpairs is not None):
            what = "expected 0 or more" if self.k < 0 else "leave it out, or --eigenpairs"
            raise InputError(f"--k {self.k}: {what}")
        check_sizes(self.batch_sizes)


def sizes_in(words: tuple[str, ...]) -> tuple[int | str, ...]:
    """Batch sizes as numbers, or "full"."""
    return tuple(size if size == "full" else int(size) for size in words)


def check_sizes(words: tuple[str, ...]) -> None:
    """InputError unless there are batch sizes, each a number or "full"."""
    for size in words or ("",):
        if size != "full" and not re.fullmatch("0*[1-9][0-9]*", size):
            raise InputError(f"--batch-sizes {size!r}: expected 1 or more samples, or full")
