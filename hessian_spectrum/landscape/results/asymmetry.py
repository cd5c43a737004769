"""Slopes on both sides of a solution, and the bias of an average of iterates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.results.values import Array


@dataclass(frozen=True)
class Asymmetry:
    """Slopes of the loss away from a solution on both sides, along directions of unit length."""

    distance: Array = field(metadata=stored("from the solution, l", ("distance",), "theta"))
    forward: Array = field(
        metadata=stored("d L(w + l u) / d l", ("direction", "distance"), "loss / theta")
    )
    backward: Array = field(
        metadata=stored("d L(w - l u) / d l", ("direction", "distance"), "loss / theta")
    )
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("of the directions"))

    def __post_init__(self):
        if self.forward.shape != self.backward.shape or self.forward.shape[1:] != (
            len(self.distance),
        ):
            raise InputError(
                f"slopes of shapes {self.forward.shape} and {self.backward.shape} at "
                f"{len(self.distance)} distances; expected (directions, distances)"
            )

    def is_asymmetric(self, r: float, p: float, c: float, zeta: float) -> Array:
        """Is u (r, p, c, zeta)-asymmetric? (directions,), by the distances that were looked at.

        d L(w + l u) / d l < p and d L(w - l u) / d l > c p for all l in (zeta, r), where p > 0,
        c > 1 and r > zeta > 0: an asymmetric direction of w (He, Huang and Yuan 2019); a minimum
        that has one is an asymmetric valley. For the other side, ask for -u.
        """
        if not (p > 0 and c > 1 and r > zeta > 0):
            raise InputError(
                f"(r, p, c, zeta) = ({r}, {p}, {c}, {zeta}): expected p > 0, c > 1, r > zeta > 0"
            )
        inside = self._inside(r, zeta)
        return (self.forward[:, inside] < p).all(1) & (self.backward[:, inside] > c * p).all(1)

    def ratio(self, r: float, zeta: float) -> Array:
        """The largest c for which u is asymmetric with some p, (directions,); at most 1: with none.

        min d L(w - l u) / d l over max d L(w + l u) / d l; infinite where the loss does not rise
        along u at all, and rises along -u; 0 where it does not rise along -u everywhere.
        """
        inside = self._inside(r, zeta)
        steep, flat = self.backward[:, inside].min(1), self.forward[:, inside].max(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(steep <= 0, 0.0, np.where(flat <= 0, np.inf, steep / flat))

    def _inside(self, r: float, zeta: float) -> Array:
        inside = (self.distance > zeta) & (self.distance < r)
        if not inside.any():
            raise InputError(
                f"no distance lies in ({zeta}, {r}); they are {self.distance[0]:g} to "
                f"{self.distance[-1]:g}"
            )
        return inside


@dataclass(frozen=True)
class AveragingBias:
    """Where SGD's iterates lie of a minimum along directions, and what their average gains."""

    coordinates: Array = field(
        metadata=stored("of each iterate from the minimum", ("iterate", "direction"), "theta")
    )
    standard_error: Array = field(
        metadata=stored("of the mean coordinate, by batch means", ("direction",), "theta")
    )
    losses: Array = field(metadata=stored("of the iterates", ("iterate",)))
    loss_at_average: float = field(metadata=stored("at the mean of the iterates"))
    loss_at_minimum: float = field(metadata=stored("at the minimum"))
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("of the evaluation"))

    @property
    def bias(self) -> Array:
        """The average's coordinates, (directions,): positive towards where a direction points."""
        return self.coordinates.mean(axis=0)
