"""Many points: handed out to groups of ranks, committed as they come, and resumed where missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.commands.runner import Record, on_first_rank, reopened, together
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.config import PointsConfig
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.task_queue import Handout
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.storage.hdf5_schema import Result

TASKS = 4  # for each group, so that one that is slow does not hold up the others

Array = NDArray[np.float64]
Piece = tuple[Sequence[int], Array]  # indices of points, and their rows (points, columns)
PROGRESS = "values/progress"  # of an unfinished run
VECTORS = "values/directions"  # of directions that were computed


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


@dataclass(frozen=True)
class Saved:
    """What an interrupted run has left in OUT; of ``vectors`` the first rank alone has any."""

    header: dict[str, Any]  # as Record.header's
    progress: dict[str, Any]
    vectors: Array | None  # (k, n), directions that were computed


def saved_run(config: PointsConfig, command: str, world: World) -> Saved | None:
    """On every rank: what to go on from; None for a new run."""
    found = None

    def read() -> None:
        nonlocal found
        if config.resume and config.out.exists():
            found = _read(config, command)

    on_first_rank(world, read)
    vectors, found = (found.vectors, replace(found, vectors=None)) if found else (None, None)
    found = world.gather_objects(found)[0]
    return found and replace(found, vectors=vectors)


def _read(config: PointsConfig, command: str) -> Saved:
    with reopened(config.out) as run:
        if run.config.get("command") != command or PROGRESS not in run:
            raise InputError(
                f"{run.path} is not what an interrupted {command} has left: there is nothing to "
                "resume; use --overwrite to start again, or another --out"
            )
        plan, origin = run.plan, run.provenance
        problem = {name: plan[name] for name in ("parameters", "total_weight")}
        header = {
            "config": run.config,
            "digests": origin["digests"],
            "problem": {**problem, "dtype": f"torch.{plan['dtype']}"},
            "values": run["values"],
            "plan": plan,
            "work": {name: origin[name] for name in ("seconds", "products", "passes")},
        }
        return Saved(header, run[PROGRESS], run[VECTORS]["vectors"] if VECTORS in run else None)


class PointRecord(Record):
    """A table with a row for each point, on rank 0, in the result file as soon as it is there."""

    free_fields = Record.free_fields | {"ranks_per_point"}

    def __init__(
        self,
        command: str,
        config: PointsConfig,
        mesh: Mesh,
        evaluator: Evaluator,
        lock: Any,
        started: float,
        inputs: str,
    ):
        """``inputs``: a digest of the vectors that the points are made of."""
        super().__init__(config, mesh.world, evaluator, lock, started)
        self.command, self.mesh = command, mesh
        self.origin["digests"]["points"] = inputs
        _require_agreement(mesh, self.origin["digests"])
        self.how: dict[str, Any] = {}  # how points are computed: a part of the plan
        self.job: Job | None = None
        self.rows: Array | None = None  # (p, columns); NaN where not done
        self.done: NDArray[np.bool_] | None = None  # (p,)
        self.spent = {"products": 0, "passes": 0}  # by all groups
        self.vectors: Array | None = None  # on rank 0, to be stored
        self.beside: tuple[Result, ...] = ()

    # -- going on --------------------------------------------------------------------------------

    def go_on(self, saved: Saved | None, stop: StopRequest) -> None:
        """Look at the loss, and compare with the earlier run and the loss that it had.

        Raises:
            InputError: it was another run.
            Interrupted: a signal came.
        """
        if saved:
            together(self.world, lambda: self.go_on_from(saved.header))
            self.how = saved.header["plan"]["how"]
        # Not ``ev.loss()``: a centre that overflows is a point like others.
        self.values = {"loss": self.evaluator.loss(self.evaluator.theta[None]).item()}
        if saved:
            self.require_same_values()
        self.leave_if(stop)

    # -- the table -------------------------------------------------------------------------------

    def begin(self, job: Job, progress: dict[str, Any] | None) -> None:
        """An empty table, or what the earlier run has filled of it."""
        shape = job.num_points, len(job.columns)
        self.job = job
        self.rows, self.done = np.full(shape, np.nan), np.zeros(shape[0], dtype=bool)
        if progress is not None:
            if progress["rows"].shape != shape:
                raise InputError(
                    f"cannot resume: {self.config.out} has {progress['rows'].shape} points and "
                    f"columns, and now there are {shape}; use --overwrite to start again"
                )
            self.rows, self.done = progress["rows"], progress["done"]
        self.spent = {name: getattr(self.evaluator.counts, name) for name in self.spent}

    def take(self, found: dict[str, Any]) -> int:
        """Enter what a group has sent; returns how many points it was."""
        indices = found["points"]
        self.rows[indices], self.done[indices] = found["rows"], True
        for name in self.spent:
            self.spent[name] += found[name]
        return len(indices)

    def keep(self, vectors: Tensor, beside: tuple[Result, ...] = ()) -> None:
        """Store with the result vectors (k, n), which cannot be made again to the last bit, and
        results that are known already."""
        self.beside = beside
        if len(vectors) and self.world.rank == 0:
            self.vectors = vectors.cpu().numpy()

    def result(self) -> Result:
        """Of the points that are done; on rank 0."""
        return self.job.result(dict(zip(self.job.columns, self.rows.T)))

    def commit(self, finished: bool) -> None:
        """Replace the result file; on rank 0."""
        beside = {} if finished else {PROGRESS: {"done": self.done, "rows": self.rows}}
        if self.vectors is not None:
            beside[VECTORS] = {"vectors": self.vectors}
        self.write_here(self.result(), *self.beside, finished=finished, **beside)
        self.last_save = time.monotonic()

    # -- what the file says ----------------------------------------------------------------------

    def plan(self) -> dict[str, Any]:
        groups = {"groups": self.mesh.num_groups, "ranks_per_point": self.mesh.data.size}
        return {"how": self.how, **groups, **super().plan()}

    def work(self) -> dict[str, Any]:
        mine = {name: self.earlier[name] + count for name, count in self.spent.items()}
        return {**super().work(), **mine}


def run(record: PointRecord, job: Job, stop: StopRequest, progress: dict | None) -> bool:
    """Compute all points that are not done; called by every rank.

    Returns True where it is finished; the table is on rank 0.

    Raises:
        Interrupted: a signal came to a rank; what was finished is in the result file.
    """
    world, handout, error = record.world, None, None
    record.begin(job, progress)
    done = record.done
    tasks = [[i for i in task if not done[i]] for task in job.tasks]
    tasks = [task for task in tasks if task]
    handout = Handout(record.mesh, len(tasks))
    with record.bar(job.num_points, int(done.sum()), "point") as bar:
        collect = _collector(record, handout, bar)
        try:
            _work(record, job, tasks, handout, stop, collect)
        except Exception as failed:
            if record.mesh.data.size > 1:  # the others of the group wait for this rank
                raise
            error = failed
            handout.stop()
        # What has failed may be the writing: then it is tried once more, at the end.
        handout.wait(collect if error is None else lambda: None)
        collect(write=False)
    complete = bool(world.gather_objects(bool(record.done.all()))[0])
    try:
        on_first_rank(world, lambda: record.commit(finished=complete))
    finally:
        world.raise_together(error)
    if not complete:
        record.leave_if(stop)
    return complete


def _work(
    record: PointRecord,
    job: Job,
    tasks: Sequence[Sequence[int]],
    handout: Handout,
    stop: StopRequest,
    collect: Callable[[], None],
) -> None:
    """This group's part."""
    counts, before = record.evaluator.counts, dict(record.spent)
    while (number := handout.next(stop.name is not None)) is not None:
        for indices, rows in job.compute(tasks[number]):
            now = {name: getattr(counts, name) for name in before}
            spent = {name: now[name] - before[name] for name in now}
            handout.send({"points": [int(i) for i in indices], "rows": rows.tolist(), **spent})
            before = now
            collect()
            if handout.stopped(stop.name is not None):
                return


def _collector(record: PointRecord, handout: Handout, bar: tqdm) -> Callable[..., None]:
    """On rank 0: take what has come, and write it where it is due."""

    def collect(write: bool = True) -> None:
        if record.world.rank > 0:
            return
        new = sum(record.take(found) for found in handout.received())
        bar.update(new)
        if write and new and record.is_due() and not record.done.all():
            record.commit(finished=False)

    return collect


def _require_agreement(mesh: Mesh, digests: dict[str, str | None]) -> None:
    """Inside a group an Evaluator looks itself."""
    every = mesh.world.gather_objects(digests)
    for name in digests:
        other = next((r for r, found in enumerate(every) if found[name] != every[0][name]), None)
        if other is not None:
            raise InputError(
                f"rank {other} and rank 0 hold different {name}; load the same files on every "
                "rank, or seed torch before the model is made"
            )
