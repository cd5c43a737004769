"""The command line: ``hessian-spectrum COMMAND ...``.

Exit codes: 0 done, 1 failed, 2 usage, 75 checkpointed and to be started again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from hessian_spectrum.config import (
    DemoConfig,
    DensityConfig,
    TrainConfig,
    read_file,
    with_fields,
)
from hessian_spectrum.errors import InputError

DONE, FAILED, USAGE, START_AGAIN = 0, 1, 2, 75

# What a user can mend about a path. Other OSErrors (a full disk) are failures.
PATH_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)

Query = Literal[
    "density",
    "mass",
    "count",
    "quantile",
    "moment",
    "energy",
    "trace",
    "frobenius_norm",
    "effective_dimension",
    "negative_fraction",
    "log_determinant",
]


@dataclass(frozen=True)
class QueryConfig:
    """Ask a result file: QUERY and its numbers, such as mass 0.1 inf; with standard errors."""

    file: tyro.conf.Positional[Path]
    """The result file."""
    query: tyro.conf.Positional[Query]
    """mass A B, count A B, energy A B (closed intervals), quantile Q, moment P, density T,
    effective_dimension DAMPING, negative_fraction THRESHOLD, log_determinant DAMPING, trace
    or frobenius_norm."""
    numbers: tyro.conf.Positional[tuple[float, ...]] = ()
    """The query's arguments."""
    result: str = "density"
    """Which density in the file."""
    sigma2: float | None = None
    """Variance of the smoothing, for density T."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class PlotConfig:
    """Draw a stored density or stored eigenvalues."""

    file: tyro.conf.Positional[Path]
    """The result file."""
    out: Path | None = None
    """The picture, .png, .pdf or .svg. Default: beside FILE."""
    result: str = "density"
    """What to draw: density, eigenpairs, or a labelled one (see info)."""
    sigma2: float | None = None
    """Variance of the Gaussian smoothing. Default: (width of the spectrum / 500)^2."""
    overwrite: bool = False
    """Replace an existing picture."""


@dataclass(frozen=True)
class InfoConfig:
    """What a result file holds and where it comes from."""

    file: tyro.conf.Positional[Path]
    """The result file."""
    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and prints errors on one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        config = _parse(argv)
        if hasattr(config, "check"):
            config.check()
        if type(config) in _SINGLE:
            _SINGLE[type(config)](config)
            return DONE
        return _on_ranks(config)
    except (InputError, *PATH_ERRORS) as error:
        _say(error)
        return USAGE


def _parse(argv: list[str]) -> Any:
    """The chosen command's configuration: defaults < --config file < command line."""
    commands = {name: (cls, text) for name, cls, text in _COMMANDS}
    argv, fields = _config_file(argv)
    if fields and (not argv or argv[0] not in commands):
        raise InputError("--config goes behind a command: hessian-spectrum density --config FILE")
    kinds = []
    for name, (cls, text) in commands.items():
        options = {"name": name, "description": text, "prefix_name": False}
        if fields and argv[0] == name:
            options["default"] = cls(**with_fields(cls, fields))
        kinds.append(Annotated[cls, tyro.conf.subcommand(**options)])
    return tyro.cli(
        Union[tuple(kinds)],  # noqa: UP007 - built at run time
        prog="hessian-spectrum",
        description=_DESCRIPTION,
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )


def _config_file(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            return argv[:i] + argv[i + 2 :], read_file(Path(argv[i + 1]))
        if word.startswith("--config="):
            return argv[:i] + argv[i + 1 :], read_file(Path(word.partition("=")[2]))
    return argv, {}


# -- commands that compute: on every rank of the job ---------------------------------------------


def _on_ranks(config: Any) -> int:
    from hessian_spectrum import distributed, signals

    world = distributed.World()
    try:
        world = distributed.start(config.device if hasattr(config, "device") else "cpu")
        _COMPUTING[type(config)](config, world)
        code = DONE
    except (InputError, *PATH_ERRORS) as error:
        code = USAGE
        if world.rank == 0:
            _say(error)
    except FloatingPointError as error:
        code = FAILED
        if world.rank == 0:
            _say(error)
    except signals.Interrupted as stopped:
        code = START_AGAIN
        if world.rank == 0:
            _say(
                f"stopped by {stopped}; the state is saved: the same command with --resume goes on"
            )
    except BaseException:
        import traceback

        if world.size == 1:
            raise
        print(f"rank {world.rank} of {world.size} failed:", file=sys.stderr)
        traceback.print_exc()
        distributed.leave(world, FAILED)
    distributed.finish()
    return code


def _density(config: DensityConfig, world: Any) -> None:
    from hessian_spectrum import problems, runs

    runs.density(config, runs.together(world, lambda: problems.load(config)), world)


def _train(config: TrainConfig, world: Any) -> None:
    from hessian_spectrum import training

    _alone(world, "train")
    training.train(config)


def _demo(config: DemoConfig, world: Any) -> None:
    from hessian_spectrum import demo

    _alone(world, "demo")
    demo.demo(config, world)


def _alone(world: Any, command: str) -> None:
    if world.size > 1:
        raise InputError(f"{command} runs in one process, but was started on {world.size}")


# -- commands that read: one process, without torch ------------------------------------------------


def _query(config: QueryConfig) -> None:
    from hessian_spectrum import queries, store

    with store.open(config.file) as run:
        answer = queries.ask(
            _stored(run, config.result), config.query, config.numbers, config.sigma2
        )
    print(json.dumps(answer) if config.json else queries.sentence(answer))


def _plot(config: PlotConfig) -> None:
    from hessian_spectrum import plotting, store
    from hessian_spectrum.measure import SpectralMeasure

    out = config.out or config.file.with_suffix(".png")
    store.check_output(out, overwrite=config.overwrite)
    with store.open(config.file) as run:
        result = _stored(run, config.result)
        if isinstance(result, SpectralMeasure):
            figure = plotting.density_figure(result, config.sigma2, _title(run))
        else:
            figure = plotting.eigenpairs_figure(result, _title(run))
        plotting.save_figure(figure, out)
    print(f"written to {out}")


def _info(config: InfoConfig) -> None:
    from hessian_spectrum import report, store

    with store.open(config.file) as run:
        print(json.dumps(report.contents(run), indent=2) if config.json else report.info(run))


def _stored(run: Any, key: str) -> Any:
    if key not in run:
        raise InputError(f"{run.path} holds no {key!r}; it holds {', '.join(run) or 'nothing'}")
    return run[key]


def _title(run: Any) -> str:
    config = run.config
    return " on ".join(str(config[k]) for k in ("model", "dataset") if config.get(k)) or str(
        config.get("problem") or ""
    )


def _say(error: Any) -> None:
    print(f"hessian-spectrum: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


_DESCRIPTION = (
    "Hessian eigenvalue densities of PyTorch models; one HDF5 file a run. demo, train and density "
    "also take --config FILE: the same options in a .toml or .json file, or those stored in an "
    "earlier result (.h5); options on the command line win. density runs unchanged alone, under "
    "torchrun, mpirun and srun. Exit codes: 0 done, 1 failed, 2 usage, 75 stopped by a signal "
    "with its state saved (go on with --resume)."
)

_COMMANDS = [
    ("demo", DemoConfig, "train a small network on real digits and look at its Hessian"),
    ("train", TrainConfig, "train a zoo model, writing checkpoints"),
    ("density", DensityConfig, "eigenvalue density of a Hessian"),
    ("query", QueryConfig, "ask a result file: masses, counts, quantiles, moments"),
    ("plot", PlotConfig, "draw a result"),
    ("info", InfoConfig, "what a result file holds and where it comes from"),
]

_COMPUTING: dict[type, Callable] = {
    DensityConfig: _density,
    TrainConfig: _train,
    DemoConfig: _demo,
}

_SINGLE: dict[type, Callable] = {QueryConfig: _query, PlotConfig: _plot, InfoConfig: _info}
