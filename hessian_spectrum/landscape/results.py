"""NumPy only: what analyses of trajectories, functions and valleys find, and their queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.surfaces import Array, Values


@dataclass(frozen=True)
class DirectionVectors:
    """Directions of a surface as they are stored: vectors, or what makes them again."""

    origin: Array = field(metadata=stored("theta that they start from", ("parameter",), "theta"))
    vectors: Array = field(
        metadata=stored("directions; no rows: made again from recipes", ("direction", "parameter"))
    )
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("JSON: recipes"))

    def __post_init__(self):
        rows = len(self.about.get("recipes", ()))
        if self.vectors.shape not in ((0, len(self.origin)), (rows, len(self.origin))):
            raise InputError(
                f"directions of shape {self.vectors.shape} for {rows} recipes and an origin of "
                f"{len(self.origin)} entries"
            )


@dataclass(frozen=True)
class Trajectory:
    """Iterates of a training run, as they lie in parameter space."""

    steps: Array = field(metadata=stored("what the iterates are called", ("iterate",)))
    distance_from_start: Array = field(metadata=stored("|w(t) - w0|", ("iterate",), "theta"))
    distance_to_end: Array = field(metadata=stored("|w(t) - wT|", ("iterate",), "theta"))
    step_length: Array = field(metadata=stored("|w(t) - w(t-1)|", ("iterate",), "theta"))
    alpha: Array = field(metadata=stored("place of the projection on w0 to wT", ("iterate",)))
    beta: Array = field(
        metadata=stored("distance from the line through w0 and wT", ("iterate",), "theta")
    )
    coordinates: Array = field(
        metadata=stored("along principal components, from wT", ("iterate", "component"), "theta")
    )
    explained_variance: Array = field(
        metadata=stored("share of each principal component, descending", ("component",))
    )
    values: Mapping[str, Array] = field(
        default_factory=dict, metadata=stored("what was evaluated, by name", ("iterate",))
    )
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("of the iterates"))

    def __post_init__(self):
        object.__setattr__(self, "values", Values(self.values))
        arrays = (self.distance_from_start, self.distance_to_end, self.alpha, self.beta)
        shapes = {np.shape(array) for array in (self.steps, *arrays, *self.values.values())}
        if len(shapes) != 1 or len(self.coordinates) != len(self.steps):
            raise InputError(f"a Trajectory has arrays of {shapes}; expected one entry an iterate")

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def length(self) -> float:
        """Of the way, |steps| added up; ``distance_from_start[-1]`` is the bee line."""
        return float(self.step_length.sum())

    def with_values(self, values: Mapping[str, Array], about: Mapping[str, Any]) -> Trajectory:
        return replace(self, values=values, about={**self.about, **about})


@dataclass(frozen=True)
class FunctionalDistances:
    """How far networks are from each other as functions."""

    names: Array = field(metadata=stored("of the networks", ("network",)))
    distance: Array = field(
        metadata=stored("root of the mean squared distance of outputs", ("network", "network"))
    )
    disagreement: Array = field(
        metadata=stored("share of samples with different labels", ("network", "network"))
    )
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("of the evaluation"))

    def __post_init__(self):
        k = len(self.names)
        if self.distance.shape != (k, k) or self.disagreement.shape != (k, k):
            raise InputError(f"{k} names, but distances of shape {self.distance.shape}")

    def between(self, first: str, second: str) -> float:
        """The distance of two networks by name."""
        names = [str(name) for name in self.names]
        for name in (first, second):
            if name not in names:
                raise InputError(f"no network {name!r}; there are: {', '.join(names)}")
        return float(self.distance[names.index(first), names.index(second)])


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
