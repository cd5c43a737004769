"""Vectors that users give as tensors, NumPy arrays or lists of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError

BLOCK = 1 << 20  # numbers that are converted together
_REAL = "fiub"  # kinds of NumPy's types: floating point, whole numbers, truth values


def as_tensor(values: Any) -> Tensor:
    """A tensor as it is, detached; of arrays and lists a copy, whatever their strides.

    Floating-point types that torch has not become float64.

    Raises:
        InputError: not real numbers in an array of one shape.
    """
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.array(values, order="C")
    except ValueError as error:  # rows of different lengths
        raise InputError(
            f"a {type(values).__name__} of numbers has no shape ({error}); pass a tensor or array"
        ) from None
    if array.dtype.kind not in _REAL:
        raise InputError(
            f"a {type(values).__name__} of {array.dtype} is no tensor of real numbers; pass a "
            "tensor or array of float64 or float32"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:  # long double
        array = array.astype(np.float64)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def length(vector: Tensor) -> float:
    """|v|, summed in float64: torch's own norm of 10^8 float32 numbers is 1 to 4 % too small."""
    return torch.linalg.vector_norm(vector, dtype=torch.float64).item()


def dot(a: Tensor, b: Tensor) -> float:
    """a^T b, summed in float64, with a block of each converted at a time."""
    total = torch.zeros((), dtype=torch.float64, device=a.device)  # read once: no wait in the loop
    for x, y in zip(a.split(BLOCK), b.split(BLOCK)):
        total += torch.dot(x.double(), y.double())
    return total.item()
