"""Being asked to stop: by SIGTERM or SIGUSR1 from a batch system, or by Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(BaseException):  # as KeyboardInterrupt: no one's ``except Exception`` eats it
    """A signal asked for the end; what was finished is saved.

    Args:
        agreed: all ranks know and leave in order; otherwise this rank stopped where it was.
    """

    def __init__(self, name: str, agreed: bool = False):
        super().__init__(name)
        self.agreed = agreed


class StopRequest:
    """Set by a signal; outside ``deferred`` there is nothing to save, and it stops at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._deferred = self._raised = False

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        self._deferred = self._raised = False  # of an earlier computation, which failed
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets ``name``: ranks must leave a computation together.

        So it stays after an error: launchers send signals to the ranks that are left, which have
        yet to say what went wrong.
        """
        self._deferred = True
        yield
        self._deferred = False

    def _note(self, number: int, _) -> None:
        self.name = signal.Signals(number).name
        if not (self._deferred or self._raised):  # once: batch systems repeat themselves
            self._raised = True
            raise Interrupted(self.name)
