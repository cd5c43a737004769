"""Options of the ``noise`` command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import positive
from hessian_spectrum.config.curvature import CurvatureConfig

COMPARED = ("hessian", "gauss-newton", "fisher")  # with the covariance of gradients


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(CurvatureConfig):
    """Compare gradients and their covariance C with the top eigenvectors of the Hessian H.

    The share of |g|^2 in the span of the top K eigenvectors of H, of gradients g of minibatches and
    of all the data; the overlap of the top subspaces of H and C; the spectra of H, of C and of both
    parts of H = G + R, the Gauss-Newton matrix and what it leaves. Writes OUT, an HDF5 file, and
    prints a summary.

        hessian-spectrum noise --problem mine.py:make --k 1 10 --batch-sizes 64 full --out n.h5
    """

    out: Path = Path("noise.h5")
    """Result file, HDF5."""
    k: tuple[str, ...] = ("1", "5", "10")
    """Dimensions of the top subspaces; classes means the number of classes, the largest label plus
    1. As many eigenpairs of each matrix are computed as the largest says."""
    batch_sizes: tuple[str, ...] = ("100", "full")
    """Samples per minibatch; full means all the data. Several values, or repeat the option."""
    num_batches: int = 50
    """Minibatches of each size, drawn from SEED without replacement."""
    centered: bool = True
    """The covariance of the gradients of single samples, from which g g^T is subtracted, g the
    gradient of all the data; --no-centered leaves g g^T in: the matrix of second moments."""
    parts: bool = True
    """The spectra of G and R, too, with --operator hessian; --no-parts leaves them out."""
    num_products: int = 180
    """Products of each density, which also give the traces that shares are of; 0: no densities, and
    no such shares."""
    tol: float = 1e-6
    """An eigenpair has converged when |H v - lambda v| is at most TOL times the largest
    |lambda|."""

    @property
    def sizes(self) -> tuple[int | str, ...]:
        """``batch_sizes`` as numbers, or "full"."""
        return tuple(size if size == "full" else int(size) for size in self.batch_sizes)

    @property
    def dimensions(self) -> tuple[int | str, ...]:
        """``k`` as numbers, or "classes"."""
        return tuple(k if k == "classes" else int(k) for k in self.k)

    @property
    def has_parts(self) -> bool:
        """Are G and R computed?"""
        return self.parts and self.operator == "hessian"

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        positive(self, "num_batches")
        if self.operator not in COMPARED:
            raise InputError(
                f"--operator {self.operator}: it is compared with the covariance of gradients; "
                f"expected {', '.join(COMPARED[:-1])} or {COMPARED[-1]}"
            )
        if self.num_products < 0:
            raise InputError(f"--num-products {self.num_products}: expected 0 or more")
        if not 0 <= self.tol < 1:
            raise InputError(f"--tol {self.tol}: expected a number from 0 to 1")
        for name, values, word in (
            ("k", self.k, "classes"),
            ("batch-sizes", self.batch_sizes, "full"),
        ):
            for value in values or ("",):
                if value != word and not re.fullmatch("0*[1-9][0-9]*", value):
                    raise InputError(f"--{name} {value!r}: expected 1 or more, or {word}")
