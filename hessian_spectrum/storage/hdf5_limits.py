"""What an HDF5 file may declare, compared with the size of the file before anything is read.

A few bytes can declare 10^12 numbers: by a fill value, by chunks that unpack to more than they
take, by chunks that are stored once and listed often, or by storage in another file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import h5py
import numpy as np

from hessian_spectrum._core.errors import InputError

MOST_UNPACKED = 1032  # bytes that one byte of a deflate stream can stand for (zlib's manual)
MOST_DEPTH = 8  # groups in groups
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


def require_own(file: h5py.File, size: int, names: Iterable[str]) -> None:
    """InputError unless the members ``names`` could have been written by this package.

    Everything in them is held by the file itself, once, whole, and behind filters that unpack to no
    more than ``MOST_UNPACKED`` times what is stored.

    Args:
        size: of the file, in bytes.

    Cost: reads no values; time in proportion to the file's objects and chunks.
    """
    stored = 0
    seen: set[Any] = set()
    for name in names:
        if file.id.links.exists(name.encode()):
            for data in _data_sets(file, name, seen):
                stored += require_backed(data, size, whole=True)
    if stored > size:
        raise InputError(f"is damaged: its data sets take {stored} bytes of {size}")


def require_backed(data: h5py.Dataset, size: int, whole: bool = False) -> int:
    """Bytes that a data set takes in its file of ``size`` bytes.

    Args:
        whole: every chunk must be there, behind no other filters than ours.

    Raises:
        InputError: it lies in other files, holds something else than numbers and texts, or declares
            more than the file can hold.
    """
    name, kept, created = data.name, data.id.get_storage_size(), data.id.get_create_plist()
    if created.get_external_count() or data.is_virtual:
        raise InputError(f"is damaged: {name} lies in other files, which are not read")
    if data.shape is None or not _is_plain(data.dtype):
        raise InputError(f"is damaged: {name} holds no numbers or texts, but {data.dtype}")
    if kept > size:
        raise InputError(f"is damaged: {name} takes {kept} bytes of a file of {size}")
    chunks = data.chunks
    if chunks is None:
        declared, most = _bytes(data.shape, data.dtype), kept
    else:
        grid = [-(-length // chunk) for length, chunk in zip(data.shape, chunks)]
        declared = math.prod(grid) * _bytes(chunks, data.dtype)
        most = MOST_UNPACKED * kept
    if declared > most:
        raise InputError(
            f"is damaged: {name} declares {data.shape} {data.dtype}, {declared} bytes, and "
            f"{kept} are stored"
        )
    if chunks is not None and whole:
        _require_filters(data, created)
        _require_chunks(data, grid, size)
    return kept


def _data_sets(group: h5py.Group, name: str, seen: set[Any], depth: int = 0) -> Iterator[Any]:
    """The data sets in a member of a group, without following a link out of the file."""
    where = f"{group.name.rstrip('/')}/{name}"
    if not name.isprintable():
        raise InputError(f"is damaged: the name {where!r} has control characters")
    if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise InputError(f"is damaged: {where} is a link to another place, which is not followed")
    item = group[name]
    about = h5py.h5o.get_info(item.id)
    place = about.fileno, about.addr
    if place in seen or depth > MOST_DEPTH:
        raise InputError(f"is damaged: {where} is listed twice, or too deep in groups")
    seen.add(place)
    if isinstance(item, h5py.Dataset):
        yield item
    elif isinstance(item, h5py.Group):
        for inner in item:
            yield from _data_sets(item, inner, seen, depth + 1)
    else:
        raise InputError(f"is damaged: {where} is neither a group nor a data set")


def _is_plain(dtype: np.dtype) -> bool:
    """Numbers, truth values, texts; no references, compounds or opaque bytes."""
    return dtype.kind in "biufcS" or h5py.check_string_dtype(dtype) is not None


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    # On disk a text of variable length is its length, an address and an index: 16 bytes.
    itemsize = 16 if dtype.kind == "O" else dtype.itemsize
    return math.prod(map(int, shape)) * itemsize


def _require_filters(data: h5py.Dataset, created: Any) -> None:
    found = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    if len(set(found)) < len(found) or not set(found) <= FILTERS:
        raise InputError(f"is damaged: {data.name} lies behind the filters {found}")


def _require_chunks(data: h5py.Dataset, grid: list[int], size: int) -> None:
    """A chunk that is missing would be read as zeros, and one behind no filter without a check."""
    found: list[tuple[int, ...]] = []
    reasons: list[str] = []

    def look(chunk: Any) -> None:  # whatever it returns but None would end the iteration
        found.append(tuple(map(int, chunk.chunk_offset)))
        if chunk.filter_mask or chunk.byte_offset + chunk.size > size:
            reasons.append(f"its chunk {chunk.chunk_offset} is unchecked or not in the file")

    count = data.id.get_num_chunks()
    if count != math.prod(grid):
        reasons.append(f"{count} of {math.prod(grid)} chunks are there")
    elif count:
        data.id.chunk_iter(look)
        steps = [range(0, number * chunk, chunk) for number, chunk in zip(grid, data.chunks)]
        if sorted(found) != list(product(*steps)):
            reasons.append("its chunks are not where they belong")
    if reasons:
        raise InputError(f"is damaged: {data.name}: {reasons[0]}")
