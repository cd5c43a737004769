"""The commands ``interpolate``, ``surface`` and ``track``: values at many points, and a picture's
worth of numbers made of them."""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import nn

from hessian_spectrum._core.errors import Warned
from hessian_spectrum.analyses import interpolate as between
from hessian_spectrum.analyses import trajectory
from hessian_spectrum.analyses.corner_surfaces import corner_task
from hessian_spectrum.analyses.curvature_map import COLUMNS
from hessian_spectrum.commands import curvature_map as maps
from hessian_spectrum.commands import curve_search, plane_vectors, report
from hessian_spectrum.commands.runner import check_output, on_first_rank, together, writing
from hessian_spectrum.commands.scheduler import TASKS, Job, Piece, PointRecord, run, saved_run
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.config.computing import (
    InterpolateConfig,
    SurfaceConfig,
    TrackConfig,
    ValuesConfig,
)
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.world import World
from hessian_spectrum.landscape import paths, point_planner
from hessian_spectrum.landscape.point_evaluation import evaluate, ranges
from hessian_spectrum.landscape.point_passes import PointPlan
from hessian_spectrum.landscape.point_planner import PointTrial
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss import batch_norm
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.zoo import problem_loader

Task = Callable[[Evaluator, Any], PointTask]  # with computed directions


def interpolate(
    config: InterpolateConfig, arguments: dict[str, Any], world: World, stop: StopRequest
) -> None:
    """From checkpoints to values between them; see ``density`` for arguments and errors."""

    def make(ev: Evaluator, _: Any) -> PointTask:
        if config.curve != "straight":
            return curve_search.task(config, ev, curve_search.start(config, ev))
        corners = list(plane_vectors.of_checkpoints(ev, config.between))
        num_points = config.num_points or (50 if len(corners) == 2 else 25)
        at = paths.window(config.low, config.high, num_points)
        if len(corners) == 4:
            return corner_task(ev, "bilinear", corners, at, at)
        if len(corners) == 3:
            return corner_task(ev, "barycentric", corners, at, at)
        if config.by_distance:
            return between.distance_task(ev, *corners, at)
        ends = (config.low, config.high)
        return between.linear_task(ev, *corners, num_points, window=ends)

    _values("interpolate", config, arguments, world, stop, make)


def surface(
    config: SurfaceConfig, arguments: dict[str, Any], world: World, stop: StopRequest
) -> None:
    """Values on a line or a plane around the parameters."""

    def make(ev: Evaluator, computed: torch.Tensor) -> PointTask:
        return plane_vectors.plane_task(config, ev, computed)

    _values("surface", config, arguments, world, stop, make)


def track(config: TrackConfig, arguments: dict[str, Any], world: World, stop: StopRequest) -> None:
    """Checkpoints of a training run as iterates, with what was evaluated at each."""

    def make(ev: Evaluator, _: Any) -> PointTask:
        return trajectory.iterates_task(ev, plane_vectors.of_checkpoints(ev, config.checkpoints))

    _values("track", config, arguments, world, stop, make)


def _values(
    command: str,
    config: ValuesConfig,
    arguments: dict[str, Any],
    world: World,
    stop: StopRequest,
    make: Task,
) -> None:
    started = time.time()
    has_eigenvalues = isinstance(config, TrackConfig) and config.eigenvalues

    def check() -> None:
        check_output(config, "")

    on_first_rank(world, check)
    if command != "surface" and (arguments.get("batch_norm") or "eval") == "eval":
        _warn_of_statistics(arguments["model"])
    mesh = Mesh.of(world, config.ranks_per_point, timedelta(minutes=config.timeout_minutes))
    ev = together(world, lambda: Evaluator(**arguments, world=mesh.data))
    test = _test(config, arguments, mesh)
    if config.dry_run:
        stand_in = plane_vectors.stand_ins(config, ev)
        task = together(world, lambda: make(ev, stand_in))
        _estimate(task, *_planned(config, mesh, ev, task, test), mesh, ev, sys.stdout)
        return
    with writing(config, world, stop, check) as lock:
        saved = saved_run(config, command, world)
        computed = plane_vectors.settled(config, ev, mesh, saved)
        task = together(world, lambda: make(ev, computed))
        record = PointRecord(command, config, mesh, ev, lock, started, plane_vectors.digest(task))
        record.keep(computed, task.beside)
        record.go_on(saved, stop)
        if saved:
            plan = PointPlan(**record.how["points"])
        else:
            plan, trials = _planned(config, mesh, ev, task, test)
            record.how = {"points": dataclasses.asdict(plan)}
            if has_eigenvalues:
                estimate = maps.planned(config, mesh, ev)
                record.product_plan, record.place = estimate.plan, estimate.place
            _estimate(task, plan, trials, mesh, ev, sys.stderr)
        job = _job(task, plan, ev, test)
        if isinstance(config, InterpolateConfig) and config.curve != "straight":

            def job_of(task: PointTask) -> Job:
                return _job(task, plan, ev, test)

            job = curve_search.search(config, arguments, record, saved, stop, job_of)
        if has_eigenvalues:
            job = _with_eigenvalues(job, maps.rows_along(config, ev, task.points, record))
        run(record, job, stop, saved and saved.progress)
        if world.rank == 0:
            print(report.values(record.result(), record.values))
            print(f"written to {config.out}")


def _warn_of_statistics(model: nn.Module) -> None:
    if batch_norm.layers(model):
        warnings.warn(
            "at every point BatchNorm normalizes by the running statistics of one network; "
            "networks with statistics of their own are compared by --batch-norm recalibrate",
            Warned,
            stacklevel=2,
        )


def _job(task: PointTask, plan: PointPlan, ev: Evaluator, test: Evaluator | None) -> Job:
    columns = tuple(evaluate(ev, task.points, 0, 0, plan=plan, test=test))

    def compute(indices: Sequence[int]) -> Iterator[Piece]:
        found = evaluate(ev, task.points, indices[0], indices[-1] + 1, plan=plan, test=test)
        yield indices, np.column_stack([found[name] for name in columns])

    return Job(columns, ranges(len(task.points), plan), compute, task.finish)


def _with_eigenvalues(job: Job, rows: Callable) -> Job:
    """The same points, one at a time, with both extreme eigenvalues."""

    def compute(indices: Sequence[int]) -> Iterator[Piece]:
        ((_, values),) = job.compute(indices)
        for (index, found), row in zip(rows(indices), values):
            yield [index], np.concatenate([row, found[1:]])[None]

    return dataclasses.replace(job, columns=(*job.columns, *COLUMNS[1:]), compute=compute)


def _test(config: ValuesConfig, arguments: dict[str, Any], mesh: Mesh) -> Evaluator | None:
    """The same model on the test split."""
    if not config.test:
        return None

    def made() -> Evaluator:
        data = problem_loader.load(dataclasses.replace(config, split="test"))["data"]
        return Evaluator(**{**arguments, "data": data}, world=mesh.data)

    return together(mesh.world, made)


def _planned(
    config: ValuesConfig, mesh: Mesh, ev: Evaluator, task: PointTask, test: Evaluator | None
) -> tuple[PointPlan, tuple[PointTrial, ...]]:
    """The first group's plan, in chunks that leave something for all groups."""

    def measured() -> tuple | None:
        if mesh.group > 0:
            return None
        return point_planner.plan(ev, task.points, memory=config.memory_bytes, test=test)

    plan, trials = mesh.world.gather_objects(together(mesh.world, measured))[0]
    most = max(1, len(task.points) // (TASKS * mesh.num_groups))
    if mesh.num_groups > 1 and plan.chunk > most:
        plan = dataclasses.replace(plan, chunk=most, together=min(plan.together, most))
    return plan, trials


def _estimate(
    task: PointTask,
    plan: PointPlan,
    trials: Sequence[PointTrial],
    mesh: Mesh,
    ev: Evaluator,
    file: Any,
) -> None:
    if mesh.world.rank == 0:
        text = report.points_estimate(task.points, plan, trials, mesh.num_groups, ev)
        print(text, file=file, flush=True)
