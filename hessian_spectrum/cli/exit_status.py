"""How a command ends: the message on one line, the rank that prints it, and the exit code."""

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

from hessian_spectrum._core.errors import StateLost, Warned, is_out_of_memory
from hessian_spectrum._core.standard_output import nobody_reads

DONE, FAILED, USAGE, START_AGAIN = 0, 1, 2, 75

# Errors about a path that the user can correct: usage errors. Other OSErrors, such as a full disk,
# are failures.
PATH_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)

PATIENCE = 1.0  # seconds that silent ranks wait, so that the first can print its message


def leave_code(code: int) -> None:
    """Write the exit code to the file that $HESSIAN_SPECTRUM_EXIT names, if any.

    Job scripts read it there, because srun -K and torchrun mask the exit codes of ranks.
    """
    path = os.environ.get("HESSIAN_SPECTRUM_EXIT")
    if path:
        with suppress(OSError):
            Path(path).write_text(str(code))


def how_stopped(stopped: Any, config: Any) -> tuple[int, str]:
    """Exit code and message after a signal stopped the command."""
    if hasattr(config, "resume"):
        how = "what was finished is saved: the same command with --resume continues"
        return START_AGAIN, f"stopped by {stopped}; {how}"
    return FAILED, f"stopped by {stopped}; start it again with --overwrite"


def end_job(error: BaseException, said: str | None, world: Any, saved: bool) -> None:
    """End this rank after an error that other ranks may not have; never returns.

    The others may be waiting for this rank in a collective, so it cannot end in order.

    Args:
        said: the message; None prints the traceback.
        saved: whether the command saves its state, so that --resume can continue.
    """
    import traceback

    from hessian_spectrum.distributed import world as distributed

    where = f"rank {world.rank} of {world.size}"
    if isinstance(error, distributed.RankLost):
        lost, silent = distributed.why_lost(world, error)
        code = START_AGAIN if saved else FAILED
        if lost:
            how = "; the same command with --resume continues from what was saved" if saved else ""
            say(lost + how)
            leave_code(code)
        distributed.leave(world, code, silent)
    leave_code(FAILED)
    if world.presence:
        world.presence.speaks_first()  # before other ranks report that this one is lost
    if said:
        say(f"{where}: {said}")
    else:
        print(f"{where} failed:", file=sys.stderr)
        traceback.print_exception(error)
    distributed.leave(world, FAILED)


@contextmanager
def warnings_on_one_line(first: bool) -> Iterator[None]:
    """Print this package's warnings on one line, without a source line, on the first rank only."""
    before = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if category is not Warned:
            before(message, category, *where, **more)
        elif first:
            say(str(message))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def say_once(text: str, first: bool) -> None:
    """Print on the first rank. The others wait, since launchers end a job when one rank ends."""
    if first:
        say(text)
    else:
        time.sleep(PATIENCE)


def say(text: str) -> None:
    """Print one line on stderr, behind the program's name."""
    with suppress(BrokenPipeError):  # nobody reads it
        print(f"hessian-spectrum: {' '.join(text.split())}", file=sys.stderr, flush=True)


def flushed(code: int) -> int:
    """``code``, once all that was printed has left this process; FAILED where it cannot.

    Python flushes at its end, too, but only to report what is lost as an exception ignored.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nobody_reads()
    except OSError as error:  # a full disk
        nobody_reads()
        say(f"standard output: {failure(error)}")
        return code or FAILED
    return code


def failure(error: BaseException, config: Any = None) -> str | None:
    """One line about a failure of the machine; None for an error that may be a bug of ours."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if is_out_of_memory(error):
        smaller = [("memory", "--memory 1GiB"), ("batch_size", "a smaller --batch-size")]
        smaller += [("num_probes", "fewer --num-probes"), ("limit", "--limit N")]
        advice = [text for name, text in smaller if hasattr(config, name)]
        return f"out of memory ({said}); try {', '.join([*advice, 'or more memory'])}"
    if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
        return None
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    hints = "; make room" if full else ""
    if hasattr(config, "resume") and not isinstance(error, StateLost):
        hints += "; the saved state is complete: the same command with --resume continues from it"
    return said + hints
