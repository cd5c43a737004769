"""A queue of tasks for groups of ranks: a group takes the next task when it is free.

It lives in the key-value store through which the ranks joined: a counter holds the next task's
number, and results are posted under numbered keys. No group waits for another until the queue is
empty.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.world import RankLost

POLL = 0.02, 0.5  # seconds between polls, at first and at most
PATIENCE = 30.0  # seconds of waiting before heartbeats are checked
LOOKS = 6  # checks in a row in which a lost rank is silent; one may be in a long call


class Handout:
    """A queue of ``count`` tasks, each for one group; results go to rank 0.

    Every rank of the world constructs one, at the same place in the program. A task costs the first
    rank of its group two operations on the store, and the group two small reductions.
    """

    def __init__(self, mesh: Mesh, count: int):
        self.mesh, self.count = mesh, count
        # A unique name: counters of an earlier queue are still in the store.
        name = mesh.world.gather_objects(uuid.uuid4().hex if mesh.world.rank == 0 else None)[0]
        self._store = _Store(dist.PrefixStore(f"handout/{name}", _default_store(mesh)))
        self._read = 0

    # -- each group ------------------------------------------------------------------------------

    def next(self, stopping: bool = False) -> int | None:
        """The group's next task, the same on each of its ranks; None when the queue is empty.

        Args:
            stopping: this rank was asked to stop; then no group is given another task.
        """
        if self.stopped(stopping):
            return None
        taken = self._store.add("next", 1) - 1 if self.mesh.leads else 0
        taken = self._agreed(taken)
        return taken if taken < self.count else None

    def stopped(self, stopping: bool = False) -> bool:
        """Was any rank asked to stop? Known to all ranks of a group, and soon to all groups."""
        heard = stopping or (self.mesh.leads and self._store.check(["stop"]))
        if not self._agreed(int(heard)):
            return False
        if self.mesh.leads:
            self.stop()
        return True

    def stop(self) -> None:
        """Hand out no more tasks, to any group."""
        self._store.set("stop", "yes")

    def send(self, found: Any) -> None:
        """Send a JSON-serializable value from a group's first rank to rank 0."""
        if self.mesh.leads:
            number = self._store.add("sent", 1)
            self._store.set(f"sent/{number}", json.dumps(found))

    def _agreed(self, value: int) -> int:
        """The sum over the group."""
        if self.mesh.data.size == 1:
            return value
        return int(self.mesh.data.sum(torch.tensor(value, device=self.mesh.data.device)).item())

    # -- rank 0 ----------------------------------------------------------------------------------

    def received(self) -> Iterator[Any]:
        """The results posted since the last call, in order of arrival."""
        while self._store.check([key := f"sent/{self._read + 1}"]):
            self._read += 1
            found = json.loads(self._store.get(key))
            self._store.delete_key(key)
            yield found

    # -- the end ---------------------------------------------------------------------------------

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until all groups have finished. Polls, since collectives time out after minutes.

        Args:
            meanwhile: called between polls.

        Raises:
            RankLost: a rank of an unfinished group has sent no heartbeat for some time.
        """
        if self.mesh.leads:
            self._store.set(f"here/{self.mesh.group}", "yes")
        absent, pause = set(range(self.mesh.num_groups)), POLL[0]
        look = time.monotonic() + PATIENCE
        while True:
            absent -= {group for group in absent if self._store.check([f"here/{group}"])}
            meanwhile()
            if not absent:
                return
            if time.monotonic() > look:
                self._require_alive(absent)
                look = time.monotonic() + PATIENCE
            time.sleep(pause)
            pause = min(1.2 * pause, POLL[1])

    def _require_alive(self, absent: set[int]) -> None:
        """RankLost if a rank is lost. Takes seconds if all answer, else half a minute."""
        world = self.mesh.world
        suspects: set[int] = set()  # silent at every look so far
        for look in range(LOOKS):
            ranks = world.presence.silent() if world.presence else []
            silent = {rank for rank in ranks if rank // self.mesh.data.size in absent}
            suspects = suspects & silent if look else silent
            if not suspects:
                return
        raise RankLost(f"rank {min(suspects)} of {world.size} has given no sign of life")


class _Store:
    """A store's operations, which raise RankLost when the process that serves it is gone."""

    def __init__(self, store: dist.Store):
        self._store = store

    def __getattr__(self, name: str) -> Callable:
        operation = getattr(self._store, name)

        def called(*args: Any) -> Any:
            try:
                return operation(*args)
            except RuntimeError as error:
                raise RankLost(f"the ranks' store failed ({str(error).splitlines()[0]})") from error

        return called


def _default_store(mesh: Mesh) -> dist.Store:
    """The store of the default process group; one process has its own."""
    if mesh.world.size == 1:
        return dist.HashStore()
    # torch 2.11 and 2.13 have no common public accessor.
    return dist.distributed_c10d._get_default_store()
