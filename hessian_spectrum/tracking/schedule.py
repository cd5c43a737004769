"""Which steps of a training are recorded: the due ones, as far as the time allows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hessian_spectrum._core.errors import InputError, is_whole


class Schedule:
    """The due steps, and the share of the wall-clock that their records take.

    Args:
        every, at: due are the steps that ``every`` divides, and those in ``at``.
        max_overhead: the most that records may take of the time since the first step, over all
            starts of the training; None: no limit.

    Raises:
        InputError: a step of ``at`` that is no step.
    """

    def __init__(self, every: int, at: Sequence[int], max_overhead: float | None):
        at = tuple(at) if isinstance(at, Iterable) else at
        if not isinstance(at, tuple) or not all(is_whole(step) and step >= 1 for step in at):
            raise InputError(f"at={at!r}: expected numbers of steps, 1 or more, such as (1, 10)")
        self.every, self.at, self.max_overhead = every, frozenset(at), max_overhead
        self.spent = 0.0  # seconds, on records
        self.last = 0.0  # seconds, of the latest record, without what it did in spare time
        self._earlier = 0.0  # seconds, of earlier starts
        self._began: float | None = None  # this start's first step, by perf_counter

    @property
    def is_first(self) -> bool:
        """Is the next step the first of this start?"""
        return self._began is None

    def start(self) -> None:
        """At the first step."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the first step, over all starts."""
        now = 0.0 if self._began is None else time.perf_counter() - self._began
        return self._earlier + now

    def is_due(self, step: int) -> bool:
        return step in self.at or step % self.every == 0

    def is_too_much(self) -> bool:
        """Would one more record like the latest exceed the share? The first never does."""
        if self.max_overhead is None or not self.spent:
            return False
        share = (self.spent + self.last) / max(1e-9, self.seconds + self.last)
        return share > self.max_overhead

    def spare(self) -> float | None:
        """Seconds of the share that a record like the latest, made now, leaves; None: no limit."""
        if self.max_overhead is None or self.max_overhead >= 1:
            return None
        room = (self.max_overhead * self.seconds - self.spent) / (1 - self.max_overhead)
        return max(0.0, room - self.last)

    def took(self, seconds: float, in_spare_time: float = 0.0) -> None:
        """A record was made in this time, a part of it spare time."""
        self.last = seconds - in_spare_time
        self.spent += seconds

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self.spent, "last": self.last, "elapsed": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.spent, self.last = float(state["spent"]), float(state["last"])
        self._earlier, self._began = float(state["elapsed"]), None
