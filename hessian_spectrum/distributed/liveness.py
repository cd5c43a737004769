"""Which ranks still answer, asked after a collective has failed."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

BEAT = 1.0  # seconds between signs of life
LISTEN = 3.5  # seconds without one: dead, frozen, or on a node that is lost
LAST = 5.0  # seconds that the rank which keeps the store waits for the others' last words


class RankLost(RuntimeError):
    """Another rank has died, hangs, or has left with an error of its own."""

    world: Any = None  # of a rank that could not join: what is known of its job, to leave it by


class Presence:
    """Signs of life of all ranks, in the store through which they met.

    A thread beats, so that a rank that computes is not taken for one that is frozen. Only a rank
    whose collective has failed looks: nothing is asked of the others before.

    Args:
        keeper: the rank whose process is the store's server; None: another process.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, keeper: int | None = None):
        # Its own connection: one that waits for a peer would keep the others from beating.
        self._store = store.clone()  # type: ignore[attr-defined]  # not in torch's stub
        self._store.set_timeout(timedelta(seconds=LISTEN))
        self.rank, self.size, self.keeper = rank, size, keeper
        self._beats, self._end = 0, threading.Event()
        self._is_lost = False  # the store
        self._beat()
        self._thread = threading.Thread(target=self._go_on, name="presence", daemon=True)
        self._thread.start()
        # The interpreter must not end while the thread is in the store's C++.
        atexit.register(self.stop)

    def stop(self) -> None:
        """No more signs of life; as this process ends in order."""
        self._end.set()
        self._thread.join(LISTEN)

    def silent(self) -> list[int]:
        """The ranks without a sign of life for ``LISTEN`` seconds, which this call takes."""
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
        """Has no rank claimed yet to say why the job ends? Claims it."""
        try:
            return self._ask(self._store.add, "said", 1) == 1
        except RuntimeError:  # the keeper is gone: the next rank speaks for it
            first = self.keeper is not None and self.rank == (self.keeper + 1) % self.size
            if not first:
                time.sleep(LISTEN)  # whoever leaves may end the job, with what was not yet said
            return first

    def leave(self, silent: int = 0) -> None:
        """Before this process ends: the rank that keeps the store goes last."""
        with suppress(RuntimeError):
            self._ask(self._store.add, "left", 1)
            waited = 0.0
            while self.rank == self.keeper and waited < LAST:
                if self._ask(self._store.add, "left", 0) >= self.size - silent:
                    break
                time.sleep(0.1)
                waited += 0.1

    def _ask(self, question: Callable, *words: Any) -> Any:
        """What the store says. Its time-out is of no use where its keeper is frozen: torch then
        waits for the keeper's word that the wait is over.

        Raises:
            RuntimeError: the store is lost, or has not answered for ``LISTEN`` seconds.
        """
        answers: queue.SimpleQueue = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put((question(*words), None))
            except RuntimeError as error:
                answers.put((None, error))

        if self._is_lost:
            raise RuntimeError("the ranks' store is lost")
        threading.Thread(target=ask, daemon=True).start()
        try:
            answer, error = answers.get(timeout=LISTEN)
        except queue.Empty:
            answer, error = None, RuntimeError("the ranks' store does not answer")
        if error:
            self._is_lost = True
            raise error
        return answer

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
