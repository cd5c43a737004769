"""The atoms of a spectral measure as random probes see them, and Gauss quadrature. NumPy only.

What a run has found out, and how it looked after fewer steps and without parts of the data. The
queries on it are in functionals.py, their errors in uncertainty.py; measure.py joins the three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import (
    stored,
    stored_attribute,
    stored_group,
    stored_sequence,
)
from hessian_spectrum.spectral.arithmetic import Arithmetic
from hessian_spectrum.spectral.held_out_errors import HeldOutErrors
from hessian_spectrum.spectral.jackknife import Replicates
from hessian_spectrum.spectral.quadrature import Array, BlockRule

if TYPE_CHECKING:
    from typing_extensions import Self

KERNEL_ELEMENTS = 1 << 22  # of the (nodes, points) smoothing kernel held at once: 32 MiB
MOST_STEPS_BACK = 5  # a change by one step may vanish by chance; by five it hardly does


@dataclass(frozen=True)
class Atoms:
    """Approximate eigenvalues of an n x n symmetric matrix, with weights for each random probe."""

    # (s,), approximate eigenvalues, ascending
    nodes: Array = field(
        metadata=stored("approximate eigenvalues, ascending", ("node",), "eigenvalue")
    )
    # (probe, s), each row sums to 1; zero where a node is not the probe's
    weights: Array = field(
        metadata=stored(
            "share of a node for each probe",
            ("probe", "node"),
            "1",
            index={"probe": "index of the random probe"},
        )
    )
    # number of eigenvalues of H
    n: int = field(metadata=stored_attribute("number of eigenvalues", 1))
    # (s,), each node lies within this of an eigenvalue; units of the nodes
    residuals: Array = field(
        metadata=stored("an eigenvalue lies this near", ("node",), "eigenvalue")
    )
    # (s,), node counts one eigenvalue exactly, weight 1/n
    certified: NDArray[np.bool_] = field(
        metadata=stored("node counts one eigenvalue exactly", ("node",))
    )
    # the recurrences' quadrature rules, in the probes' order
    rules: tuple[BlockRule, ...] = field(
        default=(),
        metadata=stored_sequence(
            "rules", BlockRule, "order of T, shape of first, shape of out, steps"
        ),
    )
    # standard errors are this times those of independent probes
    scatter: float = field(default=1.0, metadata=stored_attribute("factor of standard errors"))
    # how wrong products and vectors are; None: not known
    arithmetic: Arithmetic | None = field(
        default=None, metadata=stored_group("arithmetic", Arithmetic)
    )
    # of held-out probes: what their scatter does not show
    held_out: HeldOutErrors | None = field(
        default=None, metadata=stored_group("held_out", HeldOutErrors)
    )
    # the same without each of some groups of the samples
    replicates: Replicates | None = field(
        default=None, metadata=stored_group("without_groups", Replicates)
    )

    @classmethod
    def of_rules(cls, rules: Sequence[BlockRule], n: int, floor: float = 0.0) -> Self:
        """Gauss quadrature: each probe's own weights on the nodes of its rule.

        Args:
            floor: the error of a product; no residual is known to be smaller.
        """
        solved = [rule.eigen for rule in rules]
        nodes = np.concatenate([values for values, _ in solved])
        weights = np.zeros((sum(len(rule.first) for rule in rules), len(nodes)))
        row = column = 0
        for rule, (values, vectors) in zip(rules, solved):
            own = normalized_rows((rule.starts @ vectors) ** 2)
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

    def __post_init__(self) -> None:
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
        errors = self.held_out
        if errors is not None and errors.shared.shape[1:] != self.nodes.shape:
            raise InputError(
                f"held-out errors {errors.shared.shape} do not belong to {len(self.nodes)} nodes; "
                "expected (errors, nodes)"
            )
        sums = self.weights.sum(axis=1)
        if not np.allclose(sums, 1, atol=1e-6):
            raise InputError(f"a probe's weights must sum to 1; got {sums.min()} to {sums.max()}")

    @property
    def num_probes(self) -> int:
        return len(self.weights)

    @property
    def has_independent_probes(self) -> bool:
        """Whether each probe's weights are those of the rules, and it is not held out."""
        return bool(self.rules) and self.held_out is None and self.scatter == 1.0

    @property
    def support(self) -> tuple[float, float]:
        """The smallest and the largest node: inner bounds of lambda_min and lambda_max."""
        return float(self.nodes[0]), float(self.nodes[-1])

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

    def inside(self, a: float, b: float) -> NDArray[np.bool_]:
        """(s,), which nodes lie in [a, b]."""
        if not a <= b:
            raise InputError(f"interval [{a}, {b}]: the lower end must not exceed the upper")
        return (self.nodes >= a) & (self.nodes <= b)

    def integrals(self, values: Array) -> Array:
        """(s,) values at the nodes -> (probe,), their integral by each probe's weights."""
        return self.weights @ values

    def masses(self, a: float, b: float) -> Array:
        """(probe,), the share of the eigenvalues in [a, b] as each probe sees it."""
        return self.integrals(self.inside(a, b).astype(float))

    def densities(self, t: ArrayLike, sigma2: float) -> Array:
        """(probe, *shape of t), the smoothed density at t as each probe sees it."""
        if not sigma2 > 0:
            raise InputError(f"density(sigma2={sigma2}): the variance must be positive")
        return smoothed(self.nodes, self.weights, t, sigma2)

    def node_at(self, q: float, first: bool = True) -> int:
        """The first node with at least the share q up to it; else the first with more."""
        cumulative = np.cumsum(self.weights.mean(axis=0))
        # Half a rounding unit of slack: the cumulative sum of weights ends at 1 - O(eps).
        if first:
            index = np.searchsorted(cumulative, q - 1e-12, "left")
        else:
            index = np.searchsorted(cumulative, q + 1e-12, "right")
        return min(int(index), len(self.nodes) - 1)

    def with_mean_weights(self, rows: Array) -> list[Self]:
        """The mean over the probes, had it each of these weights."""
        return [replace(self, weights=row[None], held_out=None) for row in rows]

    # -- the same after fewer steps, and without parts of the data ---------------------------

    @cached_property
    def gauss(self) -> Self:
        """Gauss quadrature after all steps."""
        return type(self).of_rules(self.rules, self.n)

    @cached_property
    def history(self) -> list[Self]:
        """Gauss quadrature after all steps, and after each of the last third of them, latest first.

        At most ``MOST_STEPS_BACK`` earlier ones; none at all without rules.
        """
        if not self.rules:
            return []
        found, rules = [self.gauss], list(self.rules)
        steps = max(rule.num_steps for rule in rules)
        for _ in range(min(math.ceil(steps / 3), MOST_STEPS_BACK)):
            shorter = [earlier for rule in rules if (earlier := rule.shorter) is not None]
            if len(shorter) < len(rules):
                break
            rules = shorter
            found.append(type(self).of_rules(rules, self.n))
        return found

    @cached_property
    def without_groups(self) -> list[Self]:
        """The atoms without each group of samples; none without ``replicates``."""
        found = self.replicates
        if found is None:
            return []
        nothing = np.zeros(found.nodes.shape[1])
        return [
            type(self)(nodes, weights, self.n, nothing, nothing.astype(bool))
            for nodes, weights in zip(found.nodes, found.weights)
        ]


def smoothed(nodes: Array, weights: Array, t: ArrayLike, sigma2: float) -> Array:
    """sum_j w_j N(t; node_j, sigma2) for each row of weights.

    Args:
        nodes: (s,), weights: (probe, s); any part of a measure.
        t: any shape, in the units of the nodes.

    Returns:
        (probe, *shape of t); integrates to the sum of a row.

    Cost: O(probes * nodes * points); 32 MiB for the kernel.
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


def normalized_rows(weights: Array) -> Array:
    """Rows that sum to 1; even ones where a row is 0."""
    sums = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, sums, out=np.full_like(weights, 1 / weights.shape[1]), where=sums > 0)
