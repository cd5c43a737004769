"""A checksum of what a result file holds: of attributes and texts, which HDF5 does not check, too.

HDF5's own checksums are of the chunks of arrays. They see neither a flipped bit in an attribute, a
number or a text, nor one in the table that says which chunk lies where.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import h5py
import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.storage.hdf5_data import value_of

CHECKSUM = "checksum"  # attribute of the file
_AXES = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS")  # HDF5's own


def checksum(file: h5py.File, names: Iterable[str], is_lazy: Callable[[str], bool]) -> str:
    """SHA-256 of the file's attributes and of its members ``names``, with all that is in them.

    Args:
        is_lazy: data sets, by path, of which only the type and the shape count: they are read
            later, a chunk at a time, with the checksums of the chunks.

    Cost: reads the other data sets once.
    """
    digest = hashlib.sha256()
    _add_attributes(digest, file)
    for name in names:
        if name in file:
            _add(digest, file[name], is_lazy)
    return digest.hexdigest()


def _add(digest: Any, item: h5py.Group | h5py.Dataset, is_lazy: Callable[[str], bool]) -> None:
    _add_text(digest, item.name)
    if isinstance(item, h5py.Dataset):
        lazy = is_lazy(item.name)
        # Of texts the shape alone: NumPy's type depends on the longest one.
        is_text = h5py.check_string_dtype(item.dtype) is not None
        _add_text(digest, f"{'text' if is_text else item.dtype.str} {item.shape}")
        if not lazy:
            value = value_of(item)
            texts = np.asarray(value).ravel().tolist() if is_text else []
            for text in texts:
                _add_text(digest, str(text))
            if not is_text:
                digest.update(np.ascontiguousarray(item[()]).tobytes())
        return
    _add_attributes(digest, item)
    for name in sorted(item):
        _add(digest, item[name], is_lazy)


def _add_attributes(digest: Any, item: h5py.Group) -> None:
    for name in sorted(item.attrs):
        if name not in _AXES and name != CHECKSUM:
            value = read_attribute(item, name)
            _add_text(digest, f"{name} {type(value).__name__} {value!r}")


def read_attribute(item: h5py.Group, name: str) -> Any:
    """A number, a truth value or a text; InputError for anything larger."""
    about = item.attrs.get_id(name)
    if about.shape != () or about.get_storage_size() > 1024:
        raise InputError(f"is damaged: {item.name} has {name} of shape {about.shape}")
    value = item.attrs[name]
    return value.item() if isinstance(value, np.generic) else value


def _add_text(digest: Any, text: str) -> None:
    content = text.encode("utf-8", "surrogateescape")
    digest.update(len(content).to_bytes(8, "little"))
    digest.update(content)
