"""What results share: values by name, their minimum, and the metadata of stored fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.exports import Exported

Array = np.ndarray


class Minimum(NamedTuple):
    """The smallest finite value."""

    value: float
    place: tuple[float, ...]  # coordinates, one for each axis
    index: tuple[int, ...]  # type: ignore[assignment]  # hides tuple.index, which nobody calls


class Values(Mapping[str, Array]):
    """Evaluated quantities by name: "loss", "accuracy", "test_loss", ...; float64 arrays."""

    def __init__(self, arrays: Mapping[str, Array]):
        self._arrays = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}

    def __getitem__(self, name: str) -> Array:
        try:
            return self._arrays[name]
        except KeyError:
            held = ", ".join(self._arrays) or "nothing"
            raise InputError(f"no {name!r} was evaluated; there is: {held}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def get(self, name: str, default: Any = None) -> Any:
        """The array of this name, or ``default``: ``Mapping.get`` expects a KeyError above."""
        return self._arrays.get(name, default)

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"Values({', '.join(self)})"


class Evaluated(Exported):
    """What curves and surfaces share: values by name, of which "loss" is always one."""

    values: Mapping[str, Array]

    @property
    def loss(self) -> Array:
        return self.values["loss"]

    @property
    def num_invalid(self) -> int:
        """The number of points whose loss is NaN or infinite."""
        return int((~np.isfinite(self.loss)).sum())


def freeze_arrays(result: Any, ndim: int, shape: int | tuple[int, ...]) -> None:
    """Make the arrays of a frozen result float64, and check their shapes.

    Raises:
        InputError: there are no points, or an array does not have the shape of the points.
    """
    shape = (shape,) if isinstance(shape, int) else shape
    for name in ("t", "distance", "a", "b"):
        if hasattr(result, name):
            array = np.atleast_1d(np.asarray(getattr(result, name), dtype=np.float64))
            object.__setattr__(result, name, array)
    object.__setattr__(result, "values", Values(result.values))
    wrong = {name: v.shape for name, v in result.values.items() if v.shape != shape}
    if hasattr(result, "distance") and result.distance.shape != shape:
        wrong["distance"] = result.distance.shape
    if 0 in shape or wrong:
        raise InputError(f"a {type(result).__name__} of {shape} points has values of {wrong}")


def finite_minimum(values: Array, axes: tuple[Array, ...]) -> Minimum:
    if not np.isfinite(values).any():
        raise InputError("no value is finite, so there is no minimum")
    index = np.unravel_index(np.where(np.isfinite(values), values, np.inf).argmin(), values.shape)
    place = tuple(float(axis[i]) for axis, i in zip(axes, index))
    return Minimum(float(values[index]), place, tuple(int(i) for i in index))
