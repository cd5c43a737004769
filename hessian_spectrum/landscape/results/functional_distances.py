"""Distances between networks as functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.results.values import Array


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
