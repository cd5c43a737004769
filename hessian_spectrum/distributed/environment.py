"""What launchers say of this process in environment variables, read and checked."""

from __future__ import annotations

import os
import re

from hessian_spectrum._core.errors import InputError

# Variables that are another one's on each rank.
OF_ONE_RANK = {"RANK", "LOCAL_RANK", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"}
OF_ONE_RANK |= {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"}


class OwnPlaceError(InputError):
    """This process's own place is wrong, of which the other ranks may know nothing."""


def number(name: str, least: int, most: int | None = None, default: int | None = None) -> int:
    """The whole number in a variable.

    Args:
        default: where the variable is not set. Default: it must be.

    Raises:
        InputError: it is not set, no whole number, or outside ``least`` to ``most``.
    """
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is not None and re.fullmatch(r"\s*\d+\s*", text, re.ASCII):
        value = int(text)
        if least <= value and (most is None or value <= most):
            return value
    expected = f"{least} or more" if most is None else f"from {least} to {most}"
    got = "is not set" if text is None else f"is {text!r}"
    kind = OwnPlaceError if name in OF_ONE_RANK else InputError
    raise kind(
        f"the environment variable {name} {got}; expected a whole number, {expected}, as the "
        "launcher sets it; unset the launcher's variables to run in one process"
    )


def text(name: str) -> str:
    """The text of a variable; InputError where it is not set or empty."""
    if not os.environ.get(name):
        raise InputError(
            f"the environment variable {name} is not set, though others of its launcher are; set "
            "it as the launcher does, or unset those to run in one process"
        )
    return os.environ[name]


def tasks_per_node(short: str) -> list[int]:
    """SLURM's short form: "2(x3),1" -> [2, 2, 2, 1]."""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", short)
    return [int(tasks) for tasks, times in groups for _ in range(int(times or 1))]


def node_names(short: str) -> list[str]:
    """SLURM's short form of a list of nodes: "n[01-03,7],m2" -> n01, n02, n03, n7, m2.

    Several brackets in a name are expanded from the left, as ``scontrol show hostnames`` does.

    Raises:
        InputError: a bracket that is not closed, or what is no number or range in one.
    """
    parts = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", short)
    if ",".join(parts) != short or not parts:
        raise InputError(f"the list of nodes {short!r} cannot be read")
    return [name for part in parts for name in _names(part, short)]


def _names(part: str, short: str) -> list[str]:
    before, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, after = rest.partition("]")
    numbers = [n for piece in inside.split(",") for n in _numbers(piece, short)]
    tails = _names(after, short)
    return [before + n + tail for n in numbers for tail in tails]


def _numbers(piece: str, short: str) -> list[str]:
    """Of "08-11": 08, 09, 10, 11; of "7": 7."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", piece, re.ASCII)
    if found is None:
        raise InputError(f"the list of nodes {short!r} cannot be read: {piece!r} is no range")
    first, last = found[1], found[2] or found[1]
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
