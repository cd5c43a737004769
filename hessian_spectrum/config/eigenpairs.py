"""Options of the ``eigenpairs`` command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import positive
from hessian_spectrum.config.curvature import CurvatureConfig
from hessian_spectrum.krylov.ritz import K, Which


@dataclass(frozen=True, kw_only=True)
class EigenpairsConfig(CurvatureConfig):
    """The k extreme eigenpairs of the Hessian or another curvature matrix at one end or both, with
    their residuals."""

    out: Path = Path("eigenpairs.h5")
    """The result file."""
    k: int = 10
    """Eigenpairs; with --which both, at each end."""
    k_smallest: int | None = None
    """With --which both: at the lower end. Default: K."""
    which: Which = "both"
    """largest; smallest (most negative); both; magnitude."""
    tol: float = 1e-6
    """A pair has converged where |H v - lambda v| is at most TOL times the largest |lambda|."""
    max_products: int | None = None
    """Stop there, converged or not; --resume with more goes on. Default: 2,000 and a hundred for
    each pair."""
    certify: bool = False
    """Give each pair a product in float64 at the end, which takes several times as long as one in
    float32: its value and its residual are then those of the matrix in float64. Without, two such
    products tell what float32 adds to all residuals together."""
    copies: bool = True
    """A search for further copies of the eigenvalues found, so that a multiple eigenvalue is listed
    as often as its multiplicity; --no-copies skips it, which saves products, but some copies of a
    multiple eigenvalue may then be missing."""
    block_size: int | None = None
    """Vectors multiplied together. Default: 2, in which what shows once is single; without copies
    1."""
    basis_size: int | None = None
    """Krylov vectors held at once, before a restart. Default: 300 and ten for each pair, or what
    the memory takes."""
    vectors: bool = True
    """Eigenvectors in the result, in OUT below 2 GiB, else in shards in OUT.d; --no-vectors stores
    only the eigenvalues and their residuals."""
    start: Path | None = None
    """An earlier result: start from its eigenvectors, or go on with the Krylov space that a density
    run of the same problem left beside it."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        positive(self, "k", "k_smallest", "max_products", "block_size", "basis_size")
        if self.k_smallest is not None and self.which != "both":
            raise InputError(
                f"--k-smallest {self.k_smallest}: expected with --which both; it is {self.which}"
            )
        if not 0 <= self.tol < 1:
            raise InputError(f"--tol {self.tol}: expected a number from 0 to 1")

    @property
    def wanted(self) -> K:
        """What ``hs.eigenpairs`` takes as k."""
        return self.k if self.k_smallest is None else (self.k_smallest, self.k)
