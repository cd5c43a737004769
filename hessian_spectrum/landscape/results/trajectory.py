"""The iterates of a training run in parameter space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.exports import Exported
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.results.values import Array, Values


@dataclass(frozen=True)
class Trajectory(Exported):
    """Where the iterates w(0), ..., w(T) of a training run lie in parameter space."""

    steps: Array = field(metadata=stored("labels of the iterates, such as epochs", ("iterate",)))
    distance_from_start: Array = field(metadata=stored("|w(t) - w0|", ("iterate",), "theta"))
    distance_to_end: Array = field(metadata=stored("|w(t) - wT|", ("iterate",), "theta"))
    step_length: Array = field(metadata=stored("|w(t) - w(t-1)|", ("iterate",), "theta"))
    alpha: Array = field(metadata=stored("projection on the line w0 to wT", ("iterate",)))
    beta: Array = field(
        metadata=stored("distance from the line through w0 and wT", ("iterate",), "theta")
    )
    coordinates: Array = field(
        metadata=stored(
            "along principal components, from wT",
            ("iterate", "component"),
            "theta",
            part_of=("component",),
        )
    )
    explained_variance: Array = field(
        metadata=stored("share of the variance by principal component, descending", ("component",))
    )
    values: Mapping[str, Array] = field(
        default_factory=dict, metadata=stored("evaluated quantities by name", ("iterate",))
    )
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("about the evaluation"))

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
        """Path length: the sum of step lengths, in units of theta.

        ``distance_from_start[-1]`` is the straight-line distance.
        """
        return float(self.step_length.sum())

    def with_values(self, values: Mapping[str, Array], about: Mapping[str, Any]) -> Trajectory:
        """A copy with evaluated quantities, one entry an iterate, and entries of ``about``."""
        return replace(self, values=values, about={**self.about, **about})
