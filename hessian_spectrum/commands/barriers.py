"""The command ``barriers``: the loss of all data between consecutive iterates of a training run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from hessian_spectrum import zoo
from hessian_spectrum._core.errors import Warned
from hessian_spectrum.analyses.barriers import barriers_task
from hessian_spectrum.commands import plane_vectors, report
from hessian_spectrum.commands.surfaces import ValuesComputation, warn_of_statistics
from hessian_spectrum.config import BarriersConfig
from hessian_spectrum.distributed.world import World
from hessian_spectrum.landscape.results import Barriers
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss.problem import Problem


class BarriersRun(ValuesComputation[BarriersConfig, Barriers]):
    """Values at points between consecutive checkpoints, in the order of the iterates."""

    command = "barriers"
    result_kinds = (Barriers,)

    def __init__(self, config: BarriersConfig, problem: Problem, world: World):
        warn_of_statistics(problem)
        super().__init__(config, problem, world)

    @classmethod
    def located(cls, config: BarriersConfig) -> BarriersConfig:
        return plane_vectors.located(config, config.checkpoints[0])

    def make_task(self, computed: Tensor) -> PointTask:
        files = self.config.checkpoints
        rows = plane_vectors.of_checkpoints(self.evaluator, files)
        steps, epochs = _stored(files, zoo.stored_step), _stored(files, zoo.stored_epoch)
        axis = "step"
        if steps is None or not all(a < b for a, b in pairwise(steps)):
            why = "some store no step" if steps is None else "the stored steps do not ascend"
            warnings.warn(
                f"checkpoints are numbered 0, 1, ..., each taken as the iterate after the one "
                f"before it: {why}",
                Warned,
                stacklevel=2,
            )
            steps, axis = None, "index"
        return barriers_task(self.evaluator, rows, self.config.points, steps, epochs, axis=axis)

    def report(self, result: Barriers, values: dict[str, float]) -> str:
        return report.barriers(result, values)


def _stored(files: Sequence[Path], number_in: Callable[[Path], int | None]) -> list[float] | None:
    """A number that each checkpoint stores; None unless all do."""
    found = [number_in(path) for path in files]
    known = [float(number) for number in found if number is not None]
    return known if len(known) == len(files) else None
