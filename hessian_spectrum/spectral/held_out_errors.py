"""Errors of held-out probes that their scatter does not show. NumPy only.

The error that all make together at one eigenvalue: let it have c copies, and b probes be held out
in groups of g. The others know b - g of the copies, and each probe of the group sees the
k = c - b + g that are left: |P_Y x|^2, chi-squared with k degrees of freedom, where x holds the
probe's components on the copies and P_Y projects onto what the others do not span. The same b
vectors in c dimensions serve all groups: where they are nearly dependent, all probes see little,
and scatter little.

And a bias: the Krylov space of the others after m - 1 steps reaches the end of that of all, where T
knows A to degree 3 only. After fewer steps it is known better, but less is held out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.spectral.quadrature import Array


@dataclass(frozen=True)
class HeldOutErrors:
    """Weights of a measure's nodes, as they would be with each error."""

    # (e, s), with one standard error of what all probes share; the errors are independent
    shared: Array = field(
        metadata=stored(
            "mean weights with one standard error of what all probes share",
            ("error", "node"),
            "1",
            index={"error": "index of the shared error"},
        )
    )
    # (k, probe, s), each probe's where the others know one, two, ... steps less
    fewer_known: Array = field(
        metadata=stored(
            "share of a node for each probe where the others know one, two, ... steps less",
            ("back", "probe", "node"),
            "1",
            index={"back": "steps less, minus one"},
        )
    )

    def __post_init__(self) -> None:
        if self.fewer_known.ndim != 3 or self.shared.shape[1:] != self.fewer_known.shape[2:]:
            raise InputError(
                f"held-out errors of shapes {self.shared.shape} and {self.fewer_known.shape} do "
                "not belong together; expected (errors, nodes) and (steps, probes, nodes)"
            )


def shared_error(left: float, unknown: float, held: int = 1) -> float:
    """Standard error of the number of copies that all held-out probes share.

    The root of the covariance of two groups' answers. With X, Y the components of two groups of
    g on the nu = k + g copies that the other groups leave, E tr(P_Y X X^T) tr(P_X Y Y^T) depends
    only on the angles between two random g-dimensional subspaces:

        cov = (nu / g)^2 Var(tr P P') = 2 k^2 / ((k + g - 1) (k + g + 2)),

    for g = 1 a correlation of 1 / (k + 3), and at most 2 copies squared for any k. Probes of unit
    length that see nothing but copies know their number: the factor (N - k) / (N + 2) of the
    variance of a share of N dimensions.

    Args:
        left: k as estimated; copies that the others do not know. At least one is.
        unknown: N, dimensions that the others do not know.
        held: g, probes that are held out together.
    """
    k = min(max(left, 1.0), unknown)
    covariance = 2 * k**2 / ((k + held - 1) * (k + held + 2))
    return math.sqrt(covariance * (unknown - k) / (unknown + 2))
