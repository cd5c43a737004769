"""A claim of a source, what was measured of it, and whether it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Verdict = Literal["holds", "does not hold", "cannot be judged at this scale"]
HOLDS, FAILS, OPEN = get_args(Verdict)


@dataclass(frozen=True)
class Finding:
    """One claim, and what was measured of it.

    Args:
        claim: what is measured, in words; the finding's name within its study.
        source: where the expected range comes from.
        measured: the number; NaN does not hold.
        low, high: the claim holds from ``low`` to ``high``.
        uncertainty: of the number, a standard deviation; None where it is not known.
        is_judged: False where this scale is too small to tell, such as a test of seconds.
        why_not: why it does not hold at this scale, where that is known. The suite then does not
            count it as a failure.
        unit: of all the numbers.
    """

    claim: str
    source: str
    measured: float
    low: float
    high: float
    uncertainty: float | None = None
    is_judged: bool = True
    why_not: str = ""
    unit: str = ""

    @property
    def verdict(self) -> Verdict:
        if not self.is_judged:
            return OPEN
        return HOLDS if self.low <= self.measured <= self.high else FAILS

    @property
    def is_failure(self) -> bool:
        """It does not hold, and nobody has said why."""
        return self.verdict == FAILS and not self.why_not

    @property
    def expected(self) -> str:
        """The range in words: "at most 0.05", "0.9 to 1.2"."""
        unit = f" {self.unit}" if self.unit else ""
        if self.low == self.high:
            return f"{self.low:.10g}{unit}"
        if math.isinf(self.low):
            return "any" if math.isinf(self.high) else f"at most {self.high:.6g}{unit}"
        if math.isinf(self.high):
            return f"at least {self.low:.6g}{unit}"
        return f"{self.low:.6g} to {self.high:.6g}{unit}"

    @property
    def found(self) -> str:
        """The number with its uncertainty."""
        unit = f" {self.unit}" if self.unit else ""
        spread = "" if self.uncertainty is None else f" +- {self.uncertainty:.2g}"
        return f"{self.measured:.4g}{spread}{unit}"

    def __str__(self) -> str:
        why = f" ({self.why_not})" if self.why_not and self.verdict == FAILS else ""
        return f"{self.claim}: {self.found}, expected {self.expected}: {self.verdict}{why}"

    def to_json(self) -> dict[str, Any]:
        """JSON types only: infinities and NaN become None or text by ``_stored``."""
        return {
            "claim": self.claim,
            "source": self.source,
            "measured": _stored(self.measured),
            "low": _stored(self.low),
            "high": _stored(self.high),
            "uncertainty": None if self.uncertainty is None else _stored(self.uncertainty),
            "is_judged": self.is_judged,
            "why_not": self.why_not,
            "unit": self.unit,
            "verdict": self.verdict,
        }

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> Finding:
        fields = {name: stored[name] for name in cls.__dataclass_fields__}
        for name in ("measured", "low", "high"):
            fields[name] = float(fields[name])
        if fields["uncertainty"] is not None:
            fields["uncertainty"] = float(fields["uncertainty"])
        return cls(**fields)


def _stored(value: float) -> float | str:
    """A number, or its name where JSON has none."""
    return float(value) if math.isfinite(value) else str(float(value))
