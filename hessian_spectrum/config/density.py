"""Options of a density, and of the ``density`` command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import above_zero, positive
from hessian_spectrum.algorithms.budget import Estimator
from hessian_spectrum.config.curvature import KrylovConfig
from hessian_spectrum.config.sharding import ShardedConfig


@dataclass(frozen=True, kw_only=True)
class DensityOptions(KrylovConfig):
    """How a density is estimated."""

    estimator: Estimator = "block"
    """block: all random vectors share one Krylov space, so that resolved eigenvalues are counted
    exactly. slq: an independent recurrence for each vector. lean: block without
    reorthogonalization, which keeps only three blocks of vectors in memory."""
    num_products: int | None = None
    """Budget of matrix-vector products, NUM_PROBES * NUM_STEPS. Default: 180, or 1800 with
    TARGET_ERROR."""
    num_probes: int | None = None
    """Random vectors, advanced together. Default: chosen from NUM_PRODUCTS or TARGET_ERROR."""
    num_steps: int | None = None
    """Lanczos steps; each is one pass over the data. Default: as many as NUM_PRODUCTS allows."""
    target_error: float | None = None
    """Stop as soon as the expected L1 error of the density, smoothed with SIGMA2, is at most
    this."""
    sigma2: float | None = None
    """Variance of the Gaussian smoothing for which errors are stated and TARGET_ERROR is meant.
    Default: (width of the spectrum / 500)^2."""
    data_groups: int | None = None
    """Also estimate how far the answers would vary with other data of the same kind and size
    (data_error), by a jackknife that leaves out each of this many random groups of samples. 8 to 20
    groups; doubles the number of products."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        positive(self, "num_probes", "num_steps", "num_products")
        if self.data_groups is not None:
            if self.data_groups < 2:
                raise InputError(f"--data-groups {self.data_groups}: expected 2 or more")
            if self.estimator == "lean":
                raise InputError(
                    "--data-groups with --estimator lean, which keeps no Krylov vectors; use block"
                )
        above_zero(self, "target_error", "sigma2")


@dataclass(frozen=True, kw_only=True)
class DensityConfig(DensityOptions, ShardedConfig):
    """Estimate the eigenvalue density of the Hessian or another curvature matrix.

    Lanczos quadrature from random vectors needs only matrix-vector products. Writes OUT, an HDF5
    file with the nodes and weights of the density, the smallest and the largest eigenvalue, the
    configuration and the provenance of the run, and prints a summary with error estimates.

        hessian-spectrum density --model mlp-64-20-10 --dataset digits --out density.h5
    """

    out: Path = Path("density.h5")
    """Result file, HDF5."""
    blocks: tuple[str, ...] = ()
    """One density for each diagonal block, several in each pass over the data: layers, the weights
    and biases of each module; heads, the query, key, value and output weights of each attention
    head; experts; or patterns of parameter names, a block for each. Default: one of all parameters
    together. NUM_PROBES is 4 and NUM_STEPS 30 for each block, unless they are given."""
    keep_state: Literal["auto", "always", "never"] = "auto"
    """Keep the Krylov vectors of a finished run in OUT.d, so that --resume with a larger NUM_STEPS
    or NUM_PRODUCTS, or a smaller TARGET_ERROR, extends it. auto: if they take less than 2 GiB.
    Those of BLOCKS are not kept."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        if not self.blocks:
            return
        for name in ("num_products", "target_error", "data_groups"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')} with --blocks: say --num-probes and --num-steps "
                    "of each block"
                )
        if self.estimator == "lean":
            raise InputError("--estimator lean with --blocks; leave it out")
