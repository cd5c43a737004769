"""The commands ``interpolate``, ``surface`` and ``track``: values at many points, and a picture's
worth of numbers made of them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from hessian_spectrum._core.errors import Warned
from hessian_spectrum._core.json_forms import Flag, Maybe, Real, Record, Whole
from hessian_spectrum.analyses import interpolate as between
from hessian_spectrum.analyses import trajectory
from hessian_spectrum.analyses.corner_surfaces import corner_task
from hessian_spectrum.analyses.curvature_map import COLUMNS
from hessian_spectrum.commands import curvature_map as maps
from hessian_spectrum.commands import plane_vectors, report
from hessian_spectrum.commands.computation import Computation, ResultT
from hessian_spectrum.commands.curve_search import CurveSearch
from hessian_spectrum.commands.points_computation import PointsComputation
from hessian_spectrum.commands.scheduler import TASKS, Job, Piece
from hessian_spectrum.commands.session import Session
from hessian_spectrum.commands.track_curvature import TrackCurvature
from hessian_spectrum.config import (
    InterpolateConfig,
    SurfaceConfig,
    TrackConfig,
    ValuesConfig,
)
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.world import World
from hessian_spectrum.landscape import paths, point_planner
from hessian_spectrum.landscape.point_evaluation import evaluate, ranges
from hessian_spectrum.landscape.point_passes import PointPlan
from hessian_spectrum.landscape.point_planner import PointTrial
from hessian_spectrum.landscape.results import Curve, Surface, Trajectory
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss import batch_norm
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.zoo import problem_loader

GRADIENT = 3  # a loss and its gradient take as long as so many losses

# How points are computed, as an unfinished run stores it: PointPlan, and a CurveSearch's numbers.
POINT_PLAN = Record(
    {
        **{name: Whole(1) for name in ("chunk", "together")},
        "batch_size": Maybe(Whole(1)),
        **{name: Flag() for name in ("channels_last", "superposed", "folded")},
    }
)
SEARCH = Record({"num_steps": Whole(), "loss": Real(finite=False)})
ValuesT = TypeVar("ValuesT", bound=ValuesConfig)


class ValuesComputation(PointsComputation[ValuesT, ResultT]):
    """Loss and accuracy at each point; a task is a chunk of points that share passes."""

    plan_form = Record({"how": Record({"points": POINT_PLAN}, {"search": SEARCH})})

    def __init__(self, config: ValuesT, problem: Problem, world: World):
        super().__init__(config, problem, world)
        self.test = _test(config, problem, self.mesh)

    def plan(self, task: PointTask, session: Session | None) -> str:
        plan, trials = _planned(self.config, self.mesh, self.evaluator, task, self.test)
        self.how = {"points": dataclasses.asdict(plan)}
        pace = min((trial.seconds for trial in trials), default=None)
        others = self.others(task, pace or 0.0, session)
        groups, ev = self.mesh.num_groups, self.evaluator
        if pace is not None:
            samples = ev.num_samples + (self.test.num_samples if self.test else 0)
            values = pace * len(task.points) * samples / groups / ev.world.size
            self.expected_seconds = values + sum(others.values())
        return report.points_estimate(task.points, plan, self.expected_seconds, groups, ev, others)

    def others(self, task: PointTask, pace: float, session: Session | None) -> dict[str, float]:
        """Seconds of what is computed beside the values at points, by its name.

        Args:
            pace: seconds for the loss of one sample at one point.
        """
        return {}

    def make_job(self, task: PointTask, session: Session) -> Job:
        ev, test, plan = self.evaluator, self.test, point_plan(self.how["points"])
        columns = tuple(evaluate(ev, task.points, 0, 0, plan=plan, test=test))

        def compute(indices: Sequence[int]) -> Iterator[Piece]:
            found = evaluate(ev, task.points, indices[0], indices[-1] + 1, plan=plan, test=test)
            yield indices, np.column_stack([found[name] for name in columns])

        return Job(columns, ranges(len(task.points), plan), compute, task.finish)


class SurfaceRun(ValuesComputation[SurfaceConfig, Surface]):
    """Values on a line or a plane around the parameters."""

    command = "surface"
    result_kinds = (Surface,)

    @classmethod
    def located(cls, config: SurfaceConfig) -> SurfaceConfig:
        return plane_vectors.located(config, *config.checkpoints[-1:])

    def make_task(self, computed: Tensor) -> PointTask:
        return plane_vectors.plane_task(self.config, self.evaluator, computed)

    def report(self, result: Surface, values: dict[str, float]) -> str:
        return report.values(result, values)


class Track(ValuesComputation[TrackConfig, Trajectory]):
    """Checkpoints of a training run as iterates, with what was evaluated at each."""

    command = "track"
    result_kinds = (Trajectory,)

    def __init__(self, config: TrackConfig, problem: Problem, world: World):
        warn_of_statistics(problem)
        super().__init__(config, problem, world)

    @classmethod
    def chosen(cls, config: TrackConfig) -> type[Computation[TrackConfig, Trajectory]]:
        return TrackCurvature if config.has_results_of_each else cls

    @classmethod
    def located(cls, config: TrackConfig) -> TrackConfig:
        return plane_vectors.located(config, config.checkpoints[-1])

    def make_task(self, computed: Tensor) -> PointTask:
        rows = plane_vectors.of_checkpoints(self.evaluator, self.config.checkpoints)
        steps, about = plane_vectors.steps_of(self.config.checkpoints)
        return trajectory.iterates_task(self.evaluator, rows, steps, **about)

    def others(self, task: PointTask, pace: float, session: Session | None) -> dict[str, float]:
        if not self.config.eigenvalues:
            return {}
        estimate = maps.planned(self.config, self.mesh, self.evaluator)
        if session:
            session.take(estimate)
        return {"eigenvalues": estimate.seconds * len(task.points) / self.mesh.num_groups}

    def make_job(self, task: PointTask, session: Session) -> Job:
        """With eigenvalues: the same points, one at a time, with both extreme eigenvalues."""
        job = super().make_job(task, session)
        if not self.config.eigenvalues:
            return job
        rows = maps.rows_along(self.config, self.evaluator, task.points, session.product_plan)

        def compute(indices: Sequence[int]) -> Iterator[Piece]:
            ((_, values),) = job.compute(indices)
            for (index, found), row in zip(rows(indices), values):
                yield [index], np.concatenate([row, found[1:]])[None]

        return dataclasses.replace(job, columns=(*job.columns, *COLUMNS[1:]), compute=compute)

    def report(self, result: Trajectory, values: dict[str, float]) -> str:
        return report.values(result, values)


class Interpolate(ValuesComputation[InterpolateConfig, Curve | Surface]):
    """Values between checkpoints. Of a curve, steps of a search come first, then its points."""

    command = "interpolate"
    result_kinds = (Curve, Surface)
    search: CurveSearch | None = None  # the search that is not finished

    def __init__(self, config: InterpolateConfig, problem: Problem, world: World):
        warn_of_statistics(problem)
        super().__init__(config, problem, world)

    @classmethod
    def chosen(cls, config: InterpolateConfig) -> type[Computation[InterpolateConfig, Any]]:
        if config.pairs is not None:
            from hessian_spectrum.commands.pairs import PairsRun  # which imports this module

            return PairsRun
        if config.match is not None:
            from hessian_spectrum.commands.matched_line import MatchedRun  # as well

            return MatchedRun
        return cls

    @classmethod
    def located(cls, config: InterpolateConfig) -> InterpolateConfig:
        return plane_vectors.located(config, config.between[0])

    def make_task(self, computed: Tensor) -> PointTask:
        config, ev = self.config, self.evaluator
        if config.curve != "straight":
            self.search = CurveSearch(config, ev)
            return self.search.task()
        corners = list(plane_vectors.of_checkpoints(ev, config.between))
        num_points = config.num_points or (50 if len(corners) == 2 else 25)
        at = paths.window(config.low, config.high, num_points).tolist()
        if len(corners) == 4:
            return corner_task(ev, "bilinear", corners, at, at)
        if len(corners) == 3:
            return corner_task(ev, "barycentric", corners, at, at)
        if config.by_distance:
            return between.distance_task(ev, corners[0], corners[1], at)
        ends = (config.low, config.high)
        return between.linear_task(ev, corners[0], corners[1], num_points, window=ends)

    def others(self, task: PointTask, pace: float, session: Session | None) -> dict[str, float]:
        config, ev = self.config, self.evaluator
        if config.curve == "straight":
            return {}
        passes = GRADIENT * config.num_steps * config.points_per_step
        return {"search of the curve": passes * pace * ev.num_samples / self.world.size}

    def first_task(self) -> PointTask:
        if self.search is None:
            return self.task
        self.search.begin(self.problem, self.mesh, self.saved)
        return self.search.task()

    @property
    def progress(self) -> tuple[int, int, str]:
        points, done, unit = super().progress
        if self.config.curve == "straight":
            return points, done, unit
        steps = self.search.state.num_steps if self.search else self.config.num_steps
        return self.config.num_steps + points, steps + done, "step"

    def step(self, session: Session) -> None:
        if self.search and not self.search.is_finished:
            self.search.step()
            return
        if self.search:
            self.save(session)
            self.search.end()
            task, self.search = self.search.task(), None
            self.begin(self.make_job(task, session))
        super().step(session)

    @property
    def has_state(self) -> bool:
        return self.search is not None

    def save(self, session: Session) -> None:
        if self.search:
            self.how["search"] = self.search.described()
            self.keep(self.search.vectors())
        super().save(session)

    def report(self, result: Curve | Surface, values: dict[str, float]) -> str:
        return report.values(result, values)


def point_plan(stored: Mapping[str, Any]) -> PointPlan:
    return PointPlan(**{name: stored[name] for name in POINT_PLAN.required})


def warn_of_statistics(problem: Problem) -> None:
    """Say what BatchNorm does at points between networks, where it does not recompute it."""
    if problem.batch_norm in (None, "eval") and _is_normalized(problem.model):
        warnings.warn(
            "at every point BatchNorm normalizes by the running statistics of one network; "
            "networks with statistics of their own are compared by --batch-norm recalibrate",
            Warned,
            stacklevel=2,
        )


def _is_normalized(model: object) -> bool:
    return isinstance(model, nn.Module) and bool(batch_norm.layers(model))


def _test(config: ValuesConfig, problem: Problem, mesh: Mesh) -> Evaluator | None:
    """The same model on the test split."""
    if not config.test:
        return None

    def made() -> Evaluator:
        data = problem_loader.load(dataclasses.replace(config, split="test")).data
        return dataclasses.replace(problem, data=data).evaluator(mesh.data)

    return together(mesh.world, made)


def _planned(
    config: ValuesConfig, mesh: Mesh, ev: Evaluator, task: PointTask, test: Evaluator | None
) -> tuple[PointPlan, tuple[PointTrial, ...]]:
    """The first group's plan, in chunks that leave something for all groups."""

    def measured() -> tuple[PointPlan, tuple[PointTrial, ...]] | None:
        if mesh.group > 0:
            return None
        return point_planner.plan(ev, task.points, memory=config.memory_bytes, test=test)

    plan, trials = mesh.world.gather_objects(together(mesh.world, measured))[0]
    most = max(1, len(task.points) // (TASKS * mesh.num_groups))
    if mesh.num_groups > 1 and plan.chunk > most:
        plan = dataclasses.replace(plan, chunk=most, together=min(plan.together, most))
    return plan, trials
