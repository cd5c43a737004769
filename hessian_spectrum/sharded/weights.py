"""Whole weights, gathered for as long as a layer works, and again where a backward pass needs them.

A backward pass needs the weights that the forward pass used. Autograd would keep all of them;
what is kept in their place says which unit they are from, and how they lie in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from hessian_spectrum.distributed.world import World
from hessian_spectrum.sharded.collectives import Gather
from hessian_spectrum.sharded.units import Unit


class _View(NamedTuple):
    """A tensor in the entries of a unit, without them."""

    unit: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: Any


class Weights:
    """The parameters of all units by name, whole while they are used.

    The units of one block stay whole until those of another one are used. Which parameter is used
    when must be the same on every rank: each gathers, and waits for the others.

    Args:
        units: all of the model's.

    Attributes:
        gathers: how many were made.
        peak: entries of whole weights at most, held here at the same time.
    """

    def __init__(self, units: Sequence[Unit], world: World):
        self.units, self.world = units, world
        self._dtype = torch.float32  # inside ``at``: of whole weights
        self.gathers = self.peak = 0
        self._unit_of = {n: i for i, unit in enumerate(units) for n in unit.layout.names}
        self._shards: Sequence[Tensor] = ()  # inside ``at``: this rank's entries of each unit
        self._used: dict[int, dict[str, Tensor]] = {}  # by modules, of one block
        self._with_graph = True  # they are functions of the shards
        self._again: dict[int, Tensor] = {}  # by a backward pass, of one block
        self._of_unit: dict[int, tuple[StorageWeakRef, int, int]] = {}  # by storage

    @contextmanager
    def at(self, shards: Sequence[Tensor], dtype: torch.dtype) -> Iterator[None]:
        """Inside, the weights are these: (c,) of each unit. Backward passes belong inside, too.

        Args:
            dtype: of whole weights.
        """
        self._shards, self._dtype = shards, dtype
        try:
            with saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._shards = ()
            self.release()

    def release(self) -> None:
        """Forget whole weights."""
        self._used, self._again = {}, {}

    def __getitem__(self, name: str) -> Tensor:
        """The whole parameter, a function of the shards.

        Called by every rank.
        """
        index, with_graph = self._unit_of[name], torch.is_grad_enabled()
        if with_graph != self._with_graph:
            self._used, self._with_graph = {}, with_graph
        if index not in self._used:
            unit = self.units[index]
            self._used = {i: t for i, t in self._used.items() if self._is_beside(i, index)}
            parts = self._gathered(index).split([*unit.layout.sizes, unit.padding])
            self._used[index] = {
                n: part.view(shape)
                for n, part, shape in zip(unit.layout.names, parts, unit.layout.shapes)
            }
        return self._used[index][name]

    def _is_beside(self, other: int, index: int) -> bool:
        return self.units[other].name == self.units[index].name

    def _gathered(self, index: int) -> Tensor:
        whole = Gather.apply(self._shards[index], self.world, self._dtype)
        storage = whole.untyped_storage()
        alive = {k: e for k, e in self._of_unit.items() if not e[0].expired()}
        self._of_unit = alive | {storage._cdata: (StorageWeakRef(storage), index, whole.numel())}
        self.gathers += 1
        self.peak = max(self.peak, sum(size for _, _, size in self._of_unit.values()))
        return whole

    # -- what autograd keeps -----------------------------------------------------------------------

    def _pack(self, t: Tensor) -> Any:
        found = self._of_unit.get(t.untyped_storage()._cdata)
        if found is None or found[0].expired():
            return t
        return _View(found[1], t.size(), t.stride(), t.storage_offset())

    def _unpack(self, kept: Any) -> Tensor:
        if not isinstance(kept, _View):
            return kept
        self._used = {}
        with torch.no_grad():
            if kept.unit not in self._again:
                for other in [i for i in self._again if not self._is_beside(i, kept.unit)]:
                    del self._again[other]
                self._again[kept.unit] = self._gathered(kept.unit)
            return self._again[kept.unit].as_strided(kept.size, kept.stride, kept.offset)
