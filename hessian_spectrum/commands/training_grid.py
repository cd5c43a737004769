"""The trainings of ``train --grid``, one after the other, or one of them as a task of a job."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.commands.train import train
from hessian_spectrum.commands.training_folder import TrainingFolder
from hessian_spectrum.config import TrainConfig
from hessian_spectrum.config.training_grid import members
from hessian_spectrum.distributed.agreement import on_first_rank, together
from hessian_spectrum.distributed.world import World


def trainings(config: TrainConfig, world: World, stop: StopRequest) -> list[Path]:
    """The last checkpoint of each training that ``config`` names; called by every rank.

    A training that diverges ends, and the others go on.

    Raises:
        InputError: as ``train``.
        FloatingPointError: some diverged, named; all others have ended.
    """
    if not config.grid:
        return [train(config, world, stop)]
    found = list(members(config).values())
    chosen = found if config.grid_member is None else [found[config.grid_member]]
    on_first_rank(world, lambda: config.out.mkdir(exist_ok=True))
    last, diverged = [], []
    for member in chosen:
        is_finished = together(world, partial(_is_finished, member))
        if world.from_first(is_finished):
            continue
        if world.rank == 0:
            print(f"{member.out}:", flush=True)
        try:
            last.append(train(member, world, stop))
        except FloatingPointError as error:
            diverged.append(f"{member.out.name} ({error})")
    if diverged:
        raise FloatingPointError(f"{len(diverged)} of {len(chosen)}: {'; '.join(diverged)}")
    return last


def _is_finished(member: TrainConfig) -> bool:
    """Without a look at model and data."""
    files = TrainingFolder(member)
    return member.resume and files.is_finished()
