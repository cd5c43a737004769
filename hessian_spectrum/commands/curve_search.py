"""The search of ``interpolate --curve``: a step at a time, saved where due, and gone on with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from hessian_spectrum.analyses import mode_connectivity
from hessian_spectrum.analyses.mode_connectivity import Bends
from hessian_spectrum.commands import plane_vectors
from hessian_spectrum.commands.runner import on_first_rank, together
from hessian_spectrum.commands.scheduler import Job, PointRecord, Saved
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.config.computing import InterpolateConfig
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss.evaluator import Evaluator


def start(config: InterpolateConfig, ev: Evaluator) -> Bends:
    ends = plane_vectors.of_checkpoints(ev, config.between)
    return mode_connectivity.start(ev, *ends, config.curve, config.num_bends)


def task(config: InterpolateConfig, ev: Evaluator, state: Bends) -> PointTask:
    return mode_connectivity.bends_task(ev, state, config.num_points or 50)


def search(
    config: InterpolateConfig,
    arguments: dict[str, Any],
    record: PointRecord,
    saved: Saved | None,
    stop: StopRequest,
    job_of: Callable[[PointTask], Job],
) -> Job:
    """From the bends that there are to ``num_steps``, by all ranks together; then the curve's job.

    A step is the same bit for bit on the same number of ranks, to rounding on others.

    Raises:
        FloatingPointError: the search diverged; what there was before that step is saved.
        Interrupted: a signal came; all steps are saved.
    """
    ev, world = record.evaluator, record.world
    if record.mesh.num_groups > 1:  # a step is one computation
        ev = together(world, lambda: Evaluator(**arguments, world=world))
    state = _gone_on_with(start(config, ev), record, saved)
    record.begin(job_of(task(config, ev, state)), saved and saved.progress)

    def save() -> None:
        record.how["search"] = {"num_steps": state.num_steps, "loss": state.loss}
        record.keep(torch.cat([state.bends, state.first_moment, state.second_moment]))
        on_first_rank(world, lambda: record.commit(finished=False))

    with record.bar(config.num_steps, state.num_steps, "step") as bar:
        while state.num_steps < config.num_steps:
            try:
                state = mode_connectivity.step(
                    ev, state, config.lr, config.points_per_step, config.seed
                )
            except FloatingPointError:
                save()
                raise
            bar.update(1)
            record.checkpoint(stop, save, finished=False)
    save()
    if ev is not record.evaluator:
        record.evaluator.counts.passes += ev.counts.passes
    return job_of(task(config, record.evaluator, state))


def _gone_on_with(state: Bends, record: PointRecord, saved: Saved | None) -> Bends:
    """The state that the earlier run has left, on every rank: the first rank's."""
    found = record.how.get("search")
    if not saved or not found:
        return state
    count = len(state.bends)
    rows = state.bends.new_zeros(3 * count, state.bends.shape[1])
    if record.world.rank == 0:
        rows = torch.from_numpy(saved.vectors).to(rows)
    bends, first, second = record.world.sum(rows).split(count)
    return dataclasses.replace(
        state, bends=bends, first_moment=first, second_moment=second, **found
    )
