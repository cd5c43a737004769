"""The commands: words -> a configuration -> what carries the command out, on every rank."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.standard_output import nobody_reads
from hessian_spectrum.cli import read_commands, report_command
from hessian_spectrum.cli.exit_status import (
    DONE,
    FAILED,
    PATH_ERRORS,
    PATIENCE,
    USAGE,
    code_of,
    end_job,
    failure,
    flushed,
    has_saved,
    how_stopped,
    leave_code,
    on_disk,
    say,
    say_once,
    warnings_on_one_line,
)
from hessian_spectrum.cli.parsing import parse
from hessian_spectrum.commands import registry
from hessian_spectrum.commands.registry import Command
from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.config import SubmitConfig
from hessian_spectrum.slurm import submission

Action = Callable[[StopRequest], int]  # carries a command out and returns the exit code


def prepared(argv: Sequence[str], first: bool) -> Action:
    """What a command line asks for, with all that it needs imported; nothing is begun.

    Args:
        first: this rank prints errors; the others are silent.
    """
    argv, command = list(argv), list[str]()
    said: str | None
    try:
        if argv[:1] == ["submit"] and "--" in argv:
            command = argv[argv.index("--") + 1 :]
            argv = submission.with_joined_options(argv[: argv.index("--")])
        config = _parsed(argv, quiet=not first)
        if hasattr(config, "check"):
            config.check()
        if isinstance(config, SubmitConfig):
            return lambda stop: _at_once(lambda: _submit(config, command), config, first)
        row = _row_of(config)
        if row.runs != "at once":
            return _prepared_for_ranks(row, config, first)
        implementation = row.implementation()
        return lambda stop: _at_once(lambda: implementation(config), config, first)
    except (InputError, *PATH_ERRORS) as error:
        code, said = USAGE, str(error)
    except (OSError, MemoryError) as error:
        code, said = FAILED, failure(error)
    except SystemExit as end:  # after --help or a usage error, which were printed
        if end.code and not first:
            time.sleep(PATIENCE)
        flushed(DONE)
        raise
    return lambda stop: _ended(code, said, first)


def _ended(code: int, said: str | None, first: bool) -> int:
    if said:
        say_once(said, first)
    return code


def _at_once(action: Callable[[], object], config: Any, first: bool) -> int:
    """Carry out a command of one process that has no state."""
    code, said = DONE, None
    try:
        action()
    except BrokenPipeError:  # who reads the answer has read enough
        nobody_reads()
    except (InputError, *PATH_ERRORS) as error:
        code, said = USAGE, str(error)
    except (OSError, MemoryError) as error:
        code, said = FAILED, failure(error)
    except Interrupted as stopped:
        code, said = how_stopped(stopped, config, saved=False)
    return _ended(code, said, first)


# -- commands that compute, on every rank of the job ---------------------------------------------


def _prepared_for_ranks(row: Command, config: Any, first: bool) -> Action:
    # When a rank is lost, torch's threads would print their stacks beside our one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    implementation = row.implementation()
    from hessian_spectrum.commands import runner  # noqa: F401, imports take seconds
    from hessian_spectrum.distributed import world  # noqa: F401

    return lambda stop: _on_ranks(row, implementation, config, stop, first)


def _on_ranks(
    row: Command, implementation: Any, config: Any, stop: StopRequest, first: bool
) -> int:
    from hessian_spectrum.distributed import world as distributed
    from hessian_spectrum.distributed.environment import OwnPlaceError

    world, code, said = None, DONE, None
    before = on_disk(config)

    def saved() -> bool:
        return has_saved(config, before)

    def give_up(lost: Any) -> None:
        end_job(lost, None, lost.world, config, saved())

    with warnings_on_one_line(first):
        try:
            silence = timedelta(minutes=getattr(config, "timeout_minutes", 10.0))
            world = distributed.start(getattr(config, "device", "cpu"), silence, give_up)
            first = world.rank == 0
            _carry_out(row, implementation, config, world, stop)
        except (InputError, *PATH_ERRORS) as error:
            code, said = USAGE, str(error)
            first = first or isinstance(error, OwnPlaceError)
        except FloatingPointError as error:
            code, said = FAILED, str(error)
        except Interrupted as stopped:
            code, said = how_stopped(stopped, config, saved())
            if world is not None and world.size > 1 and not stopped.agreed:
                # Launchers signal the others after an error of one, which has told its reason.
                if world.presence is None or world.presence.speaks_first():
                    leave_code(code)
                    say(said)
                distributed.leave(world, code)
        except BaseException as error:
            code, said = code_of(error), failure(error, config, saved())
            # The error of a rank that could not join carries its world.
            world = world or getattr(error, "world", None)
            if world is not None and world.size > 1:
                end_job(error, said, world, config, saved())
            if said is None:
                leave_code(code)
                raise
        leave_code(code)
        _ended(code, said, first)
        if world is not None:
            distributed.finish(world)
    return code


def _carry_out(
    row: Command, implementation: Any, config: Any, world: Any, stop: StopRequest
) -> None:
    if row.runs == "in one process":
        if world.size > 1:
            raise InputError(
                f"{row.name} runs in one process, but was started on {world.size}; start it "
                "without a launcher"
            )
        implementation(config)
        return
    if row.runs == "by itself":
        implementation(config, world, stop)
        return
    from hessian_spectrum.commands import runner

    computation = implementation.chosen(config)
    runner.run(computation, *runner.load_problem(computation, config, world), world, stop)


def _submit(config: SubmitConfig, command: list[str]) -> None:
    if not command:
        raise InputError(
            "no command to submit; expected one behind --, as in hessian-spectrum submit "
            "--minutes 60 -- density --problem my.py:make --out run.h5"
        )
    submitted = _parsed(command)
    if isinstance(submitted, SubmitConfig) or not hasattr(submitted, "resume"):
        raise InputError(
            f"{command[0]} cannot be resumed by a job; submit density, eigenpairs or another "
            "command that has --resume"
        )
    submitted.check()
    print(submission.submit(config, submitted, command))


_DESCRIPTION = (
    "Hessian eigenvalues and loss surfaces of PyTorch models. Each run writes one HDF5 file. "
    "hessian-spectrum COMMAND --help describes a command, with an example and its exit codes. "
    "Commands that compute run in one process or, except demo, under torchrun, mpirun "
    "or srun. They also take --config FILE: the same options in a .toml or .json file, or those "
    "stored in an earlier result (.h5); options on the command line win."
)

# Commands that read files, and need no torch.
_READERS = [
    Command(
        "query",
        read_commands.QueryConfig,
        "hessian_spectrum.cli.read_commands:query",
        "numbers from a result file: masses, counts, quantiles, barriers",
        "at once",
    ),
    Command(
        "plot",
        read_commands.PlotConfig,
        "hessian_spectrum.cli.read_commands:plot",
        "draw a result",
        "at once",
    ),
    Command(
        "report",
        report_command.ReportConfig,
        "hessian_spectrum.cli.report_command:report",
        "one page about one run or many, to be read and printed",
        "at once",
    ),
    Command(
        "info",
        read_commands.InfoConfig,
        "hessian_spectrum.cli.read_commands:info",
        "contents and provenance of a result file",
        "at once",
    ),
    Command(
        "merge",
        read_commands.MergeConfig,
        "hessian_spectrum.cli.read_commands:merge",
        "collect the results of many files in one",
        "at once",
    ),
]


def _commands() -> list[tuple[str, type, str]]:
    """Name, options and one line of help of every command, in the order of --help."""
    rows = [(row.name, row.config, row.help) for row in [*registry.COMMANDS, *_READERS]]
    submit = ("submit", SubmitConfig, "submit a command to SLURM as a job that resumes until done")
    return [*rows, submit]


def _parsed(argv: Sequence[str], quiet: bool = False) -> Any:
    return parse(argv, _commands(), _DESCRIPTION, quiet)


def _row_of(config: Any) -> Command:
    return next(row for row in [*registry.COMMANDS, *_READERS] if row.config is type(config))
