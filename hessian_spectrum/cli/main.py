"""The command line: ``hessian-spectrum COMMAND ...``.

Exit codes: 0 done, 1 failed, 2 usage, 75 checkpointed and to be started again.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.cli import read_commands
from hessian_spectrum.cli.exit_status import (
    DONE,
    FAILED,
    PATH_ERRORS,
    PATIENCE,
    USAGE,
    end_job,
    failure,
    how_stopped,
    leave_code,
    say_once,
    warnings_on_one_line,
)
from hessian_spectrum.cli.parsing import parse
from hessian_spectrum.commands import registry
from hessian_spectrum.commands.registry import Command
from hessian_spectrum.config import SubmitConfig
from hessian_spectrum.slurm.job_script import script

# Environment variables by which launchers give a process its rank and the number of ranks, before
# any collective. Both are needed: a stray variable called RANK must not silence a single process.
RANK_HINTS = (
    ("RANK", "WORLD_SIZE"),  # torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),  # MPICH and its kin
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors are printed on one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    first, command = _first_by_environment(), []
    said: str | None
    try:
        if argv[:1] == ["submit"] and "--" in argv:
            command = argv[argv.index("--") + 1 :]
            argv = argv[: argv.index("--")]
        config = _parsed(argv, quiet=not first)
        if hasattr(config, "check"):
            config.check()
        if isinstance(config, SubmitConfig):
            _submit(config, command)
            return DONE
        row = _row_of(config)
        if row.runs == "at once":
            row.implementation()(config)
            return DONE
    except (InputError, *PATH_ERRORS) as error:
        code, said = USAGE, str(error)
    except (OSError, MemoryError) as error:
        code, said = FAILED, failure(error)
    except SystemExit as end:  # after --help or a usage error, which were printed
        if end.code and not first:
            time.sleep(PATIENCE)
        raise
    else:
        return _on_ranks(row, config)
    if said:
        say_once(said, first)
    return code


def _first_by_environment() -> bool:
    """Whether this is the first or only process of its job, known before the ranks communicate."""
    for rank, size in RANK_HINTS:
        if os.environ.get(size, "1") != "1" and rank in os.environ:
            return os.environ[rank] == "0"
    return True


# -- commands that compute, on every rank of the job ---------------------------------------------


def _on_ranks(row: Command, config: Any) -> int:
    from hessian_spectrum.commands import signals

    # When a rank is lost, torch's threads would print their stacks beside our one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    world, first = None, _first_by_environment()
    with signals.StopRequest().listening() as stop, warnings_on_one_line(first):
        try:
            from hessian_spectrum.distributed import world as distributed

            silence = timedelta(minutes=getattr(config, "timeout_minutes", 10.0))

            def give_up(lost: Any) -> None:
                end_job(lost, None, lost.world, hasattr(config, "resume"))

            world = distributed.start(getattr(config, "device", "cpu"), silence, give_up)
            first = world.rank == 0
            _carry_out(row, config, world, stop)
            code, said = DONE, None
        except (InputError, *PATH_ERRORS) as error:
            code, said = USAGE, str(error)
        except FloatingPointError as error:
            code, said = FAILED, str(error)
        except signals.Interrupted as stopped:
            code, said = how_stopped(stopped, config)
            if world is not None and world.size > 1 and not stopped.agreed:
                leave_code(code)
                say_once(said, first)
                distributed.leave(world, code)
        except BaseException as error:
            code, said = FAILED, failure(error, config)
            world = world or getattr(
                error, "world", None
            )  # a rank that could not join carries its world
            if world is not None and world.size > 1:
                end_job(error, said, world, hasattr(config, "resume"))
            if said is None:
                raise
        leave_code(code)
        if said:
            say_once(said, first)
        if world is not None:
            distributed.finish(world)
    return code


def _carry_out(row: Command, config: Any, world: Any, stop: Any) -> None:
    if row.runs == "in one process":
        if world.size > 1:
            raise InputError(
                f"{row.name} runs in one process, but was started on {world.size}; start it "
                "without a launcher"
            )
        row.implementation()(config)
        return
    from hessian_spectrum.commands import runner

    computation = row.implementation().chosen(config)
    runner.run(computation, *runner.load_problem(computation, config, world), world, stop)


def _submit(config: SubmitConfig, command: list[str]) -> None:
    from hessian_spectrum.slurm import submission

    if not command:
        raise InputError(
            "no command to submit; expected one behind --, as in hessian-spectrum submit "
            "--minutes 60 -- density --problem my.py:make --out run.h5"
        )
    submitted = _parsed(command)
    if isinstance(submitted, SubmitConfig) or _row_of(submitted).runs != "on ranks":
        raise InputError(
            f"{command[0]} cannot be resumed by a job; submit density, eigenpairs or another "
            "command that has --resume"
        )
    submitted.check()
    if not config.setup:  # the job's login shell may find another Python
        here = shlex.quote(str(Path(sys.executable).parent))
        config = dataclasses.replace(config, setup=(f"export PATH={here}:$PATH",))
    paths = [str(path) for path in config.checkpoints]
    text = script(config, command, paths, str(config.summary) if config.summary else None)
    if config.dry_run:
        print(text, end="")
    else:
        print(submission.submit(text, config))


_DESCRIPTION = (
    "Hessian eigenvalues and loss surfaces of PyTorch models. Each run writes one HDF5 file. "
    "hessian-spectrum COMMAND --help describes a command, with an example and its exit codes. "
    "Commands that compute run in one process or, except demo and train, under torchrun, mpirun "
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
