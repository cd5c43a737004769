"""Errors in the user's input, checks that raise them, and how to recognize an out-of-memory."""

from __future__ import annotations

import traceback
from numbers import Integral
from typing import Any


class InputError(ValueError):
    """Input that cannot be used: says what was got, what was expected and what to do.

    A ``ValueError``, so that callers need not know this class; the command line prints its
    message on one line and exits with code 2.
    """


class StateLost(OSError):
    """A result is written and complete, but not the state that it could be extended from."""


class Warned(UserWarning):
    """A warning of this package; the command line prints it on one line."""


def is_whole(value: Any) -> bool:
    """A whole number, Python's or NumPy's; not True or False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def require_whole(least: int, **values: Any) -> None:
    """InputError unless these are whole numbers of at least that size."""
    for name, value in values.items():
        if not is_whole(value) or value < least:
            raise InputError(f"{name}={value!r}: expected a whole number, {least} or more")


def is_out_of_memory(error: BaseException) -> bool:
    """Did the device or the host run out of memory?

    Recognized by name and text: torch raises an OutOfMemoryError of its own on a GPU, which is no
    MemoryError, and a plain RuntimeError on a CPU.
    """
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def in_one_line(error: BaseException) -> str:
    """``ValueError: what it says``, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def place_of(error: BaseException) -> str:
    """``FILE:LINE`` of the innermost frame of its traceback; "?" without one."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"


def of_exit(error: SystemExit) -> InputError:
    """What is raised instead where a model, a loss or data end the process."""
    return InputError(
        f"sys.exit({error.code!r}) was called at {place_of(error)}; a model, a loss or data must "
        "raise an error or return"
    )
