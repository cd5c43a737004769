"""Data sets and JSON texts of a result file: checksums, units, descriptions. NumPy and h5py."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any

import h5py
import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import read_json

KINDS_OF_NUMBERS = "biufcU"  # NumPy's letters for what HDF5 can hold: numbers and texts


def write_data(
    group: h5py.Group,
    name: str,
    value: object,
    description: str,
    units: str | None = None,
    compress: bool = False,
) -> h5py.Dataset:
    """Write a number, a text or an array; arrays carry Fletcher-32 checksums.

    Raises:
        InputError: ``value`` is something else.
    """
    array = np.asarray(value)
    if array.dtype.kind not in KINDS_OF_NUMBERS:
        raise InputError(
            f"cannot store {name!r}, a {type(value).__name__}; expected a number, a text or an "
            "array of them"
        )
    dtype = h5py.string_dtype() if array.dtype.kind == "U" else array.dtype
    # Checksums need chunks, and chunks need entries; HDF5 keeps variable texts out of chunks.
    checked = array.size > 0 and array.ndim > 0 and array.dtype.kind != "U"
    options: dict[str, Any] = (
        {"compression": "gzip", "shuffle": True} if checked and compress else {}
    )
    options["fletcher32"] = checked or None
    data = group.create_dataset(name, data=array.astype(dtype), **options)
    data.attrs["description"] = description
    if units:
        data.attrs["units"] = units
    return data


def read_data(group: h5py.Group, name: str) -> Any:
    """The number, the text or the array that ``write_data`` wrote.

    Raises:
        InputError: it is missing.
    """
    return value_of(require_data(group, name))


def value_of(data: h5py.Dataset) -> Any:
    if h5py.check_string_dtype(data.dtype):
        return _texts(data)
    value = data[()]
    return value if isinstance(value, np.ndarray) else value.item()


def _texts(data: h5py.Dataset) -> Any:
    """A text, or an array of them; InputError where they are more than the file can hold."""
    texts = data.asstr()
    if data.shape == ():
        return texts[()]
    # One by one: entries can refer to the same long text, as many times as there are entries.
    left = data.file.id.get_filesize()
    found = np.empty(data.shape, dtype=object)
    for index in np.ndindex(data.shape):
        found[index] = texts[index]
        left -= len(found[index])
        if left < 0:
            raise InputError(f"is damaged: the texts of {data.name} are longer than the file")
    return found.astype(str)


def require_data(group: h5py.Group, name: str) -> h5py.Dataset:
    """The data set ``name``; InputError where it is missing."""
    data = group.get(name)
    if not isinstance(data, h5py.Dataset):
        raise InputError(f"is damaged: the data set {group.name.rstrip('/')}/{name} is missing")
    return data


def require_real(group: h5py.Group, name: str) -> h5py.Dataset:
    """As ``require_data``; InputError also where it is complex, as no field of a result is."""
    data = require_data(group, name)
    if data.dtype.kind == "c":
        raise InputError(f"is damaged: {data.name} has complex numbers; expected real ones")
    return data


def require_name(name: object) -> str:
    """``name``, if HDF5 can take it for a group or a data set; else InputError."""
    if not isinstance(name, str) or not re.fullmatch(r"(?=.*[^.])[^/\0\n]+", name):
        raise InputError(f"label {name!r}: expected a text without '/', other than '.' or '..'")
    return name


def write_text(group: h5py.Group, name: str, text: str) -> h5py.Dataset:
    """A text as a data set of its own: HDF5 attributes end at 64 KiB."""
    return group.create_dataset(name, data=text, dtype=h5py.string_dtype())


def read_text(group: h5py.Group, name: str) -> str:
    data = require_data(group, name)
    if data.shape != () or h5py.check_string_dtype(data.dtype) is None:
        raise InputError(f"is damaged: {data.name} is no text, but {data.shape} {data.dtype}")
    return str(data.asstr()[()])


def read_table(group: h5py.Group, name: str) -> dict[str, Any]:
    """The JSON text ``name``, an object with named values; else InputError."""
    text = read_text(group, name)
    try:
        table = read_json(text)
    except InputError as error:
        raise InputError(f"is damaged: {group.name.rstrip('/')}/{name}: {error}") from None
    if not isinstance(table, dict):
        raise InputError(
            f"is damaged: {group.name.rstrip('/')}/{name} is a {type(table).__name__}; expected an "
            "object with named values"
        )
    return table


def to_json(name: str, value: object) -> str:
    """JSON of dicts, dataclasses, arrays and paths.

    Raises:
        InputError: ``value``, which is called ``name``, holds something else.
    """
    try:
        return json.dumps({} if value is None else value, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be stored as JSON: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} is not a number, text, list or dict")
