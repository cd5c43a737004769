"""What fails on one rank fails on all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hessian_spectrum.distributed.world import World

Found = TypeVar("Found")


def together(world: World, action: Callable[[], Found]) -> Found:
    """Do it on every rank; what fails on one fails on all, before the next collective."""
    result: list[Found] = []
    error = None
    try:
        result.append(action())
    except Exception as failed:
        error = failed
    world.raise_together(error)
    return result[0]


def on_first_rank(world: World, action: Callable[[], object]) -> None:
    """Do it on rank 0; what fails there fails on all."""
    together(world, action if world.rank == 0 else lambda: None)
