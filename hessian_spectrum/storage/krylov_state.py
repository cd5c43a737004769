"""The state of Lanczos recurrences as immutable shards, and back, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.krylov.krylov_schur import RitzSpace
from hessian_spectrum.krylov.lanczos import Recurrences
from hessian_spectrum.krylov.state import State
from hessian_spectrum.krylov.storage import Place, allocate
from hessian_spectrum.storage.shards import ShardFolder

Stored = State | RitzSpace
COUNTS = ("width", "starts", "steps", "products", "restarts", "fresh_at", "patience")
KEYS = {"kind", "coefficients", "scale", "noise", "basis"}  # what a manifest must have


class RecurrenceStore:
    """Basis vectors as shards, each written once by the rank that owns it; T in the manifest.

    A save writes only the vectors that are new since the last one, and forgets those that the
    state has let go.
    """

    def __init__(self, folder: Path, world: World):
        self.shards, self.world = ShardFolder(folder), world
        self._entries: list[dict] = []  # of all ranks, as committed
        self._rows = 0  # basis vectors, of each recurrence, that have been committed
        self._restarts = 0  # after which they were

    def manifest(self, header: Iterable[str] = ()) -> dict[str, Any] | None:
        """What was saved with the latest complete state, on every rank; None if there is none.

        Rank 0 reads it: file systems may show others an older one.

        Args:
            header: keys that ``save`` was given; without them it is damaged.
        """
        manifest, error = None, None
        if self.world.rank == 0:
            try:
                manifest = self.shards.manifest(KEYS.union(header))
            except Exception as failed:
                error = failed
        self.world.raise_together(error)
        return self.world.gather_objects(manifest)[0]

    def save(self, state: Stored, layout: Layout, header: dict[str, Any]) -> None:
        """Commit the state: shards by every rank, then the manifest by rank 0."""
        low, high = _window(state)
        turned = _restarts(state) != self._restarts  # none of the vectors is the same
        first = low if turned else max(low, self._rows)
        new, error = None, None
        try:
            if layout.n_local and high > first:
                vectors = _vectors(state)[:, first - low : high - low].cpu().numpy()
                name = f"basis-{first:06d}-{high:06d}-rank{self.world.rank:05d}"
                new = self.shards.write(name, {"basis": vectors}, (layout.start, layout.stop))
                new["rows"] = [first, high]
        except Exception as failed:
            error = failed
        self.world.raise_together(error)
        entries = [e for e in self._entries if e["rows"][1] > low and not turned]
        entries += [e for e in self.world.gather_objects(new) if e is not None]
        if self.world.rank == 0:
            manifest = {
                **header,
                "world_size": self.world.size,
                "dtype": str(state.basis.dtype).removeprefix("torch."),
                "kind": type(state).__name__,
                "coefficients": _coefficients(state),  # JSON keeps every bit of a float64
                "scale": state.scale,
                "noise": state.noise,
                "basis": entries,
            }
            try:
                self.shards.commit(manifest)
            except Exception as failed:
                error = failed
        self.world.raise_together(error)
        self._entries, self._rows, self._restarts = entries, high, _restarts(state)

    def load(
        self,
        saved: dict[str, Any],
        layout: Layout,
        dtype: torch.dtype,
        room: int,
        place: Place = "device",
    ) -> Stored:
        """The state of the manifest ``saved``, with this rank's entries of the basis.

        Args:
            room: how many steps there must be room for, in all; in a RitzSpace, how many vectors.
        """
        state = _without_vectors(saved)
        low, high = _window(state)
        shape = _shape(state, room, layout)
        basis = allocate(shape, dtype, layout.world.device, place)
        vectors = basis if basis.ndim == 3 else basis[None]
        for entry in saved["basis"]:
            index, rows = _overlap(entry["index"], layout.start, layout.stop), entry["rows"]
            kept = _overlap(rows, low, high)
            if index and kept:
                block = torch.from_numpy(self.shards.read(entry)["basis"])
                block = block[:, kept.start - rows[0] : kept.stop - rows[0]]
                block = block[:, :, index.start - entry["index"][0] :][:, :, : len(index)]
                here = slice(index.start - layout.start, index.stop - layout.start)
                vectors[:, kept.start - low : kept.stop - low, here] = block.to(basis.device)
        self._entries, self._rows, self._restarts = saved["basis"], high, _restarts(state)
        return replace(state, basis=basis)

    def remove(self) -> None:
        self.shards.remove()


def _window(state: Stored) -> tuple[int, int]:
    """The vectors of each recurrence that the state holds: from, to."""
    if isinstance(state, RitzSpace):
        return 0, state.order + state.width
    return state.window if isinstance(state, BlockSpace) else (0, state.num_steps + 1)


def _restarts(state: Stored) -> int:
    return state.restarts if isinstance(state, RitzSpace) else 0


def _vectors(state: Stored) -> Tensor:
    """(recurrences, vectors, n_local), from the window's first on."""
    return state.basis if isinstance(state, Recurrences) else state.basis[None]


def _shape(state: Stored, room: int, layout: Layout) -> tuple[int, ...]:
    if isinstance(state, Recurrences):
        return len(state.alpha), room + 1, layout.n_local
    if isinstance(state, RitzSpace):
        return max(room, state.order + state.width), layout.n_local
    low, high = state.window
    rows = high if state.lean else min(len(state.first) * (room + 1), layout.n)
    return rows - low, layout.n_local


def _overlap(bounds: list[int], low: int, high: int) -> range:
    return range(max(bounds[0], low), min(bounds[1], high))


def _coefficients(state: Stored) -> dict[str, Any]:
    if isinstance(state, Recurrences):
        return {name: getattr(state, name).tolist() for name in ("alpha", "beta", "active")}
    if isinstance(state, RitzSpace):
        arrays = {name: getattr(state, name).tolist() for name in ("h", "coupling", "leak")}
        return {**arrays, **{name: getattr(state, name) for name in COUNTS}}
    return {
        "sizes": list(state.sizes),
        "first": state.first.tolist(),
        "diagonal": [block.tolist() for block in state.diagonal],
        "off": [block.tolist() for block in state.off],
        "lean": state.lean,
    }


def _without_vectors(saved: dict[str, Any]) -> Stored:
    c, nothing = saved["coefficients"], torch.empty(0)
    known = {"basis": nothing, "scale": saved["scale"], "noise": saved["noise"]}
    if saved["kind"] == Recurrences.__name__:
        arrays = {name: np.array(c[name]) for name in ("alpha", "beta", "active")}
        return Recurrences(**arrays, **known)
    if saved["kind"] == RitzSpace.__name__:
        order = len(c["h"])
        return RitzSpace(
            h=np.array(c["h"]).reshape(order, order),
            coupling=np.array(c["coupling"]).reshape(order, c["width"]),
            leak=np.array(c["leak"]),
            **{name: c[name] for name in COUNTS if name != "width"},
            **known,
        )
    sizes = c["sizes"]
    return BlockSpace(
        sizes=tuple(sizes),
        first=np.array(c["first"]),
        diagonal=tuple(np.array(block) for block in c["diagonal"]),
        # Of the last one no row may have an entry: JSON does not keep that shape.
        off=tuple(np.array(b).reshape(k, after) for b, k, after in zip(c["off"], sizes, sizes[1:])),
        lean=c["lean"],
        **known,
    )
