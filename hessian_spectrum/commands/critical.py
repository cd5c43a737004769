"""The command ``critical``: what the parameters are, or critical points from many starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.analyses.critical import DENSE, classify
from hessian_spectrum.analyses.critical_search import OUTCOMES, find_critical_point
from hessian_spectrum.commands import report
from hessian_spectrum.commands.points_computation import PointsComputation
from hessian_spectrum.commands.scheduler import Job, Piece
from hessian_spectrum.commands.session import Session
from hessian_spectrum.config import CriticalConfig
from hessian_spectrum.distributed.world import World
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.results import CriticalPoints
from hessian_spectrum.landscape.results.critical_points import KINDS, NUMBERS, REASONS
from hessian_spectrum.landscape.tasks import PointTask, ValuesByName, described
from hessian_spectrum.loss.problem import Problem

SEARCH = ("outcome", "steps", "attempts", "distance_from_start")
COLUMNS = ("kind", "reason", *NUMBERS, *SEARCH)


class CriticalRun(PointsComputation[CriticalConfig, CriticalPoints]):
    """A task is one start."""

    command = "critical"
    result_kinds = (CriticalPoints,)

    def __init__(self, config: CriticalConfig, problem: Problem, world: World):
        super().__init__(config, problem, world)
        if config.find and self.evaluator.dtype != torch.float64:
            raise InputError(
                f"--find with parameters of {self.evaluator.dtype}: critical points are found in "
                "float64; use --dtype float64"
            )

    def make_task(self, computed: Tensor) -> PointTask:
        config, ev = self.config, self.evaluator
        rows = _starts(ev.theta, config)
        shapes = {name: list(shape) for name, shape in zip(ev.layout.names, ev.layout.shapes)}
        told = {"find": config.find or "", "outcomes": list(OUTCOMES), "shapes": shapes}

        def finish(values: ValuesByName) -> CriticalPoints:
            others = {name: values[name] for name in (*NUMBERS, *SEARCH)}
            about = described(ev, **told)
            rows = (_rows(values, names) for names in (self._thetas, self._eigenvalues))
            return CriticalPoints(values["kind"], values["reason"], others, about, *rows)

        return PointTask(Points.of(rows), finish)

    @property
    def _thetas(self) -> tuple[str, ...]:
        """Columns of the parameters that a search has led to; none where they are not stored."""
        kept = self.config.find is not None and self.config.points
        return tuple(f"theta {i}" for i in range(self.evaluator.n)) if kept else ()

    @property
    def _eigenvalues(self) -> tuple[str, ...]:
        """Columns of the whole spectrum; none where only its ends are computed."""
        n = self.evaluator.n
        return tuple(f"eigenvalue {i}" for i in range(n)) if n <= DENSE else ()

    def plan(self, task: PointTask, session: Session | None) -> str:
        count, ev = len(task.points), self.evaluator
        what = f"searches for {self.config.find}" if self.config.find else "point(s) to classify"
        size = 8 * count * len(self._thetas)
        stored = f"; the points are stored ({size / 2**20:.3g} MiB)" if size else ""
        groups = f"{self.mesh.num_groups} group(s) of ranks"
        return f"{count} {what}, {ev.n:,} parameters, by {groups}{stored}"

    def make_job(self, task: PointTask, session: Session) -> Job:
        config, ev = self.config, self.evaluator

        def compute(indices: Sequence[int]) -> Iterator[Piece]:
            for i in indices:
                start = task.points.rows(i, i + 1)[0].to(ev.device)
                yield [i], np.array([self.row(start, i)])

        columns = (*COLUMNS, *self._eigenvalues, *self._thetas)
        return Job(columns, [[i] for i in range(config.starts)], compute, task.finish)

    def row(self, start: Tensor, i: int) -> list[float]:
        """The numbers of all columns, of start i."""
        config, ev = self.config, self.evaluator
        search, end = [math.nan] * len(SEARCH), start
        if config.find is None:
            point = classify(ev, start, k=config.k, seed=config.seed)
        else:
            tol, steps, seed = config.tol, config.max_steps, (config.seed + i) % 2**64
            found = find_critical_point(ev, start, config.find, tol=tol, max_steps=steps, seed=seed)
            point, outcome, end = found.point, list(OUTCOMES).index(found.outcome), found.theta
            search = [outcome, found.steps, found.attempts, found.distance]
        codes = [KINDS.index(point.kind), list(REASONS).index(point.reason)]
        whole = point.eigenvalues
        spectrum = [math.nan] * len(self._eigenvalues) if whole is None else whole.tolist()
        theta = end.tolist() if self._thetas else []
        return [*codes, *(getattr(point, name) for name in NUMBERS), *search, *spectrum, *theta]

    def report(self, result: CriticalPoints, values: dict[str, float]) -> str:
        return report.critical(result)


def _starts(theta: Tensor, config: CriticalConfig) -> Tensor:
    """(starts, n): theta, then Gaussian ones; start i is the same however many there are."""
    rows, size = [theta], theta.double().square().mean().sqrt().item() or 1.0
    center = theta if config.around == "parameters" else torch.zeros_like(theta)
    for i in range(1, config.starts):
        normal = np.random.default_rng([config.seed, i]).standard_normal(len(theta))
        rows.append(center + config.spread * size * torch.from_numpy(normal).to(theta))
    return torch.stack(rows)


def _rows(values: ValuesByName, names: Sequence[str]) -> np.ndarray | None:
    """(points, columns) of these names; None where there are none."""
    return np.stack([values[name] for name in names], axis=1) if names else None
