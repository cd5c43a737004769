"""Computations at many points: the result file holds the table of what is done, and is the state.

Groups of ranks take points without waiting for each other, so that all points are one step, which
writes the file whenever that is due.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import numpy as np
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Record
from hessian_spectrum.commands import plane_vectors
from hessian_spectrum.commands.computation import Computation, ResultT
from hessian_spectrum.commands.header import FREE_FIELDS, RunHeader
from hessian_spectrum.commands.output import reopened
from hessian_spectrum.commands.scheduler import Array, Job, PointTable, hand_out
from hessian_spectrum.commands.session import Session
from hessian_spectrum.config import PointsConfig
from hessian_spectrum.distributed.agreement import on_first_rank, together
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.world import World
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.storage.hdf5_schema import Result
from hessian_spectrum.storage.run_file import Run

PROGRESS = "values/progress"  # of an unfinished run
VECTORS = "values/directions"  # of directions that were computed

PointsT = TypeVar("PointsT", bound=PointsConfig)


@dataclass(frozen=True)
class Saved:
    """What an interrupted run has left in OUT."""

    header: RunHeader
    progress: dict[str, Any]  # as PointTable.fill takes it
    vectors: Array | None  # (k, n), directions that were computed; on rank 0 alone


class PointsComputation(Computation[PointsT, ResultT]):
    """Subclasses say which points, how they are computed, and what their values are made into."""

    result_kinds: ClassVar[tuple[type, ...]]  # what ``finish`` may return
    free_fields = FREE_FIELDS | {"ranks_per_point"}
    is_whole_on_first_rank = True
    plan_form: ClassVar[Record] = Record({"how": Record({})})  # of an unfinished run

    def __init__(self, config: PointsT, problem: Problem, world: World):
        self.config, self.world, self.problem = config, world, problem
        timeout = timedelta(minutes=config.timeout_minutes)
        self.mesh = Mesh.of(world, config.ranks_per_point, timeout)
        self.evaluator = together(world, lambda: problem.evaluator(self.mesh.data))
        self.how: dict[str, Any] = {}  # how points are computed: a part of the plan
        self.saved: Saved | None = None
        self.table: PointTable | None = None
        self._vectors: Array | None = None  # on rank 0, to be stored
        self._is_complete = False

    # -- what a command of points supplies -------------------------------------------------------

    @abstractmethod
    def make_task(self, computed: Tensor) -> PointTask:
        """The points, from directions (k, n) that had to be computed."""

    @abstractmethod
    def plan(self, task: PointTask, session: Session | None) -> str:
        """How points are computed, measured, and said in words.

        With a session it is noted in ``how``, and taken over by the session.
        """

    @abstractmethod
    def make_job(self, task: PointTask, session: Session) -> Job:
        """How one point is computed, as planned."""

    # -- before the first step -------------------------------------------------------------------

    def preview(self) -> str:
        computed = together(self.world, self.stand_ins)
        return self.plan(together(self.world, lambda: self.make_task(computed)), None)

    def stand_ins(self) -> Tensor:
        """As many vectors as have to be computed, to plan with."""
        return plane_vectors.stand_ins(self.config, self.evaluator)

    def settle(self, saved: Saved | None) -> Tensor:
        """(k, n), vectors that have to be computed: those of the run resumed, or made now."""
        vectors = saved.vectors if saved else None
        is_resumed = saved is not None
        return plane_vectors.settled(self.config, self.evaluator, self.mesh, is_resumed, vectors)

    def load(self, session: Session) -> None:
        world, saved = self.world, self._read()
        self.saved = saved
        computed = self.settle(saved)
        self.task = together(world, lambda: self.make_task(computed))
        session.digests["points"] = plane_vectors.digest(self.task)
        plane_vectors.require_agreement(world, session.digests)
        self.keep(computed)
        if saved:
            together(world, lambda: session.resume_from(saved.header))
            self.how = dict(saved.header.plan["how"])

    def _read(self) -> Saved | None:
        """On every rank, what an earlier run has left; None for a new run."""
        config, found = self.config, None

        def read() -> None:
            nonlocal found
            if config.resume and config.out.exists():
                found = self._read_here()

        on_first_rank(self.world, read)
        vectors = found.vectors if found else None
        found = self.world.gather_objects(found and replace(found, vectors=None))[0]
        return found and replace(found, vectors=vectors)

    def _read_here(self) -> Saved:
        with reopened(self.config.out) as run:
            if PROGRESS not in run:
                raise InputError(
                    f"{run.path} is not what an interrupted {self.command} has left: there is "
                    "nothing to resume; use --overwrite to start again, or another --out"
                )
            progress, kept = run[PROGRESS], run.get(VECTORS)
            vectors = None if kept is None else saved_array(run, kept, "vectors", "f", 2)
            header = RunHeader.from_run(run)
            try:
                self.plan_form.require(header.plan, "plan")
            except InputError as error:
                raise InputError(f"{run.path}: is damaged: {error}") from None
            rows = saved_array(run, progress, "rows", "f", 2)
            done = saved_array(run, progress, "done", "b", 1)
            if len(rows) != len(done):
                raise InputError(f"{run.path}: is damaged: {len(rows)} points, {len(done)} flags")
            return Saved(header, {"rows": rows, "done": done}, vectors)

    def look(self) -> dict[str, float]:
        # Not ``loss()``: a centre that overflows is a point like others.
        return {"loss": self.evaluator.loss(self.evaluator.theta[None]).item()}

    def prepare(self, session: Session) -> None:
        if self.saved is None:
            session.say(self.plan(self.task, session))
        self.begin(self.make_job(self.first_task(), session))

    def first_task(self) -> PointTask:
        """The points of the first step."""
        return self.task

    def begin(self, job: Job) -> None:
        """Make the table of a job's points, with what the earlier run has filled of it."""
        self.table = PointTable(job)
        if self.saved:
            self.table.fill(self.saved.progress, self.config.out)
        self.table.count(self.evaluator.counts)

    # -- the step --------------------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        return self._is_complete

    @property
    def progress(self) -> tuple[int, int, str]:
        table = self._table
        return table.job.num_points, int(table.done.sum()), "point"

    def step(self, session: Session) -> None:
        """Compute all points that are not done, or as many as there are until a signal comes."""
        table, checkpoints, progress = self._table, session.checkpoints, session.progress

        def on_points(count: int) -> None:
            if progress is not None:
                progress.update(count)
            if checkpoints.is_due() and not table.done.all():
                self.commit(session, finished=False)

        counts = self.evaluator.counts
        error = hand_out(table, self.mesh, counts, checkpoints.is_stopping, on_points)
        complete = bool(self.world.gather_objects(bool(table.done.all()))[0])

        def raise_error() -> None:
            if error is not None:
                raise error

        try:
            on_first_rank(self.world, lambda: self.commit(session, finished=complete))
        finally:
            together(self.world, raise_error)
        if not complete:
            checkpoints.was_saved(last=True)
            checkpoints.leave_if_stopped()
        assert complete  # nothing else leaves points
        self._is_complete = complete

    # -- the result file -------------------------------------------------------------------------

    def keep(self, vectors: Tensor) -> None:
        """Store these vectors (k, n) with the result: they cannot be made again to the last bit."""
        if len(vectors) and self.world.rank == 0:
            self._vectors = vectors.cpu().numpy()

    def save(self, session: Session) -> None:
        on_first_rank(self.world, lambda: self.commit(session, finished=False))

    def results(self) -> tuple[tuple[Result, ...], dict[str, Result]]:
        """Of the points that are done: the results without a label, and those with one by key."""
        return (self._table.result(), *self.task.beside), {}

    def commit(self, session: Session, finished: bool) -> None:
        """Replace the result file; on rank 0."""
        table = self._table
        beside: dict[str, Result] = {}
        if not finished:
            beside[PROGRESS] = {"done": table.done, "rows": table.rows}
        if self._vectors is not None:
            beside[VECTORS] = {"vectors": self._vectors}
        results, labelled = self.results()
        session.write_here(*results, finished=finished, **beside, **labelled)
        if not finished:
            session.checkpoints.was_saved()

    def finish(self, session: Session) -> ResultT:
        """The result of all points, which the last step has written; complete on rank 0 only."""
        result = self._table.result()
        assert isinstance(result, self.result_kinds)
        return result  # type: ignore[return-value]  # one of ``result_kinds``

    def plan_entries(self) -> dict[str, Any]:
        mesh = self.mesh
        groups = {"groups": mesh.num_groups, "ranks_per_point": mesh.data.size}
        return {"how": self.how, **groups}

    def counts(self) -> tuple[int, int]:
        """Of all groups."""
        if self.table is None:
            return 0, 0
        return self.table.spent["products"], self.table.spent["passes"]

    @property
    def _table(self) -> PointTable:
        assert self.table is not None  # the runner has called ``prepare``
        return self.table


def saved_array(run: Run, values: Any, name: str, kind: str, ndim: int) -> Any:
    """An array of a saved state; InputError where it is none of this kind and dimension."""
    found = values.get(name) if isinstance(values, Mapping) else None
    if not isinstance(found, np.ndarray) or (found.dtype.kind, found.ndim) != (kind, ndim):
        raise InputError(f"{run.path}: is damaged: {name} is no array of the type of this state")
    return found
