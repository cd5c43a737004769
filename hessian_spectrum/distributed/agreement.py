"""What ranks must have in common before they go on: the same input, and no error.

A rank that raises alone leaves its peers waiting in the next collective until the time-out. Where
one rank can fail alone, its error is therefore raised on all: by ``together`` with one exchange of
small objects, or by ``Failures`` with none, along a reduction that is made anyway.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.world import World

T = TypeVar("T")


def together(world: World, action: Callable[[], T]) -> T:
    """Call ``action`` on every rank; an exception on one rank is raised on all.

    Called by every rank. One exchange of small objects; ``action`` may hold collectives only where
    it cannot fail on one rank before them.

    Raises:
        Exception: what ``World.raise_together`` makes of the first rank's that failed.
    """
    result, error = None, None
    try:
        result = action()
    except Exception as failed:
        error = failed
    world.raise_together(error)
    return result  # type: ignore[return-value]  # without an error it is the action's


def on_first_rank(world: World, action: Callable[[], Any]) -> None:
    """Call ``action`` on rank 0 alone; its exception is raised on every rank."""
    together(world, action if world.rank == 0 else lambda: None)


class Failures:
    """Errors of single ranks: NaN in the next reduction, and raised on all ranks after it.

    A step that goes well has no collective more::

        part = failures.attempt(compute, otherwise=buffer)  # on failure: NaN
        total = world.sum(part)
        failures.raise_where_not_finite(total)  # on every rank: total is the same on all
    """

    def __init__(self, world: World):
        self._world = world
        self._error: Exception | None = None  # this rank's first

    def attempt(self, action: Callable[[], T], otherwise: Tensor) -> T | Tensor:
        """What ``action`` returns; if it fails, ``otherwise`` filled with NaN, in place.

        One process alone raises its error at once: nobody waits for it.
        """
        try:
            return action()
        except Exception as failed:
            if self._world.size == 1:
                raise
            error = failed
        # The frames hold tensors: after an out-of-memory they are in the way of the reduction.
        traceback.clear_frames(error.__traceback__)
        self._error = self._error or error
        return otherwise.fill_(torch.nan)

    def raise_together(self) -> None:
        """Raise on every rank the error of the first rank that has one; nothing if none has.

        Called by every rank. One exchange of small objects.
        """
        error, self._error = self._error, None
        self._world.raise_together(error)

    def raise_where_not_finite(self, reduced: Tensor) -> None:
        """``raise_together`` if ``reduced``, the same on every rank, has a NaN or an infinity."""
        if self._world.size > 1 and not bool(reduced.isfinite().all()):
            self.raise_together()


def require_same(world: World, digest: Callable[[], str], what: str) -> None:
    """InputError unless every rank finds the same digest. One exchange of small objects.

    Called by every rank. A sum over ranks of different functions is no function's Hessian.

    Args:
        what: the plural of what the digest is of, for the message.
    """
    if world.size == 1:
        return
    digests = world.gather_objects(digest())
    other = next((rank for rank, d in enumerate(digests) if d != digests[0]), None)
    if other is not None:
        raise InputError(
            f"rank {other} and rank 0 hold different {what}; load the same checkpoint on every "
            "rank, or seed torch before the model is made"
        )
