"""Options of the ``density`` command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import above_zero, positive
from hessian_spectrum.algorithms.budget import Estimator
from hessian_spectrum.config.curvature import CurvatureConfig


@dataclass(frozen=True, kw_only=True)
class DensityConfig(CurvatureConfig):
    """Eigenvalue density of the Hessian or another curvature matrix, by Lanczos quadrature from
    random vectors."""

    out: Path = Path("density.h5")
    """The result file."""
    estimator: Estimator = "block"
    """block: all random vectors share one Krylov space, and what it resolves is counted exactly;
    slq: independent recurrences; lean: block without reorthogonalization, which keeps three
    blocks of vectors only."""
    num_products: int | None = None
    """Products that may be spent: num_probes * num_steps. Default: 180; with a target 1800."""
    num_probes: int | None = None
    """Random vectors, in lockstep. Default: chosen for num_products or target_error."""
    num_steps: int | None = None
    """Lanczos steps, each one pass over the data. Default: as many as num_products allows."""
    target_error: float | None = None
    """Stop as soon as the expected L1 error of the density, smoothed with sigma2, is this small."""
    sigma2: float | None = None
    """Variance of the Gaussian smoothing that errors are stated for, and the target is meant for.
    Default: (width of the spectrum / 500)^2."""
    data_groups: int | None = None
    """Also state how far answers would differ on other data of this kind and size (query,
    data_error), by leaving out each of so many random groups of the samples, 8 to 20: a jackknife,
    as many products again."""
    keep_state: Literal["auto", "always", "never"] = "auto"
    """Keep the Krylov vectors of a finished run in OUT.d, so that --resume with more NUM_STEPS or
    NUM_PRODUCTS, or a smaller TARGET_ERROR, extends it. auto: where they take less than 2 GiB."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
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
