"""The line between two networks before and after their hidden units are matched. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.exports import Exported
from hessian_spectrum.landscape.results.curve import Curve

UNMATCHED, MATCHED = "unmatched", "matched"  # labels of the curves
MATCH = "match"  # the entry of a curve's ``about`` that says how units were matched


@dataclass(frozen=True)
class MatchedLines(Exported):
    """Both lines, and what the matching did.

    A result file holds ``curve/unmatched`` and ``curve/matched``, and under ``values/matched`` what
    the matching did.
    """

    before: Curve
    after: Curve
    # method; iterations, passes over the groups of units; num_moved, units that have another place;
    # distance_before and distance, |theta0 - theta1| before and after
    matching: Mapping[str, Any] = field(default_factory=dict)

    @property
    def curves(self) -> dict[str, Curve]:
        """Both, by their labels."""
        return {UNMATCHED: self.before, MATCHED: self.after}

    def by_key(self) -> dict[str, Any]:
        """The parts by their keys in a result file."""
        return {
            **{f"curve/{label}": curve for label, curve in self.curves.items()},
            f"values/{UNMATCHED}": {"index": 0},
            f"values/{MATCHED}": {"index": 1, **self.matching},
        }

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> MatchedLines:
        """The parts that a result file holds.

        Raises:
            InputError: it is not what ``interpolate --match`` has written.
        """
        keys = [f"curve/{label}" for label in (UNMATCHED, MATCHED)]
        if any(key not in run or MATCH not in run[key].about for key in keys):
            raise InputError(
                "no lines before and after matching: expected curve/unmatched and curve/matched, "
                "as interpolate --match writes them"
            )
        matching = {name: v for name, v in run[f"values/{MATCHED}"].items() if name != "index"}
        return cls(run[keys[0]], run[keys[1]], matching)
