"""Slopes on both sides of a solution, and the bias of an average of iterates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.exports import Exported
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.results.values import Array


@dataclass(frozen=True)
class Asymmetry(Exported):
    """Slopes of the loss away from a solution on both sides, along directions of unit length."""

    distance: Array = field(metadata=stored("distance l from the solution", ("distance",), "theta"))
    forward: Array = field(
        metadata=stored("d L(w + l u) / d l", ("direction", "distance"), "loss / theta")
    )
    backward: Array = field(
        metadata=stored("d L(w - l u) / d l", ("direction", "distance"), "loss / theta")
    )
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("about the evaluation"))

    def __post_init__(self):
        if self.forward.shape != self.backward.shape or self.forward.shape[1:] != (
            len(self.distance),
        ):
            raise InputError(
                f"slopes of shapes {self.forward.shape} and {self.backward.shape} at "
                f"{len(self.distance)} distances; expected (directions, distances)"
            )

    def is_asymmetric(self, r: float, p: float, c: float, zeta: float) -> NDArray[np.bool_]:
        """Whether each direction u is (r, p, c, zeta)-asymmetric, (directions,), bool.

        d L(w + l u) / d l < p and d L(w - l u) / d l > c p at all evaluated l in (zeta, r), where
        p > 0, c > 1 and r > zeta > 0 (He, Huang & Yuan, NeurIPS 2019). A minimum
        with such a direction is an asymmetric valley. Use -u to test the opposite side.

        Raises:
            InputError: the numbers are not in these ranges, or no distance lies in (zeta, r).
        """
        if not (p > 0 and c > 1 and r > zeta > 0):
            raise InputError(
                f"(r, p, c, zeta) = ({r}, {p}, {c}, {zeta}): expected p > 0, c > 1, r > zeta > 0"
            )
        inside = self._inside(r, zeta)
        flat, steep = self.forward[:, inside] < p, self.backward[:, inside] > c * p
        return np.logical_and(flat.all(1), steep.all(1))

    def ratio(self, r: float, zeta: float) -> Array:
        """The largest c for which u is asymmetric with some p, (directions,).

        min d L(w - l u) / d l divided by max d L(w + l u) / d l, over l in (zeta, r). At most 1:
        not asymmetric. Infinite: the loss rises along -u and nowhere along u. 0: the loss does not
        rise everywhere along -u.

        Raises:
            InputError: no distance lies in (zeta, r).
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
class AveragingBias(Exported):
    """Coordinates of SGD's iterates relative to a minimum, and the losses of their average."""

    coordinates: Array = field(
        metadata=stored("of each iterate, from the minimum", ("iterate", "direction"), "theta")
    )
    standard_error: Array = field(
        metadata=stored("standard error of the mean, by batch means", ("direction",), "theta")
    )
    losses: Array = field(metadata=stored("losses of the iterates", ("iterate",)))
    loss_at_average: float = field(metadata=stored("loss at the mean of the iterates"))
    loss_at_minimum: float = field(metadata=stored("loss at the minimum"))
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("about the evaluation"))

    @property
    def bias(self) -> Array:
        """The mean of the iterates' coordinates, (directions,), in units of theta."""
        return self.coordinates.mean(axis=0)
