"""The command ``map``: both extreme eigenvalues at each point of a plane."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from hessian_spectrum._core.json_forms import Record, Whole
from hessian_spectrum.analyses import curvature_map as maps
from hessian_spectrum.commands import plane_vectors, report
from hessian_spectrum.commands.computation import OPERATORS
from hessian_spectrum.commands.points_computation import PointsComputation
from hessian_spectrum.commands.scheduler import TASKS, Array, Job, Piece
from hessian_spectrum.commands.session import Session
from hessian_spectrum.config import MapConfig, TrackConfig
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.krylov.extremal import STEPS
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.results import Surface
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.planning import product_planner
from hessian_spectrum.planning.product_planner import Estimate
from hessian_spectrum.storage.manifest_schema import PRODUCTS

SHORTEST = 4  # points of a path
NEARBY = 1 + 1e-3  # times theta: another point

Rows = Callable[[Sequence[int]], Iterator[tuple[int, Array]]]  # a path -> (index, row) one by one


class CurvatureMap(PointsComputation[MapConfig, Surface]):
    """A task is a path of neighbouring points, each started from the eigenvectors of the last."""

    command = "map"
    result_kinds = (Surface,)
    plan_form = Record({"how": Record({"length": Whole(1)}), "products": PRODUCTS})

    @classmethod
    def located(cls, config: MapConfig) -> MapConfig:
        return plane_vectors.located(config, *config.checkpoints[-1:])

    def make_task(self, computed: torch.Tensor) -> PointTask:
        return plane_vectors.plane_task(self.config, self.evaluator, computed, maps.map_task)

    def plan(self, task: PointTask, session: Session | None) -> str:
        estimate = planned(self.config, self.mesh, self.evaluator)
        self.how = {"length": _length(len(task.points), self.mesh)}
        if session:
            session.take(estimate)
        count, groups = len(task.points), self.mesh.num_groups
        self.expected_seconds = estimate.seconds * count / groups
        return report.map_estimate(estimate, count, groups, self.evaluator)

    def make_job(self, task: PointTask, session: Session) -> Job:
        config, ev = self.config, self.evaluator
        rows = rows_along(config, ev, task.points, session.product_plan)

        def compute(path: Sequence[int]) -> Iterator[Piece]:
            for index, row in rows(path):
                yield [index], row[None]

        paths = maps.segments(config.shape, self.how["length"])
        return Job(maps.COLUMNS, paths, compute, task.finish)

    def report(self, result: Surface, values: dict[str, float]) -> str:
        return report.curvature_map(result)


def planned(config: MapConfig | TrackConfig, mesh: Mesh, ev: Evaluator) -> Estimate:
    """How products are formed: the first group's plan, and the time of one point.

    Timed at a point beside this one, since the first maps of a process take longer to form.
    """

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
        seconds = _point_seconds(OPERATORS[name](ev, ev.theta * NEARBY, estimate.plan))
        # A map is of one theta, and cannot be sent.
        return replace(estimate, seconds=seconds, first=None)

    return mesh.world.gather_objects(together(mesh.world, measured))[0]


def _point_seconds(operator: Curvature) -> float:
    """Of a point: of its maps, and of the products that are expected there."""
    vector = gaussian_probes(operator.layout, range(1), 0, operator.dtype, operator.device)
    times = []
    for _ in range(3):
        clock = time.perf_counter()
        operator.products(vector)
        times.append(time.perf_counter() - clock)
    operator.forget()
    again = min(times[1:])
    return max(0.0, times[0] - again) + maps.EXPECTED_PRODUCTS * again


def rows_along(
    config: MapConfig | TrackConfig, ev: Evaluator, points: Points, plan: ProductPlan | None
) -> Rows:
    """``along`` as the configuration wants it."""
    make = OPERATORS[getattr(config, "operator", "hessian")]
    tol, most = config.tol, config.max_products

    def operator(ev: Evaluator, theta: torch.Tensor) -> Curvature:
        return make(ev, theta, plan)

    def rows(path: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        return maps.along(ev, points, path, operator=operator, tol=tol, max_products=most)

    return rows


def _length(count: int, mesh: Mesh) -> int:
    """Points of a path: several paths for each group."""
    return max(SHORTEST, min(maps.LENGTH, count // (TASKS * mesh.num_groups)))
