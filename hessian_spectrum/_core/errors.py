"""The errors that a user can mend by changing the input, and the one that is the machine's."""

from __future__ import annotations

from numbers import Integral
from typing import Any


class InputError(ValueError):
    """Input that cannot be used: says what was got, what was expected and what to do.

    A ``ValueError``, so that callers need not know this class; the command line prints its
    message on one line and exits with code 2.
    """


class Warned(UserWarning):
    """Something that the user should know; the command line prints it on one line."""


def is_whole(value: Any) -> bool:
    """A whole number, Python's or NumPy's; not True or False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def require_whole(least: int, **values: Any) -> None:
    """InputError unless these are whole numbers of at least that size."""
    for name, value in values.items():
        if not is_whole(value) or value < least:
            raise InputError(f"{name}={value!r}: expected a whole number, {least} or more")


def is_out_of_memory(error: BaseException) -> bool:
    """A machine's limit, not the input's fault.

    By name: torch's error on a GPU is no MemoryError, and on a CPU a plain RuntimeError.
    """
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def in_one_line(error: BaseException) -> str:
    """``ValueError: what it says``, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
