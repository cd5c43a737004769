"""Sampling error of the data by the delete-a-group jackknife. NumPy only.

A data set is a sample of a population. With each of K random groups of samples left out in turn,
and the same probes, answers scatter as they would from data set to data set, up to a known factor.
The noise of the probes that leaving out samples does not cancel is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.spectral.quadrature import Array

LEAST = 0.25  # share of a variance that remains at least when the probes' noise is subtracted


@dataclass(frozen=True)
class Replicates:
    """The spectral measure without each group of samples, as each probe sees it."""

    # (group, s), approximate eigenvalues, ascending
    nodes: Array = field(
        metadata=stored(
            "approximate eigenvalues without each group of samples, ascending",
            ("group", "node"),
            "eigenvalue",
        )
    )
    # (group, probe, s), each probe's sum to 1
    weights: Array = field(
        metadata=stored("share of a node for each probe", ("group", "probe", "node"), "1")
    )
    # (group,), of the data's weight that the group has; they add up to 1
    shares: Array = field(
        metadata=stored("a group's part of the data's weight", ("group",), "1", coordinate=True)
    )

    def __post_init__(self) -> None:
        groups = self.shares.shape
        shapes_fit = self.weights.ndim == 3 and self.nodes.shape == (
            *groups,
            *self.weights.shape[2:],
        )
        if not shapes_fit or self.weights.shape[:1] != groups or len(self.shares) < 2:
            raise InputError(
                f"replicates of shapes {self.nodes.shape}, {self.weights.shape} and "
                f"{self.shares.shape} do not belong together; expected (groups, s), (groups, "
                "probes, s) and (groups,)"
            )

    def __len__(self) -> int:
        return len(self.shares)


def standard_error(whole: Array, without: Array, shares: Array, scatter: float = 1.0) -> Array:
    """Standard error of an answer over data sets of this size, from groups of any sizes.

    Equation 5 of Busing, Meijer and van der Leeden (Stat. Comput. 9 (1999) 3-8), minus the
    probes' own variance, down to ``LEAST``. Like every jackknife it errs to the large side (Efron
    and Stein 1981).

    Args:
        whole: (probe, ...), each probe's answer with all data.
        without: (group, probe, ...), without each group.
        shares: (group,), the groups' parts of the data.
        scatter: standard error of a mean over the probes, relative to independent probes.
    """
    odds = ((1 - shares) / shares).reshape(-1, *(1,) * whole.ndim)
    # Pseudo-values minus their mean: what each group contributes.
    moved = odds * (whole - without)
    moved = moved - (moved * (1 / (1 + odds))).sum(axis=0)
    variance = np.mean(moved.mean(axis=1) ** 2 / odds[:, 0], axis=0)
    b = moved.shape[1]
    if b < 2:
        return np.sqrt(variance)
    noise = np.mean(scatter**2 * moved.var(axis=1, ddof=1) / b / odds[:, 0], axis=0)
    return np.sqrt(np.maximum(variance - noise, LEAST * variance))
