"""Distances between networks as functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.exports import Exported
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.results.values import Array


@dataclass(frozen=True)
class FunctionalDistances(Exported):
    """Pairwise distances between networks as functions of their inputs."""

    names: Array = field(metadata=stored("names of the networks", ("network",), texts=True))
    distance: Array = field(
        metadata=stored("root mean square distance of outputs", ("network", "network"))
    )
    disagreement: Array = field(
        metadata=stored("share of samples with different predicted labels", ("network", "network"))
    )
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("about the evaluation"))

    def __post_init__(self):
        k = len(self.names)
        if self.distance.shape != (k, k) or self.disagreement.shape != (k, k):
            raise InputError(f"{k} names, but distances of shape {self.distance.shape}")

    def between(self, first: str, second: str) -> float:
        """The distance between two networks, by name.

        Raises:
            InputError: there is no network of that name.
        """
        names = [str(name) for name in self.names]
        for name in (first, second):
            if name not in names:
                raise InputError(f"no network {name!r}; expected one of: {', '.join(names)}")
        return float(self.distance[names.index(first), names.index(second)])
