"""``interpolate --pairs``: lines, triangles and functional distances of all pairs of networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from hessian_spectrum.analyses.pairs import OUTPUTS, PairsTask, pairs_task
from hessian_spectrum.commands import plane_vectors, report
from hessian_spectrum.commands.network_files import Network, networks_in
from hessian_spectrum.commands.scheduler import Job, Piece
from hessian_spectrum.commands.session import Session
from hessian_spectrum.commands.surfaces import (
    ValuesComputation,
    point_plan,
    warn_of_statistics,
)
from hessian_spectrum.config import InterpolateConfig
from hessian_spectrum.distributed.world import World
from hessian_spectrum.landscape.results import Pairs
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.storage.hdf5_schema import Result


class PairsRun(ValuesComputation[InterpolateConfig, Pairs]):
    """The points of all pairs as one table; each line and each triangle gets a label."""

    command = "interpolate"
    result_kinds = (Pairs,)

    def __init__(self, config: InterpolateConfig, problem: Problem, world: World):
        warn_of_statistics(problem)
        super().__init__(config, problem, world)

    @classmethod
    def located(cls, config: InterpolateConfig) -> InterpolateConfig:
        return plane_vectors.located(config, next(iter(_networks(config).values())).end)

    def make_task(self, computed: Tensor) -> PointTask:
        found, ev = _networks(self.config), self.evaluator
        starts = {name: network.start for name, network in found.items() if network.start}
        ends = plane_vectors.of_checkpoints(ev, [network.end for network in found.values()])
        begun = plane_vectors.of_checkpoints(ev, list(starts.values())) if starts else ()
        num_points = self.config.num_points or 25
        return pairs_task(ev, dict(zip(found, ends)), dict(zip(starts, begun)), num_points)

    def make_job(self, task: PointTask, session: Session) -> Job:
        assert isinstance(task, PairsTask)
        ev, test, plan = self.evaluator, self.test, point_plan(self.how["points"])
        columns = (*super().make_job(task, session).columns, *OUTPUTS)

        def compute(indices: Sequence[int]) -> Iterator[Piece]:
            found = task.values(ev, indices, plan, test)
            yield indices, np.column_stack([found[name] for name in columns])

        return Job(columns, task.ranges(plan), compute, task.finish)

    def results(self) -> tuple[tuple[Result, ...], dict[str, Result]]:
        found = self._table.result()
        assert isinstance(found, Pairs)
        return (), found.by_key()

    def report(self, result: Pairs, values: dict[str, float]) -> str:
        return report.pairs(result)


def _networks(config: InterpolateConfig) -> dict[str, Network]:
    assert config.pairs is not None
    return networks_in(config.pairs, config.start)
