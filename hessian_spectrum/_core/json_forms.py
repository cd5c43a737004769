"""What JSON from a file must be: types, ranges and sizes, declared once and checked before use."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hessian_spectrum._core.errors import InputError

MOST_NESTED = 64  # lists and objects in each other
MOST = 2**53  # whole numbers up to here are the same as float64


class Form(Protocol):
    """A declaration that a value from a file is compared with."""

    def require(self, value: Any, name: str) -> None:
        """InputError, which calls the value ``name``, unless it has this form."""


@dataclass(frozen=True)
class Whole:
    """A whole number from ``least`` to ``most``."""

    least: int = 0
    most: int = MOST

    def require(self, value: Any, name: str) -> None:
        if type(value) is not int or not self.least <= value <= self.most:
            bounds = (
                f"{self.least} or more" if self.most == MOST else f"{self.least} to {self.most}"
            )
            raise _mismatch(value, name, f"a whole number, {bounds}")


@dataclass(frozen=True)
class Real:
    """A number of at least ``least``; NaN and infinities only where ``finite`` is False."""

    least: float = -math.inf
    finite: bool = True

    def require(self, value: Any, name: str) -> None:
        is_number = type(value) is float or (type(value) is int and abs(value) <= MOST)
        if not is_number or (self.finite and not math.isfinite(value)) or value < self.least:
            bound = f", {self.least:g} or more" if math.isfinite(self.least) else ""
            raise _mismatch(value, name, f"a {'finite ' if self.finite else ''}number{bound}")


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def require(self, value: Any, name: str) -> None:
        if type(value) is not bool:
            raise _mismatch(value, name, "true or false")


@dataclass(frozen=True)
class Text:
    """A text without control characters: one of ``choices``, or one that ``pattern`` matches."""

    choices: tuple[str, ...] = ()
    pattern: str = r"[^\x00-\x1f\x7f-\x9f]*"
    what: str = "a text without control characters"  # that the pattern matches

    def require(self, value: Any, name: str) -> None:
        if self.choices and (type(value) is not str or value not in self.choices):
            raise _mismatch(value, name, f"one of {', '.join(self.choices)}")
        if type(value) is not str or not re.fullmatch(self.pattern, value):
            raise _mismatch(value, name, self.what)


@dataclass(frozen=True)
class Maybe:
    """Null, or a value of the form ``of``."""

    of: Form

    def require(self, value: Any, name: str) -> None:
        if value is not None:
            self.of.require(value, name)


@dataclass(frozen=True)
class Listing:
    """A list of values of one form, ``length`` of them if that is given."""

    of: Form
    length: int | None = None

    def require(self, value: Any, name: str) -> None:
        if type(value) is not list or self.length not in (None, len(value)):
            count = "" if self.length is None else f" of {self.length}"
            raise _mismatch(value, name, f"a list{count}")
        for i, item in enumerate(value):
            self.of.require(item, f"{name}[{i}]")


@dataclass(frozen=True)
class Table:
    """An object whose values are all of one form."""

    of: Form

    def require(self, value: Any, name: str) -> None:
        for key, item in _object(value, name).items():
            self.of.require(item, _member(name, key))


@dataclass(frozen=True)
class Record:
    """An object with values of these forms by name. What has other names is not looked at."""

    required: Mapping[str, Form]
    optional: Mapping[str, Form] = field(default_factory=dict)

    def require(self, value: Any, name: str) -> None:
        missing = sorted(set(self.required) - set(_object(value, name)))
        if missing:
            raise InputError(f"{_member(name, ', '.join(missing))} is missing")
        for key, form in [*self.required.items(), *self.optional.items()]:
            if key in value:
                form.require(value[key], _member(name, key))


@dataclass(frozen=True)
class Anything:
    """Any JSON value."""

    def require(self, value: Any, name: str) -> None:
        pass


def numbers(value: Any, name: str, *shape: int | None) -> NDArray[np.float64]:
    """Nested lists of finite numbers as an array; InputError unless it has this shape.

    Args:
        shape: None: any length. Of an empty array only the first length that is not 0 is known to
            nested lists, so that an empty one fits every shape that is empty.
    """
    try:
        # As objects first: NumPy would take true for 1.0, and "1" for 1.
        entries = np.asarray(value, dtype=object)
        fits = all(type(entry) in (int, float) for entry in entries.ravel())
        array = entries.astype(np.float64) if fits else np.empty(0)
        fits = fits and bool(np.isfinite(array).all())
    except (ValueError, TypeError, OverflowError):  # lists of several lengths, 10^400
        fits, array = False, np.empty(0)
    if fits and array.size == 0:
        fits = 0 in shape or None in shape
    elif fits:
        fits = array.ndim == len(shape) and all(
            wanted in (None, got) for wanted, got in zip(shape, array.shape)
        )
    if not fits:
        sizes = ", ".join("any" if length is None else str(length) for length in shape)
        raise _mismatch(value, name, f"finite numbers of the shape ({sizes})")
    return array


def read_json(text: str | bytes) -> Any:
    """``json.loads``; InputError where ``text`` is no JSON, or nested more than 64 times."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise InputError("is no JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"is no JSON ({' '.join(str(error).split())})") from None
    level = [found]
    for _ in range(MOST_NESTED):
        level = [
            item
            for node in level
            if isinstance(node, (dict, list))
            for item in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return found
    raise InputError(f"is JSON that is nested more than {MOST_NESTED} times")


def _object(value: Any, name: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise _mismatch(value, name, "an object with named values")
    return value


def _member(name: str, key: str) -> str:
    shown = key if key.isprintable() and len(key) < 80 else reprlib.repr(key)
    return f"{name}.{shown}" if name else shown


def _mismatch(value: Any, name: str, expected: str) -> InputError:
    return InputError(f"{name or 'it'} is {reprlib.repr(value)}; expected {expected}")
