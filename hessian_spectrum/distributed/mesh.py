"""Ranks in two dimensions: groups take different points, the ranks of a group share the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.world import TIMEOUT, World, new_group


@dataclass(frozen=True)
class Mesh:
    """Groups of ranks: each group computes at one point at a time, and its ranks share the data.

    The result at a point depends on the number of ranks in a group (by rounding), but neither on
    the number of groups nor on which group computes it.
    """

    world: World  # all ranks
    data: World  # this rank's group: an Evaluator's world
    group: int  # number of this rank's group
    num_groups: int

    @classmethod
    def of(cls, world: World, ranks_per_point: int = 1, timeout: timedelta = TIMEOUT) -> Mesh:
        """Groups of that many neighbours, which launchers put on one node where they can.

        Called by every rank.

        Args:
            world: the whole world, not a part of it.
            timeout: how long a collective inside a group waits for a silent rank.

        Raises:
            InputError: the ranks cannot be dealt out in groups of that size.
        """
        size = world.size
        if not 1 <= ranks_per_point <= size or size % ranks_per_point:
            fitting = [str(k) for k in range(1, size + 1) if size % k == 0]
            raise InputError(
                f"ranks_per_point={ranks_per_point} does not divide the {size} rank(s) of this "
                f"job; use {' or '.join(fitting)}, or start another number of ranks"
            )
        if world.group is not None:
            raise InputError("a group of ranks cannot be split again; split the whole world")
        mine, num_groups = world.rank // ranks_per_point, size // ranks_per_point
        group = None
        if 1 < ranks_per_point < size:
            # torch.distributed requires that every rank creates every group.
            groups = [
                new_group(range(first, first + ranks_per_point), timeout)
                for first in range(0, size, ranks_per_point)
            ]
            group = groups[mine]
        rank = world.rank % ranks_per_point
        data = replace(world, rank=rank, size=ranks_per_point, group=group)
        return cls(world, data, mine, num_groups)

    @property
    def leads(self) -> bool:
        """Does this rank speak for its group?"""
        return self.data.rank == 0
