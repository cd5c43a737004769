"""What was recorded of a training run, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.exports import Exported
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.results.values import Array, Values
from hessian_spectrum.spectral.eigenpairs import EigenPairs


@dataclass(frozen=True)
class Track(Exported):
    """Curvature and other quantities at recorded steps of a training run.

    ``values`` has one entry a record; what was not known there is NaN.
    """

    steps: Array = field(metadata=stored("optimizer steps that were recorded", ("record",)))
    eigenvalues: Array = field(
        metadata=stored(
            "eigenvalues of the Hessian, descending; NaN where fewer were looked for",
            ("record", "eigenpair"),
            "eigenvalue",
        )
    )
    residuals: Array = field(
        metadata=stored(
            "an eigenvalue lies within this of each", ("record", "eigenpair"), "eigenvalue"
        )
    )
    lowest: Array = field(
        metadata=stored(
            "eigenvalues of the lower end, ascending", ("record", "lower"), "eigenvalue"
        )
    )
    lowest_residuals: Array = field(
        metadata=stored("an eigenvalue lies within this of each", ("record", "lower"), "eigenvalue")
    )
    skipped: Array = field(
        default_factory=lambda: np.empty(0),
        metadata=stored("steps that were due and skipped, to bound the overhead", ("skip",)),
    )
    values: Mapping[str, Array] = field(
        default_factory=dict, metadata=stored("recorded quantities by name", ("record",))
    )
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("about the records"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", Values(self.values))
        count = len(self.steps)
        shapes = {name: v.shape for name, v in self.values.items() if v.shape != (count,)}
        pairs = (self.eigenvalues, self.residuals), (self.lowest, self.lowest_residuals)
        if shapes or any(found.shape != errors.shape for found, errors in pairs):
            raise InputError(f"a Track of {count} records has values of {shapes}")
        for array in (self.eigenvalues, self.lowest):
            if len(array) != count or array.ndim != 2:
                raise InputError(f"a Track of {count} records has {array.shape} eigenvalues")

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, name: str) -> Array:
        """A recorded quantity, such as ``track["lambda_max"]``."""
        return self.values[name]

    @property
    def pairs(self) -> list[EigenPairs]:
        """The eigenvalues of each record at the upper end, those that are known, and residuals."""
        found = []
        for values, residuals in zip(self.eigenvalues[:, ::-1], self.residuals[:, ::-1]):
            known = np.isfinite(values)
            # What the search believed is not recorded; the residuals are.
            converged = np.ones(int(known.sum()), bool)
            found.append(EigenPairs(values[known], residuals[known], converged, num_lower=0))
        return found

    def until(self, step: int) -> Track:
        """What was recorded up to this step."""
        kept = self.steps <= step
        values = {name: array[kept] for name, array in self.values.items()}
        return replace(
            self,
            steps=self.steps[kept],
            eigenvalues=self.eigenvalues[kept],
            residuals=self.residuals[kept],
            lowest=self.lowest[kept],
            lowest_residuals=self.lowest_residuals[kept],
            skipped=self.skipped[self.skipped <= step],
            values=values,
        )

    def with_record(
        self,
        step: int,
        values: Mapping[str, float],
        eigenvalues: Array,
        residuals: Array,
        lowest: Array,
        lowest_residuals: Array,
    ) -> Track:
        """One record more, of a later step; eigenvalues from the ends inwards."""
        count = len(self)
        names = [*self.values, *(name for name in values if name not in self.values)]
        unknown = np.full(count, np.nan)
        return replace(
            self,
            steps=np.append(self.steps, step),
            eigenvalues=_stacked(self.eigenvalues, eigenvalues),
            residuals=_stacked(self.residuals, residuals),
            lowest=_stacked(self.lowest, lowest),
            lowest_residuals=_stacked(self.lowest_residuals, lowest_residuals),
            values={
                name: np.append(
                    self.values[name] if name in self.values else unknown,
                    values.get(name, np.nan),
                )
                for name in names
            },
        )

    def with_skip(self, step: int) -> Track:
        """A step more that was due and skipped."""
        return replace(self, skipped=np.append(self.skipped, step))

    @classmethod
    def empty(cls, about: Mapping[str, Any]) -> Track:
        none = np.empty((0, 0))
        return cls(np.empty(0), none, none, none, none, about=about)


def _stacked(rows: Array, row: Array) -> Array:
    found = np.full((len(rows) + 1, max(rows.shape[1], len(row))), np.nan)
    found[:-1, : rows.shape[1]] = rows
    found[-1, : len(row)] = row
    return found
