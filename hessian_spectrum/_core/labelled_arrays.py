"""The arrays of a result as an xarray Dataset or a pandas table, by the metadata of its fields."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError


@dataclass(frozen=True)
class Named:
    """An array of a result, with what its field's metadata say."""

    name: str
    array: np.ndarray
    axes: tuple[str, ...]
    attributes: dict[str, str]
    is_of_values: bool  # one of a mapping of arrays


def to_xarray(result: Any) -> Any:
    """As ``Exported.to_xarray``."""
    xarray = _library("xarray", "to_xarray")
    arrays = _arrays(result)
    sizes: dict[str, int] = {}
    for named in arrays:
        for axis, size in zip(named.axes, named.array.shape):
            sizes[axis] = max(size, sizes.get(axis, 0))
    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {}
    known: set[str] = set()
    for named in arrays:
        array = _padded(named, sizes)
        if array is None:
            continue
        # As in the result file: the first array of one axis is its coordinate.
        is_coordinate = len(named.axes) == 1 and named.axes[0] not in known
        known |= set(named.axes) if is_coordinate else set()
        place = coordinates if is_coordinate else variables
        place[named.name] = (named.axes, array, named.attributes)
    return xarray.Dataset(variables, coordinates, _numbers(result))


def to_dataframe(result: Any) -> Any:
    """As ``Exported.to_dataframe``."""
    pandas = _library("pandas", "to_dataframe")
    arrays = _arrays(result)
    main = next((n.axes for n in arrays if n.is_of_values), None) or arrays[0].axes[:1]
    arrays = [named for named in arrays if named.axes and named.array.size]
    of_rows = next(named for named in arrays if set(main) <= set(named.axes))
    sizes = [of_rows.array.shape[of_rows.axes.index(axis)] for axis in main]
    columns: dict[str, np.ndarray] = {}
    for named in arrays:
        array, axes = named.array, named.axes
        if set(axes) < set(main):  # a coordinate of some rows
            shape = [len(array) if axis in axes else 1 for axis in main]
            columns[named.name] = np.broadcast_to(array.reshape(shape), sizes).ravel()
        elif set(main) <= set(axes):
            order = [*map(axes.index, main), *(i for i, a in enumerate(axes) if a not in main)]
            rows = array.transpose(order).reshape(-1, *(array.shape[i] for i in order[len(main) :]))
            for index in np.ndindex(rows.shape[1:]):
                columns["_".join([named.name, *map(str, index)])] = rows[(slice(None), *index)]
    table = pandas.DataFrame(columns)
    table.attrs = _numbers(result)
    return table


def _numbers(result: Any) -> dict[str, Any]:
    """What kind of result it is, and the numbers beside its arrays, such as that of parameters."""
    found: dict[str, Any] = {"kind": type(result).__name__}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if field.metadata.get("form") in ("attribute", "flag") and value is not None:
            found[field.name] = value
    return found


def _arrays(result: Any) -> list[Named]:
    """Data sets of the result's own group, coordinates first, as they are written."""
    found: list[Named] = []
    fields = [f for f in dataclasses.fields(result) if f.metadata.get("form") == "data"]
    for field in sorted(fields, key=lambda f: not f.metadata["coordinate"]):
        value, axes = getattr(result, field.name), field.metadata["axes"]
        told = {name: field.metadata[name] for name in ("description", "units")}
        attributes = {name: text for name, text in told.items() if text}
        if value is None or field.name == "about":
            continue
        is_of_values = isinstance(value, Mapping)
        for name, array in value.items() if is_of_values else ((field.name, value),):
            found.append(Named(name, np.asarray(array), axes, attributes, is_of_values))
    if not found:
        raise InputError(
            f"a {type(result).__name__} holds several results; take one of them, such as "
            f"by_key()[{next(iter(result.by_key()))!r}]"
        )
    return found


def _padded(named: Named, sizes: Mapping[str, int]) -> np.ndarray | None:
    """With NaN where a shorter array ends; None of an empty one, of which nothing is known."""
    shape = tuple(sizes[axis] for axis in named.axes)
    if named.array.shape == shape:
        return named.array
    if named.array.size == 0:
        return None
    whole = np.full(shape, np.nan)
    whole[tuple(map(slice, named.array.shape))] = named.array
    return whole


def _library(name: str, method: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"{method}() needs {name}; pip install 'hessian_spectrum[tables]'"
        ) from None
