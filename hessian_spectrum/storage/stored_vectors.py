"""Eigenvectors in a result file, read a row at a time, or in shards that it refers to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Listing, Record, Text
from hessian_spectrum.storage.hdf5_data import one_line, read_table, require_real, write_text
from hessian_spectrum.storage.shards import VECTORS, LazyRows, ShardedVectors, ShardFolder

MAX_VECTOR_BYTES = 2 << 30  # above, replacing the file whole at every save would cost too much
SHARDS = Record({"folder": Text(), "entries": Listing(VECTORS)})
CHUNK_ENTRIES = 1 << 17  # of a row, that HDF5 reads and checks at once


class StoredVectors(LazyRows):
    """Eigenvectors (k, n) in an open result file."""

    def __init__(self, data: h5py.Dataset):
        self.shape, self.dtype = data.shape, data.dtype
        self._data, self._file = data, data.file  # the file is open as long as it is referred to

    def _row(self, index: int) -> NDArray[Any]:
        if not self._data:
            raise ValueError("the run file is closed; read the vectors while it is open")
        try:
            return np.asarray(self._data[index])
        except OSError as error:
            raise InputError(f"{self._file.filename}: is damaged ({one_line(error)})") from None


def write_rows(
    group: h5py.Group, name: str, vectors: Any, count: int, about: dict[str, Any]
) -> h5py.Dataset | None:
    """Write rows (count, n), one in memory at a time; of shards, where they are (and None).

    Raises:
        InputError: the rows are of another number, or larger than ``MAX_VECTOR_BYTES``.
    """
    if isinstance(vectors, ShardedVectors):
        text = json.dumps({"folder": vectors.folder.folder.name, "entries": vectors.entries})
        data = write_text(group, f"{name}_shards", text)
        data.attrs["description"] = (
            "JSON: eigenvectors (k, n) in shards of entries, beside this file"
        )
        return None
    shape, dtype = tuple(vectors.shape), np.asarray(vectors[:0]).dtype
    if len(shape) != 2 or shape[0] != count:
        raise InputError(f"{name} {shape} do not belong to {count} values; expected (k, n)")
    size = shape[0] * shape[1] * dtype.itemsize
    if size >= MAX_VECTOR_BYTES:
        raise InputError(
            f"{name} {shape} take {size / 2**30:.1f} GiB, more than a run file takes "
            f"({MAX_VECTOR_BYTES / 2**30:g} GiB); write them with ShardFolder and pass "
            f"ShardedVectors, or leave them out ({name}=None)"
        )
    chunks = (1, min(shape[1], CHUNK_ENTRIES)) if shape[0] * shape[1] else None
    data = group.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=bool(chunks))
    data.attrs.update(description=about["description"], units=about["units"])
    for row in range(shape[0]):
        data[row] = np.asarray(vectors[row])
    return data


def read_rows(group: h5py.Group, name: str) -> StoredVectors | ShardedVectors | None:
    """The rows in this group or in shards; None where there are none."""
    if name in group:
        return StoredVectors(require_real(group, name))
    if f"{name}_shards" not in group:
        return None
    shards = read_table(group, f"{name}_shards")
    SHARDS.require(shards, f"is damaged: {group.name}/{name}_shards")
    folder = Path(group.file.filename).parent / Path(shards["folder"]).name
    return ShardedVectors(ShardFolder(folder), shards["entries"])
