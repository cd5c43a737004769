"""How a command ends: what is said in one line, by which rank, and with which exit code."""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hessian_spectrum._core.errors import Warned, is_out_of_memory

DONE, FAILED, USAGE, START_AGAIN = 0, 1, 2, 75

# What a user can mend about a path. Other OSErrors (a full disk) are failures.
PATH_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)

PATIENCE = 1.0  # seconds that a rank with nothing to say leaves to the one that says it


def leave_code(code: int) -> None:
    """For a job script, which hears of the launcher's code only: srun -K and torchrun mask ours."""
    path = os.environ.get("HESSIAN_SPECTRUM_EXIT")
    if path:
        with suppress(OSError):
            Path(path).write_text(str(code))


def how_stopped(stopped: Any, config: Any) -> tuple[int, str]:
    if hasattr(config, "resume"):
        how = "what was finished is saved: the same command with --resume goes on"
        return START_AGAIN, f"stopped by {stopped}; {how}"
    return FAILED, f"stopped by {stopped}; start it again with --overwrite"


def end_job(error: BaseException, said: str | None, world: Any, saved: bool) -> None:
    """Never returns: the other ranks may not have this error, and wait for this one."""
    import traceback

    from hessian_spectrum.distributed import world as distributed

    where, silent = f"rank {world.rank} of {world.size}", []
    if isinstance(error, distributed.RankLost):
        lost, silent = distributed.why_lost(world, error)
        code = START_AGAIN if saved else FAILED
        if lost:
            how = "; the same command with --resume goes on from what was saved" if saved else ""
            say(lost + how)
            leave_code(code)
        distributed.leave(world, code, silent)
    leave_code(FAILED)
    if world.presence:
        world.presence.speaks_first()  # so that no other says that this one is lost
    if said:
        say(f"{where}: {said}")
    else:
        print(f"{where} failed:", file=sys.stderr)
        traceback.print_exception(error)
    distributed.leave(world, FAILED)


@contextmanager
def warnings_on_one_line(first: bool) -> Iterator[None]:
    """Our own warnings, without the line of code that gave them; of the first rank only."""
    before = warnings.showwarning

    def show(message: Any, category: type, *where: Any) -> None:
        if category is not Warned:
            before(message, category, *where)
        elif first:
            say(str(message))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def say_once(text: str, first: bool) -> None:
    """The first rank says it. The others wait: launchers end a job with its first failed rank."""
    if first:
        say(text)
    else:
        time.sleep(PATIENCE)


def say(text: str) -> None:
    print(f"hessian-spectrum: {' '.join(text.split())}", file=sys.stderr, flush=True)


def failure(error: BaseException, config: Any = None) -> str | None:
    """One line about what the machine could not do; None for what may be our own mistake."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if is_out_of_memory(error):
        smaller = [("memory", "--memory 1GiB"), ("batch_size", "a smaller --batch-size")]
        smaller += [("num_probes", "fewer --num-probes"), ("limit", "--limit N")]
        advice = [text for name, text in smaller if hasattr(config, name)]
        return f"out of memory ({said}); try {', '.join([*advice, 'or more memory'])}"
    if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
        return None
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    advice = "; make room" if full else ""
    if hasattr(config, "resume"):
        advice += "; what was saved is whole: the same command with --resume goes on from there"
    return said + advice
