"""Spectral measures of symmetric matrices: their queries and the errors of these. NumPy only.

An n x n symmetric H with eigenvalues lambda_i has the spectral measure
``mu = (1/n) sum_i delta(lambda_i)``. A stochastic Lanczos run knows it through weighted atoms,
one set of weights for each random probe; averaging over probes gives every estimate, and their
scatter its standard error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hessian_spectrum._core.exports import Exported
from hessian_spectrum.spectral import functionals, uncertainty
from hessian_spectrum.spectral.atoms import Atoms
from hessian_spectrum.spectral.drawn import DrawnDensity, drawn_density
from hessian_spectrum.spectral.quadrature import Array
from hessian_spectrum.spectral.uncertainty import DensityError


@dataclass(frozen=True, repr=False)
class SpectralMeasure(Atoms, Exported):
    """The spectral measure of an n x n symmetric matrix, as atoms seen by random probes.

    Masses are shares of the n eigenvalues and densities are per unit eigenvalue: both
    integrate to 1. Intervals are closed. Queries use the atoms as they are; only ``density``
    smooths. Every query has a standard error over the probes: ``standard_error``.

    Cost of a query: O(probes * nodes), no products with H.
    """

    def __repr__(self) -> str:
        low, high = self.support
        return (
            f"<SpectralMeasure of {self.n} eigenvalues in [{low:.6g}, {high:.6g}]: "
            f"{len(self.nodes)} nodes, {self.num_probes} probes>"
        )

    # -- queries: each is a row of functionals.py --------------------------------------------

    def density(self, t: ArrayLike, sigma2: float | None = None) -> Array:
        """Smoothed density phi_sigma(t) = sum_j w_j N(t; node_j, sigma2), shape of ``t``.

        Per unit eigenvalue; integrates to 1.

        Args:
            t: eigenvalues at which to evaluate, any shape.
            sigma2: variance of the Gaussian smoothing, in squared units of the eigenvalues.
                Default: ``self.default_sigma2``.
        """
        return functionals.evaluate(self, "density", t, sigma2)

    def mass(self, a: float, b: float) -> float:
        """Share of the eigenvalues in [a, b]."""
        return float(functionals.evaluate(self, "mass", a, b))

    def count(self, a: float, b: float) -> float:
        """Estimated number of eigenvalues in [a, b]."""
        return float(functionals.evaluate(self, "count", a, b))

    def quantile(self, q: float) -> float:
        """The smallest node t with at least the share ``q`` of the eigenvalues in (-inf, t]."""
        return float(functionals.evaluate(self, "quantile", q))

    def moment(self, p: int) -> float:
        """tr(H^p) / n = integral of t^p d mu(t)."""
        return float(functionals.evaluate(self, "moment", p))

    def energy(self, a: float, b: float) -> float:
        """Sum of lambda^2 over the eigenvalues in [a, b]: their part of |H|_F^2."""
        return float(functionals.evaluate(self, "energy", a, b))

    @property
    def trace(self) -> float:
        """tr H, the sum of the eigenvalues."""
        return float(functionals.evaluate(self, "trace"))

    @property
    def frobenius_norm(self) -> float:
        """|H|_F = sqrt(sum of lambda^2)."""
        return float(functionals.evaluate(self, "frobenius_norm"))

    def effective_dimension(self, damping: float) -> float:
        """sum_i lambda_i / (lambda_i + damping), with negative eigenvalues counted as 0.

        Warns when eigenvalues below zero are clipped, and says what share they are.
        """
        return float(functionals.evaluate(self, "effective_dimension", damping))

    def negative_fraction(self, threshold: float = 0.0) -> float:
        """Share of the eigenvalues below ``-threshold`` (strictly)."""
        return float(functionals.evaluate(self, "negative_fraction", threshold))

    def log_determinant(self, damping: float = 0.0) -> float:
        """log det(H + damping I) = sum_i log(lambda_i + damping).

        Raises:
            InputError: where lambda_min + damping <= 0: the determinant has no logarithm.
        """
        return float(functionals.evaluate(self, "log_determinant", damping))

    @cached_property
    def drawn(self) -> DrawnDensity:
        """The density as it is drawn, at the default smoothing; result files hold it."""
        return drawn_density(self)

    # -- errors ------------------------------------------------------------------------------

    def standard_error(self, query: str, *args: Any, **kwargs: Any) -> float | Array:
        """Standard error over the probes of the query of that name, at these arguments.

        Each query is a mean over the probes (frobenius_norm: a function of one, by the delta
        method; quantile: half the width of the quantiles at q plus and minus the standard error
        of the mass below it, Woodruff 1952). Of held-out probes it has what their scatter does not
        show (held_out_errors.py), of independent ones at least what theory gives
        (probe_variance.py). Truncation of the recurrence is not in it: ``truncation``, and with
        both ``interval``. NaN where it cannot be known: with one probe.

        Args:
            query: the name of a query method, such as "mass" (``functionals.OF_MEASURE``).

        Raises:
            InputError: no such query, or arguments that it does not take.
        """
        row, args = functionals.bind(self, query, args, kwargs)
        return _number(uncertainty.noise(self, row, *args))

    def truncation(self, query: str, *args: Any, **kwargs: Any) -> float | Array:
        """How much of an answer may be due to the end of the recurrences, after m steps.

        For smooth queries: the most that the last third of the steps, up to five, have changed in
        Gauss quadrature, and of held-out probes, beyond degree 3, the change where they are held
        out of up to three steps less. For those with a threshold (mass, count, negative_fraction,
        energy, quantile): ``BlockRule.bracket``, averaged over the probes: for single ones bounds
        that hold for every spectrum, for a block nearly so; 0 where every eigenvalue around the
        threshold is resolved. NaN where it cannot be known: without ``rules``, or after one step.

        Cost: O(N^3), N the number of nodes; once, and for each threshold.
        """
        row, args = functionals.bind(self, query, args, kwargs)
        return _number(np.max(uncertainty.margins(self, row, *args), axis=0))

    def data_error(self, query: str, *args: Any, **kwargs: Any) -> float | Array:
        """Standard error of an answer over data sets of this size, at the same parameters.

        By the jackknife over random groups of samples (jackknife.py), which are taken to be
        independent draws from a population. The probes' noise and truncation are not in it. Like
        every jackknife it errs to the large side, by a factor of up to 1.6 in
        benchmarks/studies/data_error.py, and by more for counts inside a bulk that few steps leave
        unresolved. With K groups it has K - 1 degrees of freedom. NaN where it cannot be known:
        without ``replicates``.
        """
        row, args = functionals.bind(self, query, args, kwargs)
        return _number(uncertainty.over_data_sets(self, row, *args))

    def interval(self, query: str, *args: Any, level: float = 0.95, **kwargs: Any) -> Array:
        """Confidence interval (2, ...) of a query: lower and upper ends.

        The value minus and plus Student's quantile of its standard error, ``truncation``, and what
        rounding of products and vectors adds to first order (rounding.py), in quadrature;
        benchmarks/studies/coverage.py counts how often it covers the truth. NaN with one probe.
        It is about this data set: ``data_error`` is not in it. Where
        ``arithmetic.compared_with_float64`` is False, the error of products is only what their
        rounding unit and asymmetry show.

        Args:
            level: the probability that it covers the truth, 0 to 1.
        """
        row, args = functionals.bind(self, query, args, kwargs)
        return uncertainty.of_query(self, row, *args, level=level)

    def density_error(self, sigma2: float | None = None) -> DensityError:
        """Expected L1 error of the smoothed density, integral |estimate - phi_sigma| dt.

        Args:
            sigma2: variance of the smoothing; default ``self.default_sigma2``.
        """
        return uncertainty.of_density(self, self.default_sigma2 if sigma2 is None else sigma2)

    def answers(self, query: str, *args: Any, **kwargs: Any) -> Array:
        """(probe, ...): what each probe alone answers; the answer is their mean.

        Of frobenius_norm, by the delta method, what scatters as it does.
        """
        row, args = functionals.bind(self, query, args, kwargs)
        return functionals.per_probe(self, row, *args)


def _number(error: float | Array) -> float | Array:
    return error if np.ndim(error) else float(error)
