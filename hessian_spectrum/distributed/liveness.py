"""Which ranks still answer, asked after a collective has failed."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")

BEAT = 1.0  # seconds between heartbeats
LISTEN = 3.5  # seconds without one: dead, frozen, or on a node that is lost
LAST = 5.0  # seconds that the rank which serves the store waits for the others to leave


class RankLost(RuntimeError):
    """Another rank has died, hangs, or has left with an error of its own."""

    world: Any = None  # set for a rank that could not join: what is known of its job


def answer_within(seconds: float, question: Callable[..., T], *words: Any) -> T:
    """What ``question(*words)`` returns or raises; TimeoutError after so many seconds.

    It is asked in a thread, which stays behind where no answer comes. For torch's stores, whose own
    time-out does not work when the process that serves them is frozen or no store at all.
    """
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((question(*words), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.3g} s") from None
    if error is not None:
        raise error
    return answer


class Presence:
    """Heartbeats of all ranks, in the store through which they joined the job.

    A thread sends them, so that a rank that computes is not taken for a frozen one. They are read
    only by a rank whose collective has failed.

    Args:
        keeper: the rank whose process is the store's server; None: another process.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, keeper: int | None = None):
        # A connection of its own: a wait on a shared one would block the heartbeat.
        self._store = store.clone()  # type: ignore[attr-defined]  # not in torch's stub
        self._store.set_timeout(timedelta(seconds=LISTEN))
        self.rank, self.size, self.keeper = rank, size, keeper
        self._beats, self._end = 0, threading.Event()
        self._is_lost = False  # the store
        self._beat()
        self._thread = threading.Thread(target=self._go_on, name="presence", daemon=True)
        self._thread.start()
        # The interpreter must not exit while the thread is inside the store's C++ code.
        atexit.register(self.stop)

    def stop(self) -> None:
        """Stop the heartbeat before this process ends normally."""
        self._end.set()
        self._thread.join(LISTEN)

    def silent(self) -> list[int]:
        """The ranks that send no heartbeat for ``LISTEN`` seconds, which this call takes."""
        try:
            keys = [self._key(rank) for rank in range(self.size)]
            before = self._ask(self._store.multi_get, keys)
            time.sleep(LISTEN)
            after = self._ask(self._store.multi_get, keys)
        except RuntimeError:  # nobody serves the store
            return [] if self.keeper in (None, self.rank) else [self.keeper]
        pairs = enumerate(zip(before, after))
        return [rank for rank, (one, two) in pairs if one == two and rank != self.rank]

    def speaks_first(self) -> bool:
        """True for the first rank that asks: it reports why the job ends, the others do not."""
        try:
            return self._ask(self._store.add, "said", 1) == 1
        except RuntimeError:  # the serving rank is gone: the next rank reports
            first = self.keeper is not None and self.rank == (self.keeper + 1) % self.size
            if not first:
                time.sleep(LISTEN)  # whoever leaves first ends the job, perhaps without a reason
            return first

    def leave(self, silent: int = 0) -> None:
        """Called before this process ends: the rank that serves the store leaves last."""
        with suppress(RuntimeError):
            self._ask(self._store.add, "left", 1)
            waited = 0.0
            while self.rank == self.keeper and waited < LAST:
                if self._ask(self._store.add, "left", 0) >= self.size - silent:
                    break
                time.sleep(0.1)
                waited += 0.1

    def _ask(self, question: Callable, *words: Any) -> Any:
        """The store's answer, with a time-out of our own.

        Raises:
            RuntimeError: the store is lost, or has not answered for ``LISTEN`` seconds.
        """
        if self._is_lost:
            raise RuntimeError("the ranks' store is lost")
        try:
            return answer_within(LISTEN, question, *words)
        except TimeoutError:
            self._is_lost = True
            raise RuntimeError("the ranks' store does not answer") from None
        except RuntimeError:
            self._is_lost = True
            raise

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(self._key(self.rank), str(self._beats))

    def _go_on(self) -> None:
        with suppress(RuntimeError):  # the store goes with its keeper at the job's end
            while not self._end.wait(BEAT):
                self._beat()

    @staticmethod
    def _key(rank: int) -> str:
        return f"alive/{rank}"
