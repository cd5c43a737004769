"""Options of the ``eigenpairs`` command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import positive
from hessian_spectrum.config.sharding import ShardedConfig
from hessian_spectrum.krylov.ritz import K, Which


@dataclass(frozen=True, kw_only=True)
class EigenpairsConfig(ShardedConfig):
    """Compute the largest and smallest eigenvalues of a curvature matrix, with eigenvectors.

    A restarted block Krylov method, with a residual for each pair. Writes OUT, an HDF5 file with
    eigenvalues, eigenvectors and residuals, and prints them as a table.

        hessian-spectrum eigenpairs --problem mine.py:make --k 20 --which largest --out top.h5
    """

    out: Path = Path("eigenpairs.h5")
    """Result file, HDF5."""
    k: int = 10
    """Number of eigenpairs; with --which both, at each end of the spectrum."""
    k_smallest: int | None = None
    """With --which both: number of eigenpairs at the lower end. Default: K."""
    which: Which = "both"
    """largest; smallest, that is, most negative; both ends; or largest in magnitude."""
    tol: float = 1e-6
    """A pair has converged when |H v - lambda v| is at most TOL times the largest |lambda|."""
    max_products: int | None = None
    """Stop after this many products, converged or not; --resume with a larger number continues.
    Default: 2,000 plus 100 for each pair."""
    certify: bool = False
    """At the end, compute one product in float64 for each pair, so that eigenvalues and residuals
    are those of the float64 matrix. Such a product takes several times as long as one in float32.
    Without this option, two of them estimate what float32 adds to all residuals together."""
    copies: bool = True
    """A search for further copies of the eigenvalues found, so that a multiple eigenvalue is listed
    as often as its multiplicity; --no-copies skips it, which saves products, but some copies of a
    multiple eigenvalue may then be missing."""
    block_size: int | None = None
    """Vectors multiplied together. Default: 1, which takes the fewest products; more take fewer
    passes over the data."""
    basis_size: int | None = None
    """Krylov vectors held before a restart. Default: 300 plus ten for each pair, or what fits into
    memory."""
    vectors: bool = True
    """Eigenvectors in the result, in OUT below 2 GiB, else in shards in OUT.d; --no-vectors stores
    only the eigenvalues and their residuals."""
    start: Path | None = None
    """An earlier result. Start from its eigenvectors, or continue the Krylov space that a density
    run of the same problem left beside it."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
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
