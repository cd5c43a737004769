"""The output of a run: what it must not touch, and that it alone writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from hessian_spectrum._core.atomic import sweep_temporaries
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.config import ComputingConfig
from hessian_spectrum.distributed.agreement import on_first_rank
from hessian_spectrum.distributed.world import World
from hessian_spectrum.storage import run_file
from hessian_spectrum.storage.writer_lock import LOCK, WriterLock


def state_folder(out: Path) -> Path:
    """Where the state of a run is kept, beside its result file."""
    return Path(f"{out}.d")


@contextmanager
def writing(
    out: Path, world: World, stop: StopRequest, check: Callable[[], None]
) -> Iterator[WriterLock]:
    """Make these ranks the only writer of ``out``, defer signals, restore torch's threads after.

    Args:
        check: looks at ``out`` again on rank 0, once the lock is held.
    """
    with ExitStack() as stack:
        stack.enter_context(stop.deferred())
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # a resume sets its own
        lock = WriterLock(out)
        on_first_rank(world, lambda: stack.enter_context(lock))
        on_first_rank(world, check)
        on_first_rank(world, lambda: sweep(out))
        yield lock


def sweep(out: Path) -> None:
    """Delete what killed runs of ``out`` left beside it; for the holder of its lock."""
    sweep_temporaries(out)
    sweep_temporaries(f"{os.path.realpath(out)}{LOCK}")


def check_output(config: ComputingConfig, unresumable: str = "", command: str = "") -> None:
    """Refuse an OUT, or an earlier run's state beside it, that this run must not touch.

    Args:
        unresumable: why a finished run without its state cannot be resumed.
        command: which alone resumes what it has left; "": any.
    """
    run_file.check_output(config.out, overwrite=config.overwrite, resume=config.resume)
    state = state_folder(config.out)
    if state.is_symlink() or (state.exists() and not state.is_dir()):
        raise InputError(
            f"{state} is a link or a file, but is to be a folder that this run alone writes and "
            "clears; remove it, or choose another --out"
        )
    if config.resume and config.out.exists():
        require_resumable(config.out, command)
    if state.exists() and not (config.resume or config.overwrite):
        raise InputError(
            f"{state} exists already, the state of an earlier run; use --resume to "
            "continue it, --overwrite to start again, or another --out"
        )
    if config.resume and not state.exists():
        require_unfinished(config.out, unresumable)


def require_resumable(out: Path, command: str = "") -> None:
    """Refuse to replace a file that ``command`` has not written."""
    with reopened(out) as run:
        if command and run.config.get("command") != command:
            raise InputError(
                f"{out} is not what an interrupted {command} has left: there is nothing to "
                "resume; use --overwrite to start again, or another --out"
            )


def require_unfinished(out: Path, why: str = "") -> None:
    """Refuse a finished run without its state: it cannot be resumed, nor computed over."""
    if out.exists():
        with reopened(out) as run:
            if run.finished:
                raise InputError(
                    f"{out} is finished: there is nothing to resume{why}; use --overwrite to "
                    "compute it again"
                )


def reopened(path: Path) -> run_file.Run:
    """The file of an earlier run; InputError says what to do if it cannot be read."""
    try:
        return run_file.open(path)
    except InputError as error:
        raise InputError(f"{error}; restore it, or use --overwrite to start again") from None
