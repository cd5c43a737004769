"""A model and its data as options of the package's configurations, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.suite.context import Context


@dataclass(frozen=True)
class Problem:
    """
    Args:
        data: "digits", "mnist", "cifar10", or "" where the problem's file makes them.
        fields: of a configuration.
    """

    name: str
    data: str
    fields: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, name: str, data: str, **fields: Any) -> Problem:
        return cls(name, data, tuple(fields.items()))

    def options(self, context: Context) -> dict[str, Any]:
        """The fields, with those of the data."""
        found = dict(self.fields)
        if self.data:
            found["dataset"] = "arrays" if self.data == "cifar10" else self.data
        if self.data == "mnist" or self.data == "cifar10":
            found["data_root"] = str(context.data(self.data))
        return found
