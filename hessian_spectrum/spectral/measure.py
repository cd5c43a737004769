"""Spectral measures and eigenpairs, and the questions they answer. NumPy only: no torch.

An n x n symmetric H with eigenvalues lambda_i has the spectral measure
``mu = (1/n) sum_i delta(lambda_i)``. A stochastic Lanczos run knows it through weighted atoms,
one set of weights for each random probe; averaging over probes gives every estimate, and their
scatter its standard error.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.spectral import uncertainty
from hessian_spectrum.spectral.jackknife import Replicates
from hessian_spectrum.spectral.quadrature import NEAREST, Array, BlockRule
from hessian_spectrum.spectral.uncertainty import DensityError

KERNEL_ELEMENTS = 1 << 22  # of the (nodes, points) smoothing kernel held at once: 32 MiB


@dataclass(frozen=True)
class EigenPairs:
    """Approximate eigenpairs with what is known of their error.

    For each pair there is an eigenvalue of H within ``residuals`` of ``values``.
    """

    values: Array  # (k,), ascending
    residuals: Array  # (k,), |H v - lambda v|, absolute, in units of the eigenvalues
    converged: NDArray[np.bool_]  # (k,), residual <= tol * |lambda|max
    vectors: object | None = None  # (k, n) rows of unit norm, possibly lazy; None if not kept
    num_lower: int | None = None  # of the lower end; the rest are of the upper. None: not known

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class SpectralMeasure:
    """The spectral measure of an n x n symmetric matrix, as atoms seen by random probes.

    Masses are shares of the n eigenvalues and densities are per unit eigenvalue: both
    integrate to 1. Intervals are closed. Queries use the atoms as they are; only ``density``
    smooths. Every query has a standard error over the probes: ``standard_error``.

    Cost of a query: O(probes * nodes), no products with H.
    """

    nodes: Array  # (s,), approximate eigenvalues, ascending
    weights: Array  # (probe, s), each row sums to 1; zero where a node is not the probe's
    n: int  # number of eigenvalues of H
    residuals: Array  # (s,), each node lies within this of an eigenvalue; units of the nodes
    certified: NDArray[np.bool_]  # (s,), node counts one eigenvalue exactly, weight 1/n
    rules: tuple[BlockRule, ...] = ()  # what the recurrences knew, their probes in order
    scatter: float = 1.0  # standard errors are this times those of independent probes
    replicates: Replicates | None = None  # without each of some groups of the samples

    @classmethod
    def of_rules(cls, rules: Sequence[BlockRule], n: int, floor: float = 0.0) -> SpectralMeasure:
        """Gauss quadrature: each probe's own weights on the nodes of its rule.

        Args:
            floor: residuals below it are not known to be real: the error of a product.
        """
        solved = [rule.eigen for rule in rules]
        nodes = np.concatenate([values for values, _ in solved])
        weights = np.zeros((sum(len(rule.first) for rule in rules), len(nodes)))
        row = column = 0
        for rule, (values, vectors) in zip(rules, solved):
            own = normalized((rule.starts @ vectors) ** 2)
            weights[row : row + len(own), column : column + len(values)] = own
            row, column = row + len(own), column + len(values)
        residuals = [rule.residuals(vectors) for rule, (_, vectors) in zip(rules, solved)]
        order = np.argsort(nodes, kind="stable")
        return cls(
            nodes=nodes[order],
            weights=weights[:, order],
            n=n,
            residuals=np.maximum(np.concatenate(residuals), floor)[order],
            certified=np.zeros(len(nodes), dtype=bool),
            rules=tuple(rules),
        )

    def __post_init__(self):
        shapes = (self.weights.shape[1:], self.residuals.shape, self.certified.shape)
        if any(shape != self.nodes.shape for shape in shapes) or self.weights.ndim != 2:
            raise InputError(
                f"nodes {self.nodes.shape}, weights {self.weights.shape}, residuals "
                f"{self.residuals.shape} and certified {self.certified.shape} do not belong "
                "together; expected (s,), (probes, s), (s,) and (s,)"
            )
        if self.nodes.size == 0 or not np.isfinite(self.nodes).all():
            raise InputError("a spectral measure needs at least one node, all of them finite")
        if (np.diff(self.nodes) < 0).any():
            raise InputError("the nodes of a spectral measure must be in ascending order")
        sums = self.weights.sum(axis=1)
        if not np.allclose(sums, 1, atol=1e-6):
            raise InputError(f"a probe's weights must sum to 1; got {sums.min()} to {sums.max()}")

    def __repr__(self) -> str:
        low, high = self.support
        return (
            f"<SpectralMeasure of {self.n} eigenvalues in [{low:.6g}, {high:.6g}]: "
            f"{len(self.nodes)} nodes, {self.num_probes} probes>"
        )

    # -- what the probes saw ---------------------------------------------------------------

    @property
    def num_probes(self) -> int:
        return len(self.weights)

    @property
    def support(self) -> tuple[float, float]:
        """The smallest and the largest node: inner bounds of lambda_min and lambda_max."""
        return float(self.nodes[0]), float(self.nodes[-1])

    # -- queries ---------------------------------------------------------------------------

    def density(self, t: ArrayLike, sigma2: float | None = None) -> Array:
        """Smoothed density phi_sigma(t) = sum_j w_j N(t; node_j, sigma2), shape of ``t``.

        Per unit eigenvalue; integrates to 1.

        Args:
            t: eigenvalues at which to evaluate, any shape.
            sigma2: variance of the Gaussian smoothing, in squared units of the eigenvalues.
                Default: ``self.default_sigma2``.
        """
        return self._mean(self._density(t, sigma2))

    def mass(self, a: float, b: float) -> float:
        """Share of the eigenvalues in [a, b]."""
        return float(self._mean(self._mass(a, b)))

    def count(self, a: float, b: float) -> float:
        """Estimated number of eigenvalues in [a, b]."""
        return self.n * self.mass(a, b)

    def quantile(self, q: float) -> float:
        """The smallest node t with at least the share ``q`` of the eigenvalues in (-inf, t]."""
        if not 0 <= q <= 1:
            raise InputError(f"quantile({q}): the share q must lie in [0, 1]")
        return self._quantile(q)

    def moment(self, p: int) -> float:
        """tr(H^p) / n = integral of t^p d mu(t)."""
        return float(self._mean(self._moment(p)))

    def energy(self, a: float, b: float) -> float:
        """Sum of lambda^2 over the eigenvalues in [a, b]: their part of |H|_F^2."""
        return float(self._mean(self._energy(a, b)))

    @property
    def trace(self) -> float:
        """tr H, the sum of the eigenvalues."""
        return self.n * self.moment(1)

    @property
    def frobenius_norm(self) -> float:
        """|H|_F = sqrt(sum of lambda^2)."""
        return math.sqrt(self.n * self.moment(2))

    def effective_dimension(self, damping: float) -> float:
        """sum_i lambda_i / (lambda_i + damping), with negative eigenvalues counted as 0.

        Warns when eigenvalues below zero are clipped, and says what share they are.
        """
        value = float(self._mean(self._effective_dimension(damping)))
        rounding = NEAREST * np.abs(self.nodes).max()
        clipped = float(self._mean(self._below(-rounding)))
        if clipped > 0:
            warnings.warn(
                f"effective_dimension: {clipped:.3g} of the eigenvalues are negative (down to "
                f"{self.nodes[0]:.3g}) and counted as 0",
                stacklevel=2,
            )
        return value

    def negative_fraction(self, threshold: float = 0.0) -> float:
        """Share of the eigenvalues below ``-threshold`` (strictly)."""
        return float(self._mean(self._negative_fraction(threshold)))

    def log_determinant(self, damping: float = 0.0) -> float:
        """log det(H + damping I) = sum_i log(lambda_i + damping).

        Raises:
            InputError: where lambda_min + damping <= 0: the determinant has no logarithm.
        """
        return float(self._mean(self._log_determinant(damping)))

    # -- standard errors -------------------------------------------------------------------

    def standard_error(self, query: str, *args, **kwargs) -> float | Array:
        """Standard error over the probes of ``getattr(self, query)(*args, **kwargs)``.

        Each query is a mean over the probes (frobenius_norm: a function of one, by the delta
        method; quantile: half the width of the quantiles at q plus and minus the standard error
        of the mass below it, Woodruff 1952). Truncation of the recurrence is not in it:
        ``truncation``, and with both ``interval``. NaN where it cannot be known: with one probe.

        Args:
            query: "density", "mass", "count", "quantile", "moment", "energy", "trace",
                "frobenius_norm", "effective_dimension", "negative_fraction",
                "log_determinant".
        """
        return _number(uncertainty.noise(self, query, *self._arguments(query, args, kwargs)))

    def truncation(self, query: str, *args, **kwargs) -> float | Array:
        """How much of an answer may be due to the recurrences' end, after m steps.

        For smooth queries: the most that the last third of the steps, up to five, have changed in
        Gauss quadrature. For those with a threshold (mass, count, negative_fraction, energy,
        quantile): ``BlockRule.bracket``, averaged over the probes: for single recurrences bounds
        that hold for every spectrum, for a block nearly so; 0 where every eigenvalue around the
        threshold is resolved. NaN where it cannot be known: without ``rules``, or after one step.

        Cost: O(N^3), N the number of nodes; once, and for each threshold.
        """
        margins = uncertainty.margins(self, query, *self._arguments(query, args, kwargs))
        return _number(np.max(margins, axis=0))

    def data_error(self, query: str, *args, **kwargs) -> float | Array:
        """Standard error of an answer over data sets of this size, at the same parameters.

        By the jackknife over random groups of samples (jackknife.py), which are taken to be
        independent draws from a population. Noise of the probes and truncation are not in it. As
        jackknives are it is too large rather than too small, by a factor of up to 1.6 in
        benchmarks/data_error.py, and more for counts inside a bulk that few steps leave unresolved.
        With K groups it has
        K - 1 degrees of freedom. NaN where it cannot be known: without ``replicates``.
        """
        args = self._arguments(query, args, kwargs)
        return _number(uncertainty.over_data_sets(self, query, *args))

    def interval(self, query: str, *args, level: float = 0.95, **kwargs) -> Array:
        """Confidence interval (2, ...) of a query: lower and upper ends.

        The value minus and plus Student's quantile of its standard error and ``truncation``, in
        quadrature; benchmarks/coverage.py counts how often it covers. NaN with one probe. Errors
        of the products are not in it, nor is ``data_error``: it is about this data set.

        Args:
            level: the probability that it covers the truth, 0 to 1.
        """
        args = self._arguments(query, args, kwargs)
        return uncertainty.of_query(self, query, *args, level=level)

    def density_error(self, sigma2: float | None = None) -> DensityError:
        """Expected L1 error of the smoothed density, integral |estimate - phi_sigma| dt.

        Args:
            sigma2: variance of the smoothing; default ``self.default_sigma2``.
        """
        return uncertainty.of_density(self, self.default_sigma2 if sigma2 is None else sigma2)

    def answers(self, query: str, *args) -> Array:
        """(probe, ...): what each probe alone says; the answer is their mean.

        Of frobenius_norm, by the delta method, what scatters as it does.
        """
        return _PER_PROBE[query](self, *args)

    @cached_property
    def usual(self) -> SpectralMeasure:
        """Gauss quadrature, after all steps."""
        return SpectralMeasure.of_rules(self.rules, self.n)

    @cached_property
    def history(self) -> list[SpectralMeasure]:
        """The same, and after fewer steps; none without rules."""
        return [self.usual, *uncertainty.earlier(self)] if self.rules else []

    @cached_property
    def without_groups(self) -> list[SpectralMeasure]:
        """This measure without each group of samples; none without ``replicates``."""
        found = self.replicates
        if found is None:
            return []
        nothing = np.zeros(found.nodes.shape[1])
        return [
            SpectralMeasure(nodes, weights, self.n, nothing, nothing.astype(bool))
            for nodes, weights in zip(found.nodes, found.weights)
        ]

    def _arguments(self, query: str, args: tuple, kwargs: dict) -> tuple:
        """In the query's own order, with its defaults."""
        if query not in _PER_PROBE and query != "quantile":
            raise InputError(
                f"no error is known for {query!r}; expected one of "
                f"{', '.join(sorted([*_PER_PROBE, 'quantile']))}"
            )
        member = getattr(type(self), query)
        parameters = [] if isinstance(member, property) else list(signature(member).parameters)[1:]
        try:
            bound = signature(member if parameters else _nothing).bind(
                *((self,) if parameters else ()), *args, **kwargs
            )
        except TypeError as error:
            raise InputError(
                f"{query} takes {', '.join(parameters) or 'no arguments'}: {error}"
            ) from None
        bound.apply_defaults()
        return bound.args[1:] if parameters else ()

    @property
    def default_sigma2(self) -> float:
        """(width of the support / 500)^2: resolves outliers, and scales with H."""
        low, high = self.support
        width = (high - low) or max(abs(low), abs(high)) or 1.0
        return (width / 500) ** 2

    def grid(self, sigma2: float | None = None, points: int = 2000) -> Array:
        """An even grid over the support and five standard deviations beyond it, (points,)."""
        sigma2 = self.default_sigma2 if sigma2 is None else sigma2
        if not sigma2 > 0:
            raise InputError(f"grid(sigma2={sigma2}): the variance must be positive")
        margin = 5 * math.sqrt(sigma2)
        return np.linspace(self.nodes[0] - margin, self.nodes[-1] + margin, points)

    # -- per probe: (probe,) or (probe, *shape of t) -----------------------------------------

    def _mean(self, per_probe: Array) -> Array:
        return per_probe.mean(axis=0)

    def _density(self, t: ArrayLike, sigma2: float | None = None) -> Array:
        sigma2 = self.default_sigma2 if sigma2 is None else sigma2
        if not sigma2 > 0:
            raise InputError(f"density(sigma2={sigma2}): the variance must be positive")
        return smoothed(self.nodes, self.weights, t, sigma2)

    def _integrate(self, values: Array) -> Array:
        return self.weights @ values

    def _mass(self, a: float, b: float) -> Array:
        return self._integrate(self.inside(a, b).astype(float))

    def _below(self, b: float) -> Array:
        return self._integrate((self.nodes < b).astype(float))

    def _negative_fraction(self, threshold: float = 0.0) -> Array:
        if not threshold >= 0:
            raise InputError(f"negative_fraction(threshold={threshold}): must be at least 0")
        return self._below(-threshold)

    def inside(self, a: float, b: float) -> NDArray[np.bool_]:
        """(s,), which nodes lie in [a, b]."""
        if not a <= b:
            raise InputError(f"interval [{a}, {b}]: the lower end must not exceed the upper")
        return (self.nodes >= a) & (self.nodes <= b)

    def _moment(self, p: int) -> Array:
        if not 0 <= p < math.inf or p != int(p):
            raise InputError(f"moment({p}): the order must be a whole number, 0 or more")
        return self._integrate(self.nodes ** int(p))

    def _energy(self, a: float, b: float) -> Array:
        return self.n * self._integrate(self.nodes**2 * self.inside(a, b))

    def _frobenius_norm(self) -> Array:
        # Delta method: d sqrt(n m2) = n d m2 / (2 sqrt(n m2)); the constant does not matter.
        norm = self.frobenius_norm
        return self.n * self._moment(2) / (2 * norm) if norm else np.zeros(self.num_probes)

    def _effective_dimension(self, damping: float) -> Array:
        if not damping > 0:
            raise InputError(f"effective_dimension(damping={damping}): damping must be positive")
        positive = np.maximum(self.nodes, 0.0)
        return self.n * self._integrate(positive / (positive + damping))

    def _log_determinant(self, damping: float = 0.0) -> Array:
        if not self.nodes[0] + damping > 0:
            raise InputError(
                f"log_determinant(damping={damping}): lambda_min = {self.nodes[0]:.6g}, so "
                f"H + damping I is not positive definite; use damping > {-self.nodes[0]:.6g}"
            )
        return self.n * self._integrate(np.log(self.nodes + damping))

    def _quantile(self, q: float) -> float:
        return float(self.nodes[self.node_at(q)])

    def node_at(self, q: float, first: bool = True) -> int:
        """The first node with at least the share q up to it; else the first with more."""
        cumulative = np.cumsum(self._mean(self.weights))
        # Half a rounding unit of slack: the cumulative sum of weights ends at 1 - O(eps).
        q, side = (q - 1e-12, "left") if first else (q + 1e-12, "right")
        return min(int(np.searchsorted(cumulative, q, side)), len(self.nodes) - 1)


def smoothed(nodes: Array, weights: Array, t: ArrayLike, sigma2: float) -> Array:
    """sum_j w_j N(t; node_j, sigma2) for each row of weights.

    Args:
        nodes: (s,), weights: (probe, s); any part of a measure.
        t: any shape, in the units of the nodes.

    Returns:
        (probe, *shape of t); integrates to the sum of a row.
    """
    t = np.asarray(t, dtype=np.float64)
    flat = t.reshape(-1)
    rows = max(1, KERNEL_ELEMENTS // max(1, len(nodes)))
    out = np.empty((len(weights), flat.size))
    for start in range(0, flat.size, rows):
        block = flat[start : start + rows]
        kernel = np.exp(-((block - nodes[:, None]) ** 2) / (2 * sigma2))
        out[:, start : start + rows] = weights @ kernel
    return out.reshape(len(weights), *t.shape) / math.sqrt(2 * math.pi * sigma2)


def _nothing() -> None:
    """What a property takes."""


def _number(error: float | Array) -> float | Array:
    return error if np.ndim(error) else float(error)


def normalized(weights: Array) -> Array:
    """Rows that sum to 1; even ones where a row is 0."""
    sums = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, sums, out=np.full_like(weights, 1 / weights.shape[1]), where=sums > 0)


_PER_PROBE: dict[str, Callable[..., Array]] = {
    "density": SpectralMeasure._density,
    "mass": SpectralMeasure._mass,
    "count": lambda self, a, b: self.n * self._mass(a, b),
    "moment": SpectralMeasure._moment,
    "energy": SpectralMeasure._energy,
    "trace": lambda self: self.n * self._moment(1),
    "frobenius_norm": SpectralMeasure._frobenius_norm,
    "effective_dimension": SpectralMeasure._effective_dimension,
    "negative_fraction": SpectralMeasure._negative_fraction,
    "log_determinant": SpectralMeasure._log_determinant,
}
