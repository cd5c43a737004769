"""The command ``map``: both extreme eigenvalues at each point of a plane."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch

from hessian_spectrum.analyses import curvature_map as maps
from hessian_spectrum.commands import plane_vectors, report
from hessian_spectrum.commands.runner import (
    OPERATORS,
    check_output,
    on_first_rank,
    together,
    writing,
)
from hessian_spectrum.commands.scheduler import TASKS, Job, Piece, PointRecord, run, saved_run
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.config.computing import CurvatureConfig, MapConfig, TrackConfig
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.extremal import STEPS
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.planning import product_planner
from hessian_spectrum.planning.product_planner import Estimate

SHORTEST = 4  # points of a path


def curvature_map(
    config: MapConfig, arguments: dict[str, Any], world: World, stop: StopRequest
) -> None:
    """From a problem to a finished map; see ``density`` for arguments and errors."""
    started = time.time()

    def check() -> None:
        check_output(config, "")

    def make(computed: torch.Tensor) -> PointTask:
        return plane_vectors.plane_task(config, ev, computed, maps.map_task)

    on_first_rank(world, check)
    mesh = Mesh.of(world, config.ranks_per_point, timedelta(minutes=config.timeout_minutes))
    ev = together(world, lambda: Evaluator(**arguments, world=mesh.data))
    if config.dry_run:
        task = make(plane_vectors.stand_ins(config, ev))
        _say(planned(config, mesh, ev), task.points, mesh, ev, sys.stdout)
        return
    with writing(config, world, stop, check) as lock:
        saved = saved_run(config, "map", world)
        computed = plane_vectors.settled(config, ev, mesh, saved)
        task = together(world, lambda: make(computed))
        record = PointRecord("map", config, mesh, ev, lock, started, plane_vectors.digest(task))
        record.keep(computed, task.beside)
        record.go_on(saved, stop)
        if not saved:
            estimate = planned(config, mesh, ev)
            record.product_plan, record.place = estimate.plan, estimate.place
            record.how = {"length": _length(len(task.points), mesh)}
            _say(estimate, task.points, mesh, ev, sys.stderr)
        run(record, _job(config, task, ev, record), stop, saved and saved.progress)
        if world.rank == 0:
            print(report.curvature_map(record.result()))
            print(f"written to {config.out}")


def planned(config: CurvatureConfig | TrackConfig, mesh: Mesh, ev: Evaluator) -> Estimate:
    """How products are formed: the first group's plan, for one point."""

    def measured() -> Estimate | None:
        if mesh.group > 0:
            return None
        name = getattr(config, "operator", "hessian")
        estimate = product_planner.plan(
            ev,
            ev.theta,
            1,
            maps.EXPECTED_PRODUCTS,
            kept=STEPS + 1,
            form=OPERATORS[name](ev).form,
            mode=getattr(config, "hvp", None),
            precision=getattr(config, "hvp_dtype", None),
            memory=config.memory_bytes,
        )
        return replace(estimate, first=None)  # of one theta, and not to be sent

    return mesh.world.gather_objects(together(mesh.world, measured))[0]


def rows_along(
    config: MapConfig | TrackConfig, ev: Evaluator, points: Points, record: PointRecord
) -> Any:
    """``along`` as the configuration wants it: path -> (index, row) one by one."""
    make, plan = OPERATORS[getattr(config, "operator", "hessian")], record.product_plan
    options = {"tol": config.tol, "max_products": config.max_products}

    def operator(ev: Evaluator, theta: torch.Tensor) -> Any:
        return make(ev, theta, plan)

    def rows(path: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        return maps.along(ev, points, path, operator=operator, **options)

    return rows


def _job(config: MapConfig, task: PointTask, ev: Evaluator, record: PointRecord) -> Job:
    rows = rows_along(config, ev, task.points, record)

    def compute(path: Sequence[int]) -> Iterator[Piece]:
        for index, row in rows(path):
            yield [index], row[None]

    return Job(
        maps.COLUMNS, maps.segments(config.shape, record.how["length"]), compute, task.finish
    )


def _length(count: int, mesh: Mesh) -> int:
    """Points of a path: several paths for each group."""
    return max(SHORTEST, min(maps.LENGTH, count // (TASKS * mesh.num_groups)))


def _say(estimate: Estimate, points: Points, mesh: Mesh, ev: Evaluator, file: Any) -> None:
    if mesh.world.rank == 0:
        text = report.map_estimate(estimate, len(points), mesh.num_groups, ev)
        print(text, file=file, flush=True)
