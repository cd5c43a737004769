"""This rank's entries of theta <-> its entries of every unit: one exchange between all ranks.

Vectors of the package are sharded by ``Layout``, in contiguous parts of equal length, whatever the
model's own sharding is: probes, inner products and stored states are the same at every sharding,
and a state is resumed on any number of ranks. Layers need the entries of one unit on all ranks at
the same time. The exchange moves n / P entries of each rank, 1 / P of what
gathering all units does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.sharded.units import Unit


class _Piece(NamedTuple):
    """Entries that one rank owns in theta, and one in a unit."""

    unit: int
    in_theta: range  # of all n entries
    in_unit: range  # of the unit's entries


class Placement:
    """The exchange between a layout of theta and those of the units that move.

    Cost: O(parameters + ranks * units) ranges on each rank, and in each direction one all-to-all.
    """

    def __init__(self, theta: Layout, units: Sequence[Unit]):
        self.theta, self.units = theta, units
        rank, size = theta.world.rank, theta.world.size
        # By the other rank: from where in theta here to its units, and from its theta to where in
        # the units here; both ranks go through the pieces in the same order.
        self._theta_to: list[list[_Piece]] = [[] for _ in range(size)]
        self._unit_from: list[list[_Piece]] = [[] for _ in range(size)]
        for piece in _pieces(theta, units):
            owner = piece.in_theta.start // theta.chunk
            user = piece.in_unit.start // units[piece.unit].chunk
            if owner == rank:
                self._theta_to[user].append(piece)
            if user == rank:
                self._unit_from[owner].append(piece)

    def to_units(self, entries: Tensor) -> list[Tensor]:
        """(n_local,) -> (c,) for each unit, zeros where a unit is padded."""
        world = self.theta.world
        parts = [[self._of_theta(entries, p) for p in to] for to in self._theta_to]
        received = world.exchange(
            [torch.cat(part) if part else entries[:0] for part in parts],
            [sum(len(p.in_unit) for p in pieces) for pieces in self._unit_from],
        )
        shards = [entries.new_zeros(unit.chunk) for unit in self.units]
        for pieces, values in zip(self._unit_from, received):
            for piece, value in zip(pieces, values.split([len(p.in_unit) for p in pieces])):
                self._of_unit(shards, piece).copy_(value)
        return shards

    def to_theta(self, shards: Sequence[Tensor]) -> Tensor:
        """(c,) for each unit -> (n_local,)."""
        world = self.theta.world
        empty = shards[0][:0]
        received = world.exchange(
            [
                torch.cat([self._of_unit(shards, p) for p in pieces]) if pieces else empty
                for pieces in self._unit_from
            ],
            [sum(len(p.in_theta) for p in pieces) for pieces in self._theta_to],
        )
        entries = shards[0].new_empty(self.theta.n_local)
        for pieces, values in zip(self._theta_to, received):
            for piece, value in zip(pieces, values.split([len(p.in_theta) for p in pieces])):
                self._of_theta(entries, piece).copy_(value)
        return entries

    def _of_theta(self, entries: Tensor, piece: _Piece) -> Tensor:
        start = self.theta.start
        return entries[piece.in_theta.start - start : piece.in_theta.stop - start]

    def _of_unit(self, shards: Sequence[Tensor], piece: _Piece) -> Tensor:
        start = self.theta.world.rank * self.units[piece.unit].chunk
        return shards[piece.unit][piece.in_unit.start - start : piece.in_unit.stop - start]


def _pieces(theta: Layout, units: Sequence[Unit]) -> Iterator[_Piece]:
    """Parameters, cut wherever the owner changes in theta or in the unit."""
    starts = dict(zip(theta.names, _starts(theta)))
    for index, unit in enumerate(units):
        for name, first, size in zip(unit.layout.names, _starts(unit.layout), unit.layout.sizes):
            shift, stop = starts[name] - first, first + size
            while first < stop:
                ends = (_next(first, unit.chunk), _next(first + shift, theta.chunk) - shift, stop)
                end = min(ends)
                yield _Piece(index, range(first + shift, end + shift), range(first, end))
                first = end


def _starts(layout: Layout) -> list[int]:
    starts = [0]
    for size in layout.sizes:
        starts.append(starts[-1] + size)
    return starts[:-1]


def _next(position: int, chunk: int) -> int:
    return (position // chunk + 1) * chunk
