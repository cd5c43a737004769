"""Requests to stop: SIGTERM or SIGUSR1 from a batch system, or Ctrl-C. Imports no torch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


# A BaseException like KeyboardInterrupt, so that no ``except Exception`` catches it.
class Interrupted(BaseException):
    """A signal asked the process to stop; what was finished is saved.

    Args:
        name: of the signal.
        agreed: all ranks stop at the same step; otherwise this rank stopped where it was.
    """

    def __init__(self, name: str, agreed: bool = False):
        super().__init__(name)
        self.agreed = agreed


class StopRequest:
    """Notes the signals that ask the process to stop.

    Inside ``deferred`` a signal only sets ``name``, for the computation to look at between steps.
    Outside there is nothing to save, and it raises ``Interrupted`` at once.

    Args:
        unbegun: called with the signal's name instead, until ``begin``; it ends the process.
            Default: the work has begun.
    """

    def __init__(self, unbegun: Callable[[str], NoReturn] | None = None) -> None:
        self.name: str | None = None
        self._deferred = self._raised = False
        self._unbegun = unbegun
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals of STOP_SIGNALS; the previous handlers return at the end."""
        self._deferred = self._raised = False  # may be set by an earlier computation that failed
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def begin(self) -> None:
        """From here on something may have been done that the user must be told of."""
        self._unbegun = None

    def keep_code(self, code: int) -> None:
        """The work has ended: from here on, also after ``listening``, signals end with ``code``.

        The interpreter takes a while to end.
        """

        def end(number: int, frame: object) -> NoReturn:
            sys.stdout.flush()
            os._exit(code)

        for number in STOP_SIGNALS:
            signal.signal(number, end)
        self._before = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets ``name``, since ranks must leave a computation together.

        After an error signals stay deferred: launchers signal the remaining ranks, which have yet
        to report the error.
        """
        self._deferred = True
        yield
        self._deferred = False

    def _note(self, number: int, _: object) -> None:
        self.name = signal.Signals(number).name
        if self._unbegun:
            self._unbegun(self.name)
        if not (self._deferred or self._raised):  # once: batch systems repeat signals
            self._raised = True
            raise Interrupted(self.name)
