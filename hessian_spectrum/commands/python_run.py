"""``hs.run``: a command's computation from Python, saved and resumed as on the command line."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from torch import nn

from hessian_spectrum import zoo
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.commands import registry, runner
from hessian_spectrum.commands.computation import Computation
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.config import ComputingConfig, ProblemConfig
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.distributed.world import World, resolve_device
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.zoo import problem_loader

ConfigT = TypeVar("ConfigT", bound=ComputingConfig)

# Options that make a problem by name, of which Python has its own.
NAMING = (
    *("model", "activation", "shortcut", "batchnorm", "width", "dropout_rate", "loss", "init_seed"),
    *("dataset", "data_root", "image_size", "download", "split", "problem", "problem_arg"),
    *("text", "max_length"),
)
# Options that are also arguments of a Problem: they are set in one of both places.
SHARED = (
    *("weight_decay", "parameters", "batch_size", "batch_norm"),
    *("dropout", "dropout_seed", "dtype", "device"),
)


def run(
    config: ComputingConfig,
    *,
    model: nn.Module,
    loss_fn: Callable[..., Any],
    data: Any,
    verbose: bool = False,
    **options: Any,
) -> Any:
    """Carry out a command on a problem given in Python, with checkpoints, resume and signals.

    The result file is the command's, with the same header and provenance. The command line and
    Python resume each other's runs, provided that the problem is the same: parameters, data, loss.

    Under torchrun, mpirun or srun call ``hs.distributed.start()`` first, and this on every rank.

    Args:
        config: what is computed and where it is written: DensityConfig, EigenpairsConfig,
            AlignmentConfig, NoiseConfig, InterpolateConfig, BarriersConfig, CriticalConfig,
            SurfaceConfig, MapConfig or TrackConfig. Options that make a problem by name (model,
            dataset, problem, ...) stay at their defaults; with ``checkpoint``, parameters are read
            from that file for the duration of the run. Paths may be strings.
        model, loss_fn, data: as for ``hs.Evaluator``. The model is left as it was.
        verbose: print the plan and the report, and show progress, as the command does.
        **options: the other arguments of ``hs.Evaluator``, except for ``world``.

    Returns:
        What the command computes, on every rank: a SpectralMeasure (density), EigenPairs
        (eigenpairs), an Alignment (alignment), a Noise (noise), a Curve or a Surface (interpolate;
        Pairs with ``pairs``, MatchedLines with ``match``), Barriers (barriers), CriticalPoints
        (critical), a Surface (surface, map), a Trajectory (track). None with ``dry_run=True``,
        which prints the plan.

    Raises:
        InputError: an option that cannot be used, is given twice or differs between ranks, an
            output that exists, an earlier run that is another one.
        FloatingPointError: a loss or product is not finite; what was finished is saved.
        Interrupted: SIGTERM, SIGUSR1 or Ctrl-C came; the state is saved, and the same call with
            ``resume=True`` continues from it. Not an Exception: let it pass, or exit with code 75,
            by which job scripts know that a run is to be started again. Signals are listened to
            in the main thread only.

    Example:
        >>> import tempfile, torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> model, loss_fn = torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss()
        >>> data = torch.randn(20, 3), torch.arange(20) % 2
        >>> out = f"{tempfile.mkdtemp()}/run.h5"
        >>> config = hs.DensityConfig(num_probes=2, num_steps=3, out=out, device="cpu")
        >>> measure = hs.run(config, model=model, loss_fn=loss_fn, data=data)
        >>> measure.n
        8
    """
    row = registry.command_of(config)
    if row.runs != "on ranks":
        raise InputError(f"hs.run computes with a model of yours; {row.name} has its own")
    command: type[Computation[Any, Any]] = row.implementation().chosen(config)
    config = _with_paths(config)
    _require_given_once(config, options)
    _check(config)
    problem = _problem(model, loss_fn, data, options)
    config = command.located(config)
    world = World.current()
    runner.require_same_options(command, config, world)
    if config.device is not None:
        device = resolve_device(config.device, world.local_rank, world.local_size)
        world = dataclasses.replace(world, device=device)
    with _at_checkpoint(problem.model, config.checkpoint, world):
        problem = together(world, lambda: problem_loader.with_options(config, problem))
        config = problem_loader.settled(config, problem)
        result = runner.run(command, config, problem, world, _stop(), quiet=not verbose)
    if command.is_whole_on_first_rank and not getattr(config, "dry_run", False):
        result = world.from_first(result)
    return result


def _with_paths(config: ConfigT) -> ConfigT:
    """``config`` with texts where it has paths as paths."""
    hints = get_type_hints(type(config))
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "Path" not in str(hints[field.name]):
            continue
        if isinstance(value, str):
            found[field.name] = Path(value)
        elif isinstance(value, tuple | list):
            found[field.name] = tuple(map(Path, value))
    return dataclasses.replace(config, **found)


def _require_given_once(config: ComputingConfig, options: dict[str, Any]) -> None:
    for field in dataclasses.fields(ProblemConfig):
        name, value = field.name, getattr(config, field.name)
        if value == field.default:
            continue
        if name in NAMING:
            raise InputError(
                f"{name}={value!r} makes a problem by name, but model, loss_fn and data are given "
                "in Python; leave it out of the configuration"
            )
        if name in SHARED and name in options:
            raise InputError(
                f"{name} is given twice, in the configuration ({value!r}) and as an argument "
                f"({options[name]!r}); leave one of them out"
            )
    if getattr(config, "test", False):
        raise InputError("test=True evaluates a zoo data set; leave it out for data of your own")


def _check(config: ComputingConfig) -> None:
    """``config.check()``, which wants the name of a problem too."""
    dataclasses.replace(config, problem="(given in Python)").check()


def _problem(model: nn.Module, loss_fn: Any, data: Any, options: dict[str, Any]) -> Problem:
    known = [name for name in problem_loader.ARGUMENTS if name not in problem_loader.REQUIRED]
    for name in options:
        if name not in known:
            raise InputError(f"unknown argument {name}; expected among {', '.join(known)}")
    return Problem(model=model, loss_fn=loss_fn, data=data, **options)


@contextmanager
def _at_checkpoint(model: nn.Module, checkpoint: Path | None, world: World) -> Iterator[None]:
    """Inside, the model has the parameters of that file; without one, its own."""
    if checkpoint is None:
        yield
        return
    before = {name: t.clone() for name, t in model.state_dict().items()}
    try:
        together(world, lambda: zoo.load_checkpoint(model, checkpoint))
        yield
    finally:
        model.load_state_dict(before)


def _stop() -> StopRequest | None:
    """None: the runner listens to signals itself, which Python allows in the main thread only."""
    is_main = threading.current_thread() is threading.main_thread()
    return None if is_main else StopRequest()
