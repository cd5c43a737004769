"""What ranks must have in common before they go on: the same input, and no error."""

from __future__ import annotations

from collections.abc import Callable

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.world import World


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
