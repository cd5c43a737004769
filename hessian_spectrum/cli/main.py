"""The command line: ``hessian-spectrum COMMAND ...``.

Exit codes: 0 done, 1 failed, 2 usage, 75 checkpointed and to be started again.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
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
from hessian_spectrum.config import (
    AlignmentConfig,
    DemoConfig,
    DensityConfig,
    EigenpairsConfig,
    InterpolateConfig,
    MapConfig,
    SubmitConfig,
    SurfaceConfig,
    TrackConfig,
    TrainConfig,
)
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
    first = _first_by_environment()
    command: list[str] = []
    said: str | None
    try:
        if argv[:1] == ["submit"] and "--" in argv:
            command = argv[argv.index("--") + 1 :]
            argv = argv[: argv.index("--")]
        config = parse(argv, _COMMANDS, _DESCRIPTION, quiet=not first)
        if hasattr(config, "check"):
            config.check()
        if isinstance(config, SubmitConfig):
            _submit(config, command)
            return DONE
        if type(config) in _SINGLE:
            _SINGLE[type(config)](config)
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
        return _on_ranks(config)
    say_once(said or "failed", first)
    return code


def _first_by_environment() -> bool:
    """Whether this is the first or only process of its job, known before the ranks communicate."""
    for rank, size in RANK_HINTS:
        if os.environ.get(size, "1") != "1" and rank in os.environ:
            return os.environ[rank] == "0"
    return True


# -- commands that compute, on every rank of the job ---------------------------------------------


def _on_ranks(config: Any) -> int:
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
            _COMPUTING[type(config)](config, world, stop)
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


def _density(config: DensityConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.commands.density import density

    density(*_loaded(config, world), world, stop)


def _eigenpairs(config: EigenpairsConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.commands.eigenpairs import eigenpairs

    eigenpairs(*_loaded(config, world), world, stop)


def _interpolate(config: InterpolateConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.commands.surfaces import interpolate

    config = _at(config, config.between[0])
    interpolate(*_loaded(config, world), world, stop)


def _surface(config: SurfaceConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.commands.surfaces import surface

    config = _at(config, *config.checkpoints[-1:])
    surface(*_loaded(config, world), world, stop)


def _map(config: MapConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.commands.curvature_map import curvature_map

    config = _at(config, *config.checkpoints[-1:])
    curvature_map(*_loaded(config, world), world, stop)


def _track(config: TrackConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.commands.surfaces import track

    config = _at(config, config.checkpoints[-1])
    track(*_loaded(config, world), world, stop)


def _at(config: Any, checkpoint: Path | None = None) -> Any:
    """``config`` with this checkpoint, unless --checkpoint names another."""
    return config if config.checkpoint else dataclasses.replace(config, checkpoint=checkpoint)


def _alignment(config: AlignmentConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.commands.alignment import align

    align(*_loaded(config, world), world, stop)


def _loaded(config: Any, world: Any) -> tuple[Any, dict[str, Any]]:
    """The configuration, completed with the problem's own choices, and Evaluator's arguments."""
    from hessian_spectrum.commands import runner
    from hessian_spectrum.zoo import problem_loader

    if config.download:  # once, before the other ranks read the files
        runner.on_first_rank(world, lambda: problem_loader.load(config))
    arguments = runner.together(world, lambda: problem_loader.load(config))
    return problem_loader.settled(config, arguments), arguments


def _train(config: TrainConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.commands import train as training

    _alone(world, "train")
    training.train(config)


def _demo(config: DemoConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.commands import demo

    _alone(world, "demo")
    demo.demo(config, world)


def _alone(world: Any, command: str) -> None:
    if world.size > 1:
        raise InputError(
            f"{command} runs in one process, but was started on {world.size}; start it without a "
            "launcher"
        )


def _submit(config: SubmitConfig, command: list[str]) -> None:
    from hessian_spectrum.slurm import submission

    if not command:
        raise InputError(
            "no command to submit; expected one behind --, as in hessian-spectrum submit "
            "--minutes 60 -- density --problem my.py:make --out run.h5"
        )
    submitted = parse(command, _COMMANDS, _DESCRIPTION)
    if type(submitted) not in _COMPUTING or not hasattr(submitted, "resume"):
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

_COMMANDS = [
    ("demo", DemoConfig, "train a small network on digits and estimate its Hessian's density"),
    ("train", TrainConfig, "train a zoo model and write checkpoints"),
    ("density", DensityConfig, "eigenvalue density of a Hessian"),
    ("eigenpairs", EigenpairsConfig, "extreme eigenvalues and eigenvectors of a Hessian"),
    ("alignment", AlignmentConfig, "curvature along minibatch gradients"),
    ("interpolate", InterpolateConfig, "loss between checkpoints: on a line, a curve or a grid"),
    ("surface", SurfaceConfig, "loss on a line or a plane around the parameters"),
    ("map", MapConfig, "smallest and largest eigenvalue at each point of a plane"),
    ("track", TrackConfig, "loss and distances along the checkpoints of a training run"),
    (
        "query",
        read_commands.QueryConfig,
        "numbers from a result file: masses, counts, quantiles, barriers",
    ),
    ("plot", read_commands.PlotConfig, "draw a result"),
    ("info", read_commands.InfoConfig, "contents and provenance of a result file"),
    ("merge", read_commands.MergeConfig, "collect the results of many files in one"),
    ("submit", SubmitConfig, "submit a command to SLURM as a job that resumes until done"),
]

_COMPUTING: dict[type, Callable] = {
    DensityConfig: _density,
    EigenpairsConfig: _eigenpairs,
    AlignmentConfig: _alignment,
    InterpolateConfig: _interpolate,
    SurfaceConfig: _surface,
    MapConfig: _map,
    TrackConfig: _track,
    TrainConfig: _train,
    DemoConfig: _demo,
}

_SINGLE: dict[type, Callable] = {
    read_commands.QueryConfig: read_commands.query,
    read_commands.PlotConfig: read_commands.plot,
    read_commands.InfoConfig: read_commands.info,
    read_commands.MergeConfig: read_commands.merge,
}
