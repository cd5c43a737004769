"""``interpolate --match``: the line between two networks before and after units are matched."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Real, Record, Text, Whole
from hessian_spectrum.analyses.matched_lines import matched_lines_task
from hessian_spectrum.commands import plane_vectors, report
from hessian_spectrum.commands.points_computation import Saved
from hessian_spectrum.commands.session import Session
from hessian_spectrum.commands.surfaces import POINT_PLAN, ValuesComputation, warn_of_statistics
from hessian_spectrum.config import InterpolateConfig
from hessian_spectrum.distributed.world import World
from hessian_spectrum.landscape.results import MatchedLines
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.storage.hdf5_schema import Result
from hessian_spectrum.symmetries.matching import Method, matched

# What the matching did, as an unfinished run stores it.
MATCHING = Record(
    {
        "method": Text(choices=("weights", "activations")),
        **{name: Whole() for name in ("iterations", "num_moved")},
        **{name: Real(0.0) for name in ("distance_before", "distance")},
    }
)


class MatchedRun(ValuesComputation[InterpolateConfig, MatchedLines]):
    """The points of both lines; the matched parameters are kept, and not made again."""

    command = "interpolate"
    result_kinds = (MatchedLines,)
    plan_form = Record({"how": Record({"points": POINT_PLAN, "matching": MATCHING})})

    def __init__(self, config: InterpolateConfig, problem: Problem, world: World):
        warn_of_statistics(problem)
        super().__init__(config, problem, world)
        self.matching: dict[str, Any] = {}

    @classmethod
    def located(cls, config: InterpolateConfig) -> InterpolateConfig:
        return plane_vectors.located(config, config.between[0])

    def stand_ins(self) -> Tensor:
        return plane_vectors.of_checkpoints(self.evaluator, self.config.between[1:])

    def settle(self, saved: Saved | None) -> Tensor:
        """(1, n), the matched parameters: those of the first rank, or of the run resumed."""
        kept = saved.vectors if saved else None
        make = None if saved else self._match
        return plane_vectors.of_first_rank(self.evaluator, self.mesh, make, self.stand_ins, kept)

    def make_task(self, computed: Tensor) -> PointTask:
        config, ev = self.config, self.evaluator
        first, second = plane_vectors.of_checkpoints(ev, config.between)
        window = (config.low, config.high)
        method, num_points = self._method, config.num_points or 50
        return matched_lines_task(ev, first, second, computed[0], method, num_points, window)

    def plan(self, task: PointTask, session: Session | None) -> str:
        said = super().plan(task, session)
        self.how["matching"] = self.matching
        return said

    def results(self) -> tuple[tuple[Result, ...], dict[str, Result]]:
        return (), self._lines().by_key()

    def finish(self, session: Session) -> MatchedLines:
        return self._lines()

    def report(self, result: MatchedLines, values: dict[str, float]) -> str:
        return report.matched_lines(result)

    def _lines(self) -> MatchedLines:
        found = self._table.result()
        assert isinstance(found, MatchedLines)
        return dataclasses.replace(found, matching=self.how["matching"])

    @property
    def _method(self) -> Method:
        assert self.config.match is not None  # or this class was not chosen
        return self.config.match

    def _match(self) -> Tensor:
        """(1, n), the second network with its units matched to those of the first."""
        ev = self.evaluator
        if ev.n != sum(parameter.numel() for parameter in ev.model.parameters()):
            raise InputError(
                f"--match permutes all parameters, but theta has {ev.n} of them; leave the choice "
                "of parameters out, and freeze none"
            )
        if self._method == "activations" and not ev.function.is_pair:
            raise InputError(
                "--match activations needs batches of (inputs, targets) of which the model takes "
                "the inputs, but the problem has a forward of its own; use --match weights"
            )
        first, second = (self._network(path) for path in self.config.between)
        found = matched(first, second, self._method, ev.batches, ev.world, self.config.seed)
        self.matching = {
            "method": found.method,
            "iterations": found.iterations,
            "num_moved": found.num_moved,
            "distance_before": found.distance_before,
            "distance": found.distance,
        }
        before = {name: tensor.clone() for name, tensor in ev.model.state_dict().items()}
        try:
            ev.model.load_state_dict(found.state)
            return ev.theta[None]
        finally:
            ev.model.load_state_dict(before)

    def _network(self, path: Any) -> nn.Module:
        """A copy of the model as that file has it, in the evaluator's arithmetic."""
        ev = self.evaluator
        with plane_vectors.at_checkpoint(ev, path):
            return copy.deepcopy(ev.model).to(ev.device, ev.dtype)
