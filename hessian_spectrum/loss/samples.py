"""A few samples from the whole of this rank's share, on which derivatives are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from hessian_spectrum._core.errors import is_out_of_memory
from hessian_spectrum.loss.batching import leading_size, take
from hessian_spectrum.loss.functional import LossFunction

T = TypeVar("T")

ROWS = 16  # samples at most,
PIECES = 4  # of so many minibatches
WHOLE = 2  # minibatches, where they cannot be cut


class Piece(NamedTuple):
    """Samples of one minibatch."""

    minibatch: int
    rows: tuple[int, ...] | None  # in the minibatch; None: all
    batch: Any

    def named(self, index: int) -> str:
        """The sample of a row of ``batch`` in words."""
        row = index if self.rows is None else self.rows[index]
        return f"sample {row} of minibatch {self.minibatch}"


class Samples:
    """Random samples of random minibatches, chosen in one pass whose length is not known.

    Each minibatch has a random key; those with the smallest keys are kept. The choice depends on
    the number of minibatches and of their samples alone.
    """

    def __init__(self, function: LossFunction):
        self._function = function
        self._limit = WHOLE if function.is_whole else PIECES
        self._random = np.random.default_rng(0)
        self._kept: list[tuple[float, Piece]] = []

    def offer(self, index: int, batch: Any) -> None:
        """Minibatch ``index``, whose weight is not zero."""
        key = self._random.random()
        if len(self._kept) == self._limit and key > self._kept[-1][0]:
            return
        size = leading_size(batch)
        rows = sorted(self._random.permutation(size)[:ROWS].tolist())
        taken = None if self._function.is_whole else take(batch, rows)
        piece = Piece(index, None, batch) if taken is None else Piece(index, tuple(rows), taken)
        self._kept.append((key, piece))
        self._kept = sorted(self._kept, key=lambda entry: entry[0])[: self._limit]

    def pieces(self) -> list[Piece]:
        """What was chosen: of each minibatch as many samples, ``ROWS`` in all."""
        if self._function.is_whole:
            return [piece for _, piece in self._kept]
        share = ROWS // max(1, len(self._kept))
        found = []
        for _, piece in self._kept:
            random = np.random.default_rng(piece.minibatch)
            chosen = sorted(random.permutation(leading_size(piece.batch))[:share].tolist())
            taken = None if piece.rows is None else take(piece.batch, chosen)
            if piece.rows is not None and taken is not None:
                piece = Piece(piece.minibatch, tuple(piece.rows[i] for i in chosen), taken)
            if self._function.weight(piece.batch):
                found.append(piece)
        return found


def on_fewer_if_needed(
    function: LossFunction, pieces: tuple[Piece, ...], check: Callable[[tuple[Piece, ...]], T]
) -> T:
    """``check`` of these samples, and of fewer where they run out of memory."""
    while True:
        try:
            return check(pieces)
        except RuntimeError as failed:
            fewer = _fewer(function, pieces) if is_out_of_memory(failed) else None
            if fewer is None:
                raise
        pieces = fewer  # here the error, whose traceback holds tensors, is gone


def _fewer(function: LossFunction, pieces: tuple[Piece, ...]) -> tuple[Piece, ...] | None:
    """The first minibatch's samples, or half of them; None if there are no fewer."""
    first = pieces[0]
    size = leading_size(first.batch)
    if len(pieces) > 1:
        return pieces[:1]
    if size < 2 or not function.can_be_cut(first.batch):
        return None
    return (first._replace(batch=function.pieces(first.batch, size // 2)[0]),)
