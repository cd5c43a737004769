"""Frozen dataclasses of arrays <-> groups of a run file, by what their fields say of themselves.

An array is a data set with its description, units and axes; the first array of one axis is the
scale of that axis. A mapping of arrays is a group of its own; what a result says of itself is JSON.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import (
    Asymmetry,
    AveragingBias,
    Curve,
    DirectionVectors,
    FunctionalDistances,
    Surface,
    Trajectory,
)

KINDS = {
    "curve": Curve,
    "surface": Surface,
    "directions": DirectionVectors,
    "trajectory": Trajectory,
    "functional": FunctionalDistances,
    "asymmetry": Asymmetry,
    "averaging": AveragingBias,
}

Write = Callable[..., h5py.Dataset]  # hdf5_schema.py's: group, name, array, description, units


def kind_of(result: object) -> str | None:
    """The kind under which it is stored, if it is one of these."""
    return next((kind for kind, made in KINDS.items() if isinstance(result, made)), None)


def write(group: h5py.Group, result: Any, array: Write) -> None:
    scales: dict[str, h5py.Dataset] = {}
    for field in dataclasses.fields(result):
        value, about = getattr(result, field.name), field.metadata
        if field.name == "about":
            text = json.dumps(dict(value), default=_plain)
            group.create_dataset("about", data=text, dtype=h5py.string_dtype())
        elif isinstance(value, Mapping):
            inner = group.create_group(field.name)
            for name, one in value.items():
                _write_array(inner, name, one, about, scales, array)
        else:
            _write_array(group, field.name, value, about, scales, array)


def read(group: h5py.Group, made: type) -> Any:
    """The result in that group.

    Raises:
        InputError: something is missing, or does not belong together.
    """
    found = {}
    for field in dataclasses.fields(made):
        if field.name not in group:
            raise InputError(f"is damaged: the data set {group.name}/{field.name} is missing")
        stored = group[field.name]
        if field.name == "about":
            found["about"] = json.loads(stored.asstr()[()])
        elif isinstance(stored, h5py.Group):
            found[field.name] = {name: stored[name][()] for name in stored}
        else:
            found[field.name] = _value(stored)
    try:
        return made(**found)
    except InputError as error:
        raise InputError(f"is damaged: {group.name}: {error}") from None


def _write_array(
    group: h5py.Group,
    name: str,
    value: Any,
    about: Mapping[str, Any],
    scales: dict[str, h5py.Dataset],
    array: Write,
) -> None:
    data = array(group, name, value, about["description"], about["units"])
    labels = about["axes"]
    if len(labels) == 1 and labels[0] not in scales:
        scales[labels[0]] = data
        data.make_scale(labels[0])
        return
    for dimension, label in zip(data.dims, labels):
        dimension.label = label
        if label in scales and len(set(labels)) == len(labels):
            dimension.attach_scale(scales[label])


def _value(data: h5py.Dataset) -> Any:
    if h5py.check_string_dtype(data.dtype):
        return np.asarray(data.asstr()[()]).astype(str)
    value = data[()]
    return value if isinstance(value, np.ndarray) else value.item()


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise InputError(f"about holds a {type(value).__name__}; expected numbers, texts, lists, dicts")
