"""How a command ends: the message on one line, the rank that prints it, and the exit code."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from hessian_spectrum._core.errors import StateLost, Warned, is_out_of_memory, of_exit, place_of
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


def on_disk(config: Any) -> dict[Path, tuple[int, ...]]:
    """The files from which ``--resume`` continues this command, as they are now."""
    found: dict[Path, tuple[int, ...]] = {}
    if hasattr(config, "resume"):
        for path in (Path(config.out), Path(f"{config.out}.d", "manifest.json")):
            with suppress(OSError):
                about = path.stat()
                found[path] = (about.st_ino, about.st_mtime_ns, about.st_size)
    return found


def has_saved(config: Any, before: dict[Path, tuple[int, ...]]) -> bool:
    """Is there anything from which ``--resume`` continues?

    Args:
        before: ``on_disk`` when the command began. Such files are of another run, unless it is
            this one that is resumed.
    """
    now = on_disk(config)
    return any(config.resume or before.get(path) != about for path, about in now.items())


def how_to_go_on(config: Any, saved: bool) -> str:
    """What the user does after a command that could not finish."""
    if not hasattr(config, "resume"):
        again = " with --overwrite" if hasattr(config, "overwrite") else ""
        return f"start it again{again}"
    if saved:
        return "what was finished is saved: the same command with --resume continues"
    return "nothing was finished: start the same command again"


def how_stopped(stopped: Any, config: Any, saved: bool) -> tuple[int, str]:
    """Exit code and message after a signal stopped the command.

    Args:
        saved: ``has_saved``.
    """
    code = START_AGAIN if hasattr(config, "resume") else FAILED
    return code, f"stopped by {stopped}; {how_to_go_on(config, saved)}"


def end_job(error: BaseException, said: str | None, world: Any, config: Any, saved: bool) -> None:
    """End this rank after an error that other ranks may not have; never returns.

    The others may be waiting for this rank in a collective, so it cannot end in order.

    Args:
        said: the message; None prints the traceback.
        saved: ``has_saved``.
    """
    import traceback

    from hessian_spectrum.distributed import world as distributed

    where = f"rank {world.rank} of {world.size}"
    if isinstance(error, distributed.RankLost):
        lost, silent = distributed.why_lost(world, error)
        code = START_AGAIN if hasattr(config, "resume") else FAILED
        if lost:
            say(f"{lost}; {how_to_go_on(config, saved)}")
            leave_code(code)
        distributed.leave(world, code, silent)
    leave_code(code_of(error))
    # Before other ranks report that this one is lost.
    speaks_first = world.presence is None or world.presence.speaks_first()
    if not isinstance(error, Exception) and not speaks_first:
        pass  # all ranks run the user's code, which raised it on another one before
    elif said:
        say(f"{where}: {said}")
    else:
        print(f"{where} failed:", file=sys.stderr)
        traceback.print_exception(error)
    distributed.leave(world, code_of(error))


def end_rank(code: int) -> NoReturn:
    """End this process of a job whose work is done, without the interpreter's finalization.

    In the finalization a thread of torch's C++ code that is still there ends the process by an
    abort, and so a finished job as a failed one.
    """
    atexit._run_exitfuncs()  # the heartbeat's end among them
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        if MPI.Is_initialized() and not MPI.Is_finalized():
            MPI.Finalize()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def code_of(error: BaseException) -> int:
    """Of an error that is not known to be one of the input, unless the user's code says so."""
    return USAGE if isinstance(error, SystemExit) else FAILED


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


def failure(error: BaseException, config: Any = None, saved: bool = False) -> str | None:
    """One line about a failure of the machine, or about what is no ``Exception``.

    None for an error that may be a bug of ours.
    """
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if is_out_of_memory(error):
        smaller = [("memory", "--memory 1GiB"), ("batch_size", "a smaller --batch-size")]
        smaller += [("num_probes", "fewer --num-probes"), ("limit", "--limit N")]
        advice = [text for name, text in smaller if hasattr(config, name)]
        return f"out of memory ({said}); try {', '.join([*advice, 'or more memory'])}"
    if isinstance(error, SystemExit):
        return str(of_exit(error))
    if not isinstance(error, Exception):
        return f"{said} was raised at {place_of(error)}; the command cannot go on"
    if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
        return None
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    hints = "; make room" if full else ""
    if saved and not isinstance(error, StateLost):
        hints += "; the saved state is complete: the same command with --resume continues from it"
    return said + hints
