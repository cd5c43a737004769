"""Checks of option values; messages name the option."""

from __future__ import annotations

import math
import re
from typing import Any

from hessian_spectrum._core.errors import InputError


def size_in_bytes(text: str) -> int:
    """Bytes of a size such as 500MiB or 4GiB.

    Raises:
        InputError: the text is no size, or the size is below 1MiB.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    try:
        number, prefix = found.groups() if found else ("0", "")
        size = int(float(number) * 1024 ** " KMGT".index(prefix.upper() or " "))
    except ValueError:
        size = 0
    if size < 2**20:
        raise InputError(f"--memory {text!r}: expected a size such as 500MiB or 4GiB, 1MiB or more")
    return size


def positive(config: Any, *names: str) -> None:
    """InputError unless these fields are None or 1 or more."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"--{dashed(name)} {value}: expected 1 or more")


def above_zero(config: Any, *names: str) -> None:
    """InputError unless these fields are None or a finite number above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{dashed(name)} {value}: expected a number above 0")


def finite(config: Any, *names: str) -> None:
    """InputError unless these fields are None or a finite number, 0 or more."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"--{dashed(name)} {value}: expected a finite number, 0 or more")


def ascending(
    config: Any, low: str, high: str, *defaults: float, num_points: int | None = None
) -> None:
    """InputError unless the field ``low`` is below the field ``high``.

    Args:
        defaults: the ends that are used where a field is None. Without them the ends are compared
            only where both are given.
        num_points: a grid of a single point may have equal ends.
    """
    ends = [getattr(config, low), getattr(config, high)]
    ends = [d if e is None else e for e, d in zip(ends, defaults or (None, None))]
    if None in ends:
        return
    equal = ends[0] == ends[1] and num_points == 1
    if not (-math.inf < ends[0] < ends[1] < math.inf or (equal and math.isfinite(ends[0]))):
        raise InputError(
            f"--{dashed(low)} {ends[0]} and --{dashed(high)} {ends[1]}: expected finite numbers, "
            "the first below the last"
        )


def tolerance(tol: float) -> None:
    """InputError unless 0 < tol < 1."""
    if not 0 < tol < 1:
        raise InputError(f"--tol {tol}: expected a number between 0 and 1")


def seeds(config: Any, *names: str) -> None:
    """InputError unless these fields are None or in [0, 2^64)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 2**64:  # the range of the generators' keys
            raise InputError(f"--{dashed(name)} {value}: expected 0 or more, and below 2^64")


def dashed(name: str) -> str:
    """The option of a field: ``num_steps`` -> ``num-steps``."""
    return name.replace("_", "-")
