"""Times of actions, and their ratios, round by round: a change in speed affects all of a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """The median of ratios of two columns of times, round by round, with their spread."""

    rounds: Array

    @staticmethod
    def of(over: Sequence[float] | Array, under: Sequence[float] | Array) -> Ratio:
        return Ratio(np.asarray(over, dtype=np.float64) / np.asarray(under, dtype=np.float64))

    @property
    def median(self) -> float:
        return float(np.median(self.rounds))

    @property
    def spread(self) -> float | None:
        """Standard deviation; None of a single round."""
        return float(self.rounds.std(ddof=1)) if len(self.rounds) > 1 else None

    def __str__(self) -> str:
        return spread(self.rounds)


def spread(values: Sequence[float] | Array) -> str:
    """Median [least, most]."""
    return f"{np.median(values):.3g} [{np.min(values):.3g}, {np.max(values):.3g}]"


def clock(threads: int) -> Callable[[], float]:
    """Processor time of one thread, since other programs may use the same cores; else wall time."""
    return time.process_time if threads == 1 else time.perf_counter


def seconds(action: Callable[[], object], now: Callable[[], float] = time.process_time) -> float:
    """Of one call."""
    began = now()
    action()
    return now() - began
