"""The command line: ``hessian-spectrum COMMAND ...``.

Exit codes: 0 done, 1 failed, 2 usage, 75 checkpointed or not begun, and to be started again.

Signals are handled before anything that takes time is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from hessian_spectrum.cli.exit_status import START_AGAIN, end_rank, flushed, leave_code, say_once
from hessian_spectrum.commands import signals

# Environment variables by which launchers give a process its rank and the number of ranks, before
# any collective. Both are needed: a stray variable called RANK must not silence a single process.
RANK_HINTS = (
    ("RANK", "WORLD_SIZE"),  # torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),  # MPICH and its kin
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors are printed on one line.

    Args:
        argv: the words behind the program's name; default: those of this process, which is then
            taken to end with the command: a later signal cannot change its exit code.
    """
    first = first_by_environment()
    with signals.StopRequest(lambda name: _end_unbegun(name, first)).listening() as stop:
        from hessian_spectrum.cli import dispatch

        action = dispatch.prepared(sys.argv[1:] if argv is None else list(argv), first)
        stop.begin()
        code = flushed(action(stop))
        if argv is None:
            stop.keep_code(code)
            if has_ranks():
                end_rank(code)
    return code


def first_by_environment() -> bool:
    """Whether this is the first or only process of its job, known before the ranks communicate."""
    for rank, size in RANK_HINTS:
        if os.environ.get(size, "1") != "1" and rank in os.environ:
            # What is no rank of a job is not silenced: it is refused, with a message.
            others = (str(other) for other in range(1, _size(os.environ[size])))
            return os.environ[rank] not in others
    return True


def has_ranks() -> bool:
    """Whether a launcher says that this process is one of several."""
    return any(os.environ.get(size, "1") != "1" for _, size in RANK_HINTS)


def _size(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _end_unbegun(name: str, first: bool) -> NoReturn:
    """End at once: an exception may be lost in a module that is being imported."""
    leave_code(START_AGAIN)
    say_once(f"stopped by {name} before anything was begun; start the same command again", first)
    os._exit(START_AGAIN)
