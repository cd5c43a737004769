"""Results <-> groups of a result file: one writer and one reader for every kind.

A result is a frozen dataclass whose fields say in their metadata (_core/stored_fields.py) what
they are in the file. A dict of named numbers, texts and arrays is a result, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Listing, Maybe, Real, Record, Text, Whole
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.storage.hdf5_checksum import read_attribute
from hessian_spectrum.storage.hdf5_data import (
    read_data,
    read_table,
    require_name,
    require_real,
    to_json,
    value_of,
    write_data,
    write_text,
)
from hessian_spectrum.storage.stored_vectors import read_rows, write_rows

About = Mapping[str, Any]  # the metadata of a field
Scales = dict[str, h5py.Dataset]  # of the group's axes, by name
ABSENT = object()
NAMED_VALUE = stored("a value by name")
JSON_FIELD = "about"  # what a result says of itself
SHAPES = "shapes"
# What readers use of what a result says of itself; all else is only shown.
_RECIPES = Listing(Record({"kind": Text()}, {"normalize": Text()}))
ABOUT = Record(
    {},
    {
        "num_samples": Real(0),
        "n": Whole(),
        "batch_norm": Maybe(Text()),
        "path": Text(),
        "ends": Listing(Real(), length=2),
        "directions": _RECIPES,
        "recipes": _RECIPES,
    },
)


def write_result(group: h5py.Group, result: Any) -> None:
    """Write a dataclass, or a dict of values, into its empty group.

    Raises:
        InputError: a value is of a type that cannot be stored.
    """
    scales: Scales = {}
    if isinstance(result, Mapping):
        for name, value in result.items():
            _write_array(group, require_name(name), value, NAMED_VALUE, scales)
        return
    fields = dataclasses.fields(result)
    for field in sorted(fields, key=lambda field: not field.metadata.get("coordinate", False)):
        value, about = getattr(result, field.name), field.metadata
        if value is None or (about["form"] == "sequence" and not value):
            continue
        if about["form"] in ("attribute", "flag"):
            group.attrs[field.name] = value
        elif about["form"] == "group":
            write_result(group.create_group(about["name"]), value)
        elif about["form"] == "sequence":
            _write_sequence(group.create_group(about["name"]), value, about)
        elif about["form"] == "rows":
            data = write_rows(group, field.name, value, len(result), dict(about))
            if data is not None:
                _name_axes(data, about["axes"], scales)
        elif field.name == JSON_FIELD:
            write_text(group, field.name, to_json(field.name, dict(value)))
        elif isinstance(value, Mapping):
            inner = group.create_group(field.name)
            for name, one in value.items():
                _write_array(inner, name, one, about, scales)
        else:
            _write_array(group, field.name, value, about, scales)


def read_result(group: h5py.Group, made: type) -> Any:
    """The ``made`` that ``write_result`` wrote; its own default where an optional field is absent.

    Raises:
        InputError: something is missing, or does not belong together.
    """
    if made is dict:
        return {require_name(name): read_data(group, name) for name in group}
    _require_shapes(group, made)
    found = {}
    for field in dataclasses.fields(made):
        # An array that may be None, which is not written, as in files from before there was one.
        if field.metadata["form"] == "data" and field.default is None and field.name not in group:
            continue
        value = _READERS[field.metadata["form"]](group, field.name, field.metadata)
        if value is not ABSENT:
            found[field.name] = value
        elif field.default is dataclasses.MISSING:
            raise InputError(f"is damaged: {group.name} has no {field.name}")
    try:
        return made(**found)
    except InputError as error:
        raise InputError(f"is damaged: {group.name}: {error}") from None


# -- arrays and their axes -----------------------------------------------------------------------


def _write_array(group: h5py.Group, name: str, value: Any, about: About, scales: Scales) -> None:
    data = write_data(group, name, value, about["description"], about["units"], about["compress"])
    for axis, label in enumerate(about["axes"]):
        if label in about["index"] and label not in scales:
            places = np.arange(data.shape[axis])
            scales[label] = write_data(group, label, places, about["index"][label])
            scales[label].make_scale(label)
    if len(about["axes"]) == data.ndim == 1 and about["axes"][0] not in scales:
        scales[about["axes"][0]] = data
        data.make_scale(about["axes"][0])
    else:
        _name_axes(data, about["axes"], scales)


def _name_axes(data: h5py.Dataset, labels: Sequence[str], scales: Scales) -> None:
    for dimension, label in zip(data.dims, labels):
        dimension.label = label
        if label in scales and len(set(labels)) == len(labels):  # HDF5 cannot attach one twice
            dimension.attach_scale(scales[label])


def _read_array(group: h5py.Group, name: str, about: About) -> Any:
    if name == JSON_FIELD:
        about_result = read_table(group, name)
        ABOUT.require(about_result, f"is damaged: {group.name}/{name}")
        return about_result
    if isinstance(group.get(name), h5py.Group):
        return {
            require_name(inner): value_of(require_real(group[name], inner)) for inner in group[name]
        }
    return value_of(require_real(group, name))


def _require_shapes(group: h5py.Group, made: type) -> None:
    """InputError unless the arrays have the axes that their fields declare, each of one length.

    Reads no values.
    """
    lengths: dict[str, int] = {}
    parts: list[tuple[str, int]] = []  # axes of which an array has a part, and how much
    shapes: dict[str, tuple[int, ...]] = {}
    fits = True
    for field in dataclasses.fields(made):
        about = field.metadata
        if about["form"] not in ("data", "rows") or field.name not in group:
            continue
        if field.name == JSON_FIELD:
            continue
        item = group[field.name]
        for data in item.values() if isinstance(item, h5py.Group) else [item]:
            if not isinstance(data, h5py.Dataset):
                raise InputError(f"is damaged: {data.name} is a group; expected a data set")
            _require_type(data, field)
            shapes[data.name.rpartition("/")[2]] = data.shape
            fits &= len(data.shape) == len(about["axes"])
            # An empty array stands for one that is not known, as a surface's positions.
            for axis, length in zip(about["axes"], data.shape) if 0 not in data.shape else ():
                if axis in about.get("part_of", ()):
                    parts.append((axis, length))
                else:
                    fits &= lengths.setdefault(axis, length) == length
    fits &= all(length <= lengths.get(axis, length) for axis, length in parts)
    if not fits:
        raise InputError(
            f"is damaged: {group.name} has shapes {shapes} that do not belong together"
        )


def _require_type(data: h5py.Dataset, field: dataclasses.Field[Any]) -> None:
    kinds = "O" if field.metadata.get("texts") else "b" if "bool" in str(field.type) else "biufc"
    if data.dtype.kind not in kinds:  # "c" is refused by name when it is read
        what = {"O": "texts", "b": "true or false"}.get(kinds, "numbers")
        raise InputError(f"is damaged: {data.name} is of type {data.dtype}; expected {what}")


def _read_flag(group: h5py.Group, name: str, about: About) -> Any:
    value = read_attribute(group, name) if name in group.attrs else ABSENT
    if value is not ABSENT and not isinstance(value, (bool, np.bool_)):
        raise InputError(f"is damaged: {group.name} has {name}={value!r}; expected true or false")
    return value if value is ABSENT else bool(value)


def _read_attribute(group: h5py.Group, name: str, about: About) -> Any:
    if name not in group.attrs:
        return ABSENT
    value, least = read_attribute(group, name), about["least"]
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if least is None and not is_real:
        raise InputError(f"is damaged: {group.name} has {name}={value!r}; expected a real number")
    if least is None and not value >= 0:
        raise InputError(f"is damaged: {group.name} has {name}={value!r}; expected 0 or more")
    if least is not None and (not isinstance(value, int) or not is_real or value < least):
        raise InputError(
            f"is damaged: {group.name} has {name}={value!r}; expected a whole number, {least} or "
            "more"
        )
    return value


def _read_group(group: h5py.Group, name: str, about: About) -> Any:
    return read_result(group[about["name"]], about["of"]) if about["name"] in group else ABSENT


def _read_rows(group: h5py.Group, name: str, about: About) -> Any:
    rows = read_rows(group, name)
    return ABSENT if rows is None else rows


# -- a sequence of dataclasses, whose arrays are of several shapes -------------------------------


def _write_sequence(group: h5py.Group, items: Sequence[Any], about: About) -> None:
    shapes: list[list[int]] = [[] for _ in items]
    counts: list[list[int]] = [[] for _ in items]
    for field in dataclasses.fields(about["of"]):
        values = [getattr(item, field.name) for item in items]
        if field.metadata["form"] == "count":
            for row, value in zip(counts, values):
                row.append(value)
            continue
        if isinstance(values[0], np.ndarray):
            for row, value in zip(shapes, values):
                row.extend(value.shape[:1] if field.metadata["square"] else value.shape)
        column = _padded(values) if isinstance(values[0], np.ndarray) else values
        _write_array(group, field.name, column, field.metadata, {})
    rows = [shape + count for shape, count in zip(shapes, counts)]
    write_data(group, SHAPES, rows, about["shapes"])


def _padded(blocks: Sequence[np.ndarray]) -> np.ndarray:
    padded = np.zeros((len(blocks), *np.max([block.shape for block in blocks], axis=0)))
    for whole, block in zip(padded, blocks):
        whole[tuple(map(slice, block.shape))] = block
    return padded


def _read_sequence(group: h5py.Group, name: str, about: About) -> Any:
    if about["name"] not in group:
        return ABSENT
    group = group[about["name"]]
    fields = dataclasses.fields(about["of"])
    counts = [field.name for field in fields if field.metadata["form"] == "count"]
    arrays = [field for field in fields if field.name not in counts]
    data = {field.name: value_of(require_real(group, field.name)) for field in arrays}
    rows = read_data(group, SHAPES)
    _require_rows(group, rows, data, arrays, len(counts))
    items = []
    for i, row in enumerate(rows.tolist()):
        columns = iter(row)
        found = {
            field.name: _unpadded(data[field.name][i], columns, field.metadata["square"])
            for field in arrays
        }
        items.append(about["of"](**found, **dict(zip(counts, columns))))
    return tuple(items)


def _require_rows(
    group: h5py.Group,
    rows: Any,
    data: Mapping[str, Any],
    arrays: Sequence[dataclasses.Field[Any]],
    num_counts: int,
) -> None:
    """InputError unless ``shapes`` has a row for each item, with lengths that the arrays have."""
    most: list[int] = []
    for field in arrays:
        shape = np.shape(data[field.name])
        most.extend(shape[1:2] if field.metadata["square"] else shape[1:])
    fits = getattr(rows, "ndim", 0) == 2 and rows.dtype.kind in "iu"
    fits = fits and all(np.shape(values)[:1] == rows.shape[:1] for values in data.values())
    fits = fits and rows.shape[1] == len(most) + num_counts
    if not fits or (rows < 0).any() or (rows[:, : len(most)] > most).any():
        raise InputError(f"is damaged: {group.name} has shapes that its arrays do not have")


def _unpadded(value: Any, columns: Iterator[int], square: bool) -> Any:
    """An array without its padding, by the next columns of ``shapes``; a number as it is."""
    if not isinstance(value, np.ndarray):
        return value.item()
    if square:
        return value[(slice(next(columns)),) * value.ndim]
    return value[tuple(slice(next(columns)) for _ in range(value.ndim))]


_READERS: dict[str, Callable[[h5py.Group, str, About], Any]] = {
    "data": _read_array,
    "attribute": _read_attribute,
    "flag": _read_flag,
    "group": _read_group,
    "sequence": _read_sequence,
    "rows": _read_rows,
}
