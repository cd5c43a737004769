"""Directions in the form that run files hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.results.values import Array


@dataclass(frozen=True)
class DirectionVectors:
    """Directions in a run file: their vectors, or recipes from which they are made again."""

    origin: Array = field(metadata=stored("origin of the directions", ("parameter",), "theta"))
    vectors: Array = field(
        metadata=stored("directions; no rows if recipes are enough", ("direction", "parameter"))
    )
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("JSON: recipes"))

    def __post_init__(self):
        rows = len(self.about.get("recipes", ()))
        if self.vectors.shape not in ((0, len(self.origin)), (rows, len(self.origin))):
            raise InputError(
                f"directions of shape {self.vectors.shape} for {rows} recipes and an origin of "
                f"{len(self.origin)} entries"
            )
