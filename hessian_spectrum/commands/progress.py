"""How far a run is: a bar at a terminal, a line about once a minute in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from hessian_spectrum.commands.report import duration

LINE_SECONDS = 60.0  # between two lines of a log
NOTE_SECONDS = 10.0  # between two notes for those who ask how far the run is
REMEMBERED = 200  # moments by which the pace is judged

Note = Callable[[Mapping[str, Any]], None]


class Progress:
    """A context, inside which ``update`` counts what is done; one for each stage of a run.

    Args:
        what: the command, or its stage.
        total: None where nobody knows how many there will be.
        done: by an earlier run.
        rest: seconds that the run will take after the last of them.
        is_shown: False on other ranks, and for a quiet run.
        note: told ``status`` at the start, every ten seconds at most, and when the state is saved.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        done: int,
        unit: str,
        *,
        rest: float = 0.0,
        is_shown: bool = True,
        note: Note | None = None,
    ):
        self.what, self.total, self.n, self.unit, self.rest = what, total, done, unit, rest
        self._is_log = is_shown and not sys.stderr.isatty()
        hidden = not is_shown or self._is_log
        self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, disable=hidden)
        self._is_shown, self._note = is_shown, note
        self._saved: int | None = None
        self._told = ""
        self._last_line = self._last_note = self._last_saved_line = time.monotonic()
        self._pace = deque([(done, self._last_line)], maxlen=REMEMBERED)
        self._tell()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def update(self, count: int) -> None:
        """So many more are done."""
        if not count:
            return
        self.n += count
        now = time.monotonic()
        self._pace.append((self.n, now))
        self._bar.update(count)
        if self._is_log and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            left = self.seconds_left
            line = f"{self.position}" + ("" if left is None else f", {duration(left)} left")
            self._line(line + (f"; {self._told}" if self._told else ""))
        if now - self._last_note >= NOTE_SECONDS:
            self._tell()

    def saved(self, last: bool = False) -> None:
        """The state was saved; ``last``: before the run stops, which is always said."""
        self._saved, now = self.n, time.monotonic()
        if last or now - self._last_saved_line >= LINE_SECONDS:
            self._last_saved_line = now
            self._line(f"saved at {self.position}")
        self._tell()

    def tell(self, text: str) -> None:
        """What the latest of them said; shown beside the bar, and in the lines of a log."""
        self._told = text
        self._bar.set_postfix_str(text, refresh=False)

    def write(self, text: str) -> None:
        """Print a result to stdout, above the bar."""
        self._bar.write(text)

    @property
    def position(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        return f"{self.unit} {self.n:,}{of}"

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last of those that are done; None where it cannot be known."""
        (before, then), (now, last) = self._pace[(len(self._pace) - 1) // 2], self._pace[-1]
        if self.total is None or now == before:
            return None
        return (self.total - now) * (last - then) / (now - before) + self.rest

    @property
    def status(self) -> dict[str, Any]:
        """How far the run is, as JSON holds it."""
        return {
            "stage": self.what,
            "unit": self.unit,
            "done": self.n,
            "total": self.total,
            "seconds_left": self.seconds_left,
            "saved": self._saved,
        }

    def _line(self, text: str) -> None:
        if not self._is_shown:
            return
        if self._is_log:
            print(f"{self.what}: {text}", file=sys.stderr, flush=True)
        else:
            self._bar.write(f"{self.what}: {text}", file=sys.stderr)

    def _tell(self) -> None:
        self._last_note = time.monotonic()
        if self._note is not None:
            self._note(self.status)
