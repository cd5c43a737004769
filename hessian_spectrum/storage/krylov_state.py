"""Krylov states as immutable shards, written and read back on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Form
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.krylov.krylov_schur import RitzSpace
from hessian_spectrum.krylov.lanczos import Recurrences
from hessian_spectrum.krylov.state import Coefficients, KrylovState, StateArrays
from hessian_spectrum.krylov.storage import Place, allocate
from hessian_spectrum.storage.manifest_schema import num_entries, require_krylov
from hessian_spectrum.storage.shards import ShardFolder

# By the name that a manifest has under "kind".
KINDS: dict[str, type[Recurrences] | type[BlockSpace] | type[RitzSpace]] = {
    kind.__name__: kind for kind in (Recurrences, BlockSpace, RitzSpace)
}


class RecurrenceStore:
    """Basis vectors as shards, each written once by the rank that owns it; T in the manifest.

    A save writes only the vectors that are new since the last one, and forgets those that the
    state has let go.
    """

    def __init__(self, folder: Path, world: World):
        self.shards, self.world = ShardFolder(folder), world
        self._entries: list[dict[str, Any]] = []  # of all ranks, as committed
        self._rows = 0  # basis vectors, of each recurrence, that have been committed
        self._restarts = 0  # after which they were

    def manifest(self, *header: Form) -> dict[str, Any] | None:
        """What was saved with the latest complete state, on every rank; None if there is none.

        Rank 0 reads it: file systems may show others an older one.

        Args:
            header: what ``save`` was given must have these forms; else it is damaged.
        """

        def require_forms(found: dict[str, Any]) -> None:
            for form in header:
                form.require(found, "")

        manifest, error = None, None
        if self.world.rank == 0:
            try:
                manifest = self.shards.manifest(require_krylov, require_forms)
            except Exception as failed:
                error = failed
        self.world.raise_together(error)
        return self.world.gather_objects(manifest)[0]

    def save(self, state: KrylovState, layout: Layout, header: dict[str, Any]) -> None:
        """Commit the state: shards by every rank, then the manifest by rank 0."""
        arrays, (low, high) = state.to_arrays(), state.window
        replaced = state.restarts != self._restarts  # none of the vectors is the same
        first = low if replaced else max(low, self._rows)
        new, error = None, None
        try:
            if layout.n_local and high > first:
                vectors = arrays.vectors[:, first - low : high - low].cpu().numpy()
                name = f"basis-{first:06d}-{high:06d}-rank{self.world.rank:05d}"
                new = self.shards.write(name, {"basis": vectors}, (layout.start, layout.stop))
                new["rows"] = [first, high]
        except Exception as failed:
            error = failed
        self.world.raise_together(error)
        entries = [e for e in self._entries if e["rows"][1] > low and not replaced]
        entries += [e for e in self.world.gather_objects(new) if e is not None]
        if self.world.rank == 0:
            manifest = {
                **header,
                "world_size": self.world.size,
                "dtype": str(arrays.vectors.dtype).removeprefix("torch."),
                "kind": type(state).__name__,
                "coefficients": _table(arrays),
                "scale": state.scale,
                "noise": state.noise,
                "basis": entries,
            }
            try:
                self.shards.commit(manifest)
            except Exception as failed:
                error = failed
        self.world.raise_together(error)
        self._entries, self._rows, self._restarts = entries, high, state.restarts

    def load(
        self,
        saved: dict[str, Any],
        layout: Layout,
        dtype: torch.dtype,
        room: int,
        place: Place = "device",
    ) -> Recurrences | BlockSpace | RitzSpace:
        """The state of the manifest ``saved``, with this rank's entries of the basis.

        Args:
            room: how many steps there must be room for, in all; in a RitzSpace, how many vectors.

        Raises:
            InputError: its vectors are of another length or type, or a shard is damaged.
        """
        types = {name for entry in saved["basis"] for name in entry["dtypes"].values()}
        wanted = str(dtype).removeprefix("torch.")
        if num_entries(saved) not in (None, layout.n) or types - {wanted}:
            raise InputError(
                f"{self.shards.folder}: holds vectors of {num_entries(saved)} entries, "
                f"{', '.join(sorted(types))}; expected {layout.n}, {wanted}"
            )
        kind, table = KINDS[saved["kind"]], saved["coefficients"]
        metadata = {**table, "scale": saved["scale"], "noise": saved["noise"]}
        state = kind.from_arrays(StateArrays(torch.empty(1, 0, layout.n_local), table, metadata))
        low, high = state.window
        vectors = allocate(state.basis_shape(room, layout), dtype, layout.world.device, place)
        for entry in saved["basis"]:
            index, rows = _overlap(entry["index"], layout.start, layout.stop), entry["rows"]
            kept = _overlap(rows, low, high)
            if index and kept:
                block = torch.from_numpy(self.shards.read(entry)["basis"])
                block = block[:, kept.start - rows[0] : kept.stop - rows[0]]
                block = block[:, :, index.start - entry["index"][0] :][:, :, : len(index)]
                here = slice(index.start - layout.start, index.stop - layout.start)
                vectors[:, kept.start - low : kept.stop - low, here] = block.to(vectors.device)
        self._entries, self._rows, self._restarts = saved["basis"], high, state.restarts
        return kind.from_arrays(StateArrays(vectors, table, metadata))

    def remove(self) -> None:
        self.shards.remove()


def _overlap(bounds: list[int], low: int, high: int) -> range:
    return range(max(bounds[0], low), min(bounds[1], high))


def _table(arrays: StateArrays) -> dict[str, Any]:
    """Coefficients and metadata for a manifest; JSON keeps every bit of a float64."""
    coefficients = {name: _nested(values) for name, values in arrays.coefficients.items()}
    own = {"scale", "noise"}  # beside the table
    return coefficients | {k: v for k, v in arrays.metadata.items() if k not in own}


def _nested(values: Coefficients) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else [v.tolist() for v in values]
