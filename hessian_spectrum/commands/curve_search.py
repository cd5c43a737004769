"""The search of ``interpolate --curve``: optimize the bends of a low-loss curve, step by step."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.analyses import mode_connectivity
from hessian_spectrum.commands import plane_vectors
from hessian_spectrum.commands.points_computation import Saved
from hessian_spectrum.config import InterpolateConfig
from hessian_spectrum.distributed.agreement import on_first_rank, together
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.problem import Problem


class CurveSearch:
    """All ranks take a step together: the same bit for bit on as many ranks, to rounding on others.

    Args:
        ev: the evaluator of this rank's group.
    """

    def __init__(self, config: InterpolateConfig, ev: Evaluator):
        self.config, self.group_evaluator, self._evaluator = config, ev, ev
        ends = plane_vectors.of_checkpoints(ev, config.between)
        kind, bends = config.curve, config.num_bends
        self.state = mode_connectivity.start(ev, ends[0], ends[1], kind, bends)

    def task(self) -> PointTask:
        """The points of the curve as it is now."""
        num_points = self.config.num_points or 50
        return mode_connectivity.bends_task(self.group_evaluator, self.state, num_points)

    def begin(self, problem: Problem, mesh: Mesh, saved: Saved | None) -> None:
        """Spread the data over all ranks, and continue from what an earlier run has left."""
        if mesh.num_groups > 1:
            self._evaluator = together(mesh.world, lambda: problem.evaluator(mesh.world))
        found = saved.header.plan["how"].get("search") if saved else None
        if saved is None or not found:
            return
        count = len(self.state.bends)
        rows = self.state.bends.new_zeros(3 * count, self.state.bends.shape[1])

        def read() -> None:
            held = None if saved.vectors is None else saved.vectors.shape
            if held != tuple(rows.shape):
                raise InputError(
                    f"{self.config.out}: is damaged: it holds vectors {held} of the search; "
                    f"expected {tuple(rows.shape)}"
                )
            rows.copy_(torch.from_numpy(saved.vectors))

        on_first_rank(mesh.world, read)
        bends, first, second = mesh.world.sum(rows).split(count)
        self.state = dataclasses.replace(
            self.state,
            bends=bends,
            first_moment=first,
            second_moment=second,
            num_steps=found["num_steps"],
            loss=found["loss"],
        )

    @property
    def is_finished(self) -> bool:
        return self.state.num_steps >= self.config.num_steps

    def step(self) -> None:
        """One step of Adam. FloatingPointError where it diverges; the state is then as before."""
        config = self.config
        self.state = mode_connectivity.step(
            self._evaluator, self.state, config.lr, config.points_per_step, config.seed
        )

    def end(self) -> None:
        """Count the search's passes with those of the group."""
        if self._evaluator is not self.group_evaluator:
            self.group_evaluator.counts.passes += self._evaluator.counts.passes

    def described(self) -> dict[str, Any]:
        """The numbers of the state; its vectors are ``vectors``."""
        return {"num_steps": self.state.num_steps, "loss": self.state.loss}

    def vectors(self) -> Tensor:
        """(3 bends, n): the bends and both moments of Adam."""
        state = self.state
        return torch.cat([state.bends, state.first_moment, state.second_moment])
