"""The state of Lanczos recurrences as immutable shards, and back, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hessian_spectrum.distributed import World
from hessian_spectrum.krylov.basis import Place, allocate
from hessian_spectrum.krylov.lanczos import Recurrences
from hessian_spectrum.layout import Layout
from hessian_spectrum.shards import ShardFolder

KEYS = {"alpha", "beta", "active", "scale", "noise", "basis"}  # what a manifest must have


class RecurrenceStore:
    """Basis vectors as shards, each written once by the rank that owns it; T in the manifest.

    A save writes only the vectors that are new since the last one.
    """

    def __init__(self, folder: Path, world: World):
        self.shards, self.world = ShardFolder(folder), world
        self._entries: list[dict] = []  # of all ranks, as committed
        self._rows = 0  # basis vectors of each recurrence that are committed

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

    def save(self, state: Recurrences, layout: Layout, header: dict[str, Any]) -> None:
        """Commit the state: shards by every rank, then the manifest by rank 0."""
        rows = state.num_steps + 1
        new, error = None, None
        try:
            if layout.n_local and rows > self._rows:
                vectors = state.basis[:, self._rows : rows].cpu().numpy()
                name = f"basis-{self._rows:06d}-{rows:06d}-rank{self.world.rank:05d}"
                new = self.shards.write(name, {"basis": vectors}, (layout.start, layout.stop))
                new["rows"] = [self._rows, rows]
        except OSError as failed:
            error = failed
        self.world.raise_together(error)
        entries = self._entries + [e for e in self.world.gather_objects(new) if e is not None]
        if self.world.rank == 0:
            manifest = {
                **header,
                "world_size": self.world.size,
                "dtype": str(state.basis.dtype).removeprefix("torch."),
                "alpha": state.alpha.tolist(),  # JSON keeps every bit of a float64
                "beta": state.beta.tolist(),
                "active": state.active.tolist(),
                "scale": state.scale,
                "noise": state.noise,
                "basis": entries,
            }
            try:
                self.shards.commit(manifest)
            except OSError as failed:
                error = failed
        self.world.raise_together(error)
        self._entries, self._rows = entries, rows

    def load(
        self,
        saved: dict[str, Any],
        layout: Layout,
        dtype: torch.dtype,
        num_steps: int,
        place: Place = "device",
    ) -> Recurrences:
        """The state of the manifest ``saved``, with this rank's entries of the basis."""
        alpha, beta = np.array(saved["alpha"]), np.array(saved["beta"])
        shape = (len(alpha), num_steps + 1, layout.n_local)
        basis = allocate(shape, dtype, layout.world.device, place)
        for entry in saved["basis"]:
            start, stop = entry["index"]
            low, high = max(start, layout.start), min(stop, layout.stop)
            if low < high:
                vectors = torch.from_numpy(self.shards.read(entry)["basis"])
                rows = slice(*entry["rows"])
                here, there = (
                    slice(low - layout.start, high - layout.start),
                    slice(low - start, high - start),
                )
                basis[:, rows, here] = vectors[:, :, there].to(basis.device)
        self._entries, self._rows = saved["basis"], alpha.shape[1] + 1
        active = np.array(saved["active"])
        return Recurrences(basis, alpha, beta, active, saved["scale"], saved["noise"])

    def remove(self) -> None:
        self.shards.remove()
