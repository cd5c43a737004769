"""Many points: handed out to groups of ranks, entered into one table as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.task_queue import Handout
from hessian_spectrum.loss.evaluator import Counts
from hessian_spectrum.storage.hdf5_schema import Result

TASKS = 4  # for each group, so that one that is slow does not hold up the others

Array = NDArray[np.float64]
Piece = tuple[Sequence[int], Array]  # indices of points, and their rows (points, columns)


@dataclass(frozen=True)
class Job:
    """What is to be known of each of p points: one row of numbers."""

    columns: tuple[str, ...]
    tasks: Sequence[Sequence[int]]  # points that go to one group together; all points, once
    # On every rank of a group: rows of some of a task's points, as they are finished. A point's row
    # depends on its task, and not on who computes it, or when.
    compute: Callable[[Sequence[int]], Iterable[Piece]]
    result: Callable[[dict[str, Array]], Result]  # from whole columns; NaN where not yet computed

    @property
    def num_points(self) -> int:
        return sum(map(len, self.tasks))


class PointTable:
    """A row for each point of a job, and what was spent on them by all groups; on rank 0."""

    def __init__(self, job: Job):
        self.job = job
        self.rows = np.full((job.num_points, len(job.columns)), np.nan)  # NaN where not done
        self.done = np.zeros(job.num_points, dtype=bool)
        self.spent = {"products": 0, "passes": 0}

    def fill(self, progress: dict[str, Any], source: object) -> None:
        """Enter what an earlier run has done.

        Raises:
            InputError: its table has another shape; names the file ``source``.
        """
        shape = self.rows.shape
        if progress["rows"].shape != shape:
            raise InputError(
                f"cannot resume: {source} has {progress['rows'].shape} points and columns, and "
                f"now there are {shape}; use --overwrite to start again"
            )
        self.rows, self.done = progress["rows"], progress["done"]

    def count(self, counts: Counts) -> None:
        """Begin with what this rank has spent so far."""
        self.spent = {name: getattr(counts, name) for name in self.spent}

    def enter(self, found: dict[str, Any]) -> int:
        """Enter what a group has sent; returns how many points it was."""
        indices = found["points"]
        self.rows[indices], self.done[indices] = found["rows"], True
        for name in self.spent:
            self.spent[name] += found[name]
        return len(indices)

    def result(self) -> Result:
        """Of the points that are done."""
        return self.job.result(dict(zip(self.job.columns, self.rows.T)))


def hand_out(
    table: PointTable,
    mesh: Mesh,
    counts: Counts,
    is_stopping: Callable[[], bool],
    on_points: Callable[[int], None],
) -> Exception | None:
    """Compute all points that are not done, until a rank is asked to stop; called by every rank.

    Args:
        counts: of this group's evaluator.
        is_stopping: was this rank asked to stop?
        on_points: on rank 0: so many points more are in the table; it may write the table.

    Returns:
        What failed on this rank, to be raised together with the other ranks. What was finished by
        then is in the table.
    """
    tasks = [[i for i in task if not table.done[i]] for task in table.job.tasks]
    tasks = [task for task in tasks if task]
    handout, error = Handout(mesh, len(tasks)), None

    def collect() -> int:
        return (
            sum(table.enter(found) for found in handout.received()) if mesh.world.rank == 0 else 0
        )

    def collect_and_tell() -> None:
        new = collect()
        if new:
            on_points(new)

    try:
        _work(table.job, tasks, handout, counts, dict(table.spent), is_stopping, collect_and_tell)
    except Exception as failed:
        if mesh.data.size > 1:  # the others of the group wait for this rank
            raise
        error = failed
        handout.stop()
    # What has failed may be the writing: then it is tried once more, at the end.
    handout.wait(collect_and_tell if error is None else lambda: None)
    collect()
    return error


def _work(
    job: Job,
    tasks: Sequence[Sequence[int]],
    handout: Handout,
    counts: Counts,
    before: dict[str, int],
    is_stopping: Callable[[], bool],
    collect: Callable[[], None],
) -> None:
    """This group's part; ``before``: what it had spent."""
    while (number := handout.next(is_stopping())) is not None:
        for indices, rows in job.compute(tasks[number]):
            now = {name: getattr(counts, name) for name in before}
            spent = {name: now[name] - before[name] for name in now}
            handout.send({"points": [int(i) for i in indices], "rows": rows.tolist(), **spent})
            before = now
            collect()
            if handout.stopped(is_stopping()):
                return
