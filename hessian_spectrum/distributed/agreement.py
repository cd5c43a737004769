"""What ranks must have in common before they go on: the same input, and no error.

A rank that raises alone leaves its peers waiting in the next collective until the time-out. Where
one rank can fail alone, its error is therefore raised on all: by ``together`` with one exchange of
small objects, or by ``Failures`` with none, along a reduction that is made anyway.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, of_exit
from hessian_spectrum.distributed.world import World

T = TypeVar("T")

# Names of facts.
CALL, DATA, MODELS = "call", "data", "models (parameters, buffers or their names)"


# sys.exit in a model, a loss or data must not leave the other ranks waiting.
CAUGHT = (Exception, SystemExit)


def _of_code(error: Exception | SystemExit) -> Exception:
    return of_exit(error) if isinstance(error, SystemExit) else error


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
    except CAUGHT as failed:
        error = _of_code(failed)
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
        except CAUGHT as failed:
            if self._world.size == 1:
                raise
            error = _of_code(failed)
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


# -- the same input on all ranks -------------------------------------------------------------------


class Digest(str):
    """A digest of what is too large for a message."""


Facts = Mapping[str, Any]  # what ranks must have in common, by name: Digests, or short texts


def agreed(world: World, action: Callable[[], T], facts: Callable[[T], Facts]) -> T:
    """The result of ``action``, once every rank has one and finds the same facts.

    Called by every rank. A sum over ranks of different functions is no function's Hessian, and
    ranks that take different steps wait for each other. One exchange of small objects; neither
    ``action`` nor ``facts`` holds a collective. One process alone finds no facts.

    Args:
        facts: of the result, by name, in the order in which the message names them.

    Raises:
        InputError: the facts of a rank are not those of rank 0; the message names the rank, what
            differs and, except for digests, the values.
        Exception: as ``together``, if ``action`` failed on a rank.
    """
    if world.size == 1:
        return action()
    result, found, error = None, None, None
    try:
        result = action()
        found = {n: v if isinstance(v, Digest) else str(v) for n, v in facts(result).items()}
    except CAUGHT as failed:
        error = _of_code(failed)
    answers = world.raise_together(error, found)
    for rank, other in enumerate(answers):
        if other != answers[0]:
            raise InputError(_difference(answers[0], other, rank))
    return result  # type: ignore[return-value]  # without an error it is the action's


def require_same(world: World, digest: Callable[[], str], what: str) -> None:
    """InputError unless every rank finds the same digest. One exchange of small objects.

    Called by every rank.

    Args:
        what: the plural of what the digest is of, for the message.
    """
    agreed(world, lambda: None, lambda _: {what: Digest(digest())})


def require_same_call(world: World, call: str, **arguments: Any) -> None:
    """InputError unless every rank makes the same call. One exchange of small objects.

    Called by every rank. Arrays and tensors are compared by their entries, by their digests.
    """

    def facts(_: None) -> Facts:
        compared = {n: digest_of(v) if hasattr(v, "__array__") else v for n, v in arguments.items()}
        return {CALL: call, **compared}

    agreed(world, lambda: None, facts)


def digest_of(array: Any) -> Digest:
    """SHA-256 of an array's or tensor's dtype, shape and entries."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
    sha = hashlib.sha256(repr((tensor.dtype, tensor.shape)).encode())
    sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return Digest(sha.hexdigest())


def _difference(first: Facts, other: Facts, rank: int) -> str:
    """In words, what rank 0 and this one do not have in common."""
    if first.get(CALL) != other.get(CALL):  # the rest cannot be compared
        first, other = ({CALL: facts.get(CALL)} for facts in (first, other))
    names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
    hidden = [n for n in names if isinstance(first.get(n, other.get(n)), Digest)]
    said = []
    if hidden:
        said.append(f"rank {rank} and rank 0 hold different {', '.join(hidden)}")
    shown = [
        f"{name} {first.get(name)} on rank 0, {other.get(name)} on rank {rank}"
        for name in names
        if name not in hidden
    ]
    if shown:
        said.append(f"the ranks were given different arguments: {'; '.join(shown)}")
    advice = {
        DATA: "give every rank the same whole data, such as a split with a seed of its own",
        CALL: "call the same function on every rank",
        MODELS: "load the same checkpoint on every rank, or seed torch before the model is made",
    }
    found = [text for name, text in advice.items() if name in names]
    return "; ".join([*said, *(found or ["give every rank the same"])])
