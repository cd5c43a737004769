"""The command line: ``hessian-spectrum COMMAND ...``.

Exit codes: 0 done, 1 failed, 2 usage, 75 checkpointed and to be started again.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import tyro

from hessian_spectrum.batch import Resources, script
from hessian_spectrum.config import (
    AlignmentConfig,
    DemoConfig,
    DensityConfig,
    EigenpairsConfig,
    InterpolateConfig,
    MapConfig,
    SurfaceConfig,
    TrackConfig,
    TrainConfig,
)
from hessian_spectrum.errors import InputError, Warned, is_out_of_memory
from hessian_spectrum.parsing import parse

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

# What launchers tell a process before any collective can: its rank, and among how many. Without
# the second, a variable that happens to be called RANK would silence a command's only process.
RANK_HINTS = (
    ("RANK", "WORLD_SIZE"),  # torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),  # MPICH and its kin
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
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
    "eigenvalue",
    "smallest",
    "outlier_ratio",
    "condition_number",
    "normalized",
    "participation",
]


View = Literal[
    "density",
    "log",
    "cumulative",
    "certified",
    "eigenvalues",
    "participation",
    "alignment",
    "contour",
    "heat",
    "relief",
]


@dataclass(frozen=True)
class QueryConfig:
    """Ask a result file: QUERY and its numbers, such as mass 0.1 inf; with standard errors."""

    file: tyro.conf.Positional[Path]
    """The result file."""
    query: tyro.conf.Positional[Query]
    """mass A B, count A B, energy A B (closed intervals), quantile Q, moment P, density T,
    effective_dimension DAMPING, negative_fraction [THRESHOLD], log_determinant [DAMPING],
    trace or frobenius_norm. Of eigenpairs: eigenvalue K (the K-th largest), smallest (with its
    sign), outlier_ratio K (lambda_1 / lambda_K), condition_number DAMPING, normalized K (in units
    of lambda_K), participation (by layer), log_determinant DAMPING (with a density)."""
    numbers: tyro.conf.Positional[tuple[float, ...]] = ()
    """The query's arguments."""
    result: str | None = None
    """Which result in the file. Default: its density or, for a query of eigenpairs, those."""
    density: Path | None = None
    """A result file with a density of the same matrix, for log_determinant of eigenpairs.
    Default: FILE."""
    sigma2: float | None = None
    """Variance of the smoothing, for density T."""
    json: bool = False
    """Print JSON; infinities are the texts "inf" and "-inf", what cannot be known is null."""


@dataclass(frozen=True)
class PlotConfig:
    """Draw what a result file holds."""

    file: tyro.conf.Positional[Path]
    """The result file."""
    out: Path | None = None
    """The picture, .png, .pdf or .svg; of a surface also .html, a page to turn it by mouse, or .vts
    for ParaView. Default: a .png beside FILE."""
    result: str | None = None
    """What to draw: density, eigenpairs, alignment, surface, curve, trajectory, or a labelled one
    (see info). Default: the first of these that FILE holds."""
    view: View | None = None
    """How to draw a density: density, smoothed; log, eigenvalues per decade of |lambda|, by sign;
    cumulative, how many are at most t; certified, those known one by one as bars, and the
    density of the rest. Eigenpairs: eigenvalues with their residuals; participation, in which
    layers eigenvectors live. A surface: contour, lines of the same value; heat, a cell for each
    point; relief, in three dimensions. Default: the first, but heat of a map's ratio."""
    beside: tuple[Path, ...] = ()
    """Further result files: the surfaces of all side by side, in the same colours, each under its
    file's name."""
    value: str | None = None
    """What of a surface or curve: loss, accuracy, test_loss; of a map ratio, smallest, largest.
    Default: loss, of a map ratio."""
    sigma2: float | None = None
    """Variance of the Gaussian smoothing of the views density and certified. Default: (width of
    the spectrum / 500)^2."""
    decades: float | None = None
    """Standard deviation of the Gaussian smoothing of the view log, 0.01 to 1. Default: 0.1."""
    floor: float | None = None
    """The view log counts eigenvalues of at most this size in words. Default: the largest node
    that its residual does not tell from 0."""
    overwrite: bool = False
    """Replace an existing picture."""


@dataclass(frozen=True)
class InfoConfig:
    """What a result file holds and where it comes from."""

    file: tyro.conf.Positional[Path]
    """The result file."""
    json: bool = False
    """Print JSON; infinities are the texts "inf" and "-inf", what cannot be known is null."""


@dataclass(frozen=True)
class MergeConfig:
    """Put the results of FILES into SUMMARY, each under its file's name."""

    summary: tyro.conf.Positional[Path]
    """The file to make, or to add to."""
    files: tyro.conf.Positional[tuple[Path, ...]]
    """Finished result files."""


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(Resources):
    """Submit a computing command to SLURM: submit [OPTIONS] -- density ... --out FILE. The job
    saves before its time limit and starts again until it is done."""

    checkpoints: tuple[Path, ...] = ()
    """A job array, one task for each of these files: in the command {checkpoint} is its path and
    {name} its name, as in --checkpoint {checkpoint} --out 'spectra/{name}.h5'."""
    summary: Path | None = None
    """A file into which each task of an array puts its result."""
    dry_run: bool = False
    """Print the script, and submit nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and prints errors on one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    first, command = _first_by_environment(), []
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
        code, said = FAILED, _failure(error)
    except SystemExit as end:  # after --help, or wrong words, which were printed
        if end.code and not first:
            time.sleep(PATIENCE)
        raise
    else:
        return _on_ranks(config)
    _say_once(said, first)
    return code


def _first_by_environment() -> bool:
    """Is this the first process of its job, or the only one? Known before the ranks meet."""
    for rank, size in RANK_HINTS:
        if os.environ.get(size, "1") != "1" and rank in os.environ:
            return os.environ[rank] == "0"
    return True


# -- commands that compute: on every rank of the job ---------------------------------------------


def _on_ranks(config: Any) -> int:
    from hessian_spectrum import signals

    # Where a rank is lost, torch's own threads print their stacks beside the one line that says so.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    world, first = None, _first_by_environment()
    with signals.StopRequest().listening() as stop, _warnings_on_one_line(first):
        try:
            from hessian_spectrum import distributed

            silence = timedelta(minutes=getattr(config, "timeout_minutes", 10.0))

            def give_up(lost: Any) -> None:
                _end_job(lost, None, lost.world, hasattr(config, "resume"))

            world = distributed.start(getattr(config, "device", "cpu"), silence, give_up)
            first = world.rank == 0
            _COMPUTING[type(config)](config, world, stop)
            code, said = DONE, None
        except (InputError, *PATH_ERRORS) as error:
            code, said = USAGE, str(error)
        except FloatingPointError as error:
            code, said = FAILED, str(error)
        except signals.Interrupted as stopped:
            code, said = _stopped(stopped, config)
            if world is not None and world.size > 1 and not stopped.agreed:
                _leave_code(code)
                _say_once(said, first)
                distributed.leave(world, code)
        except BaseException as error:
            code, said = FAILED, _failure(error, config)
            world = world or getattr(error, "world", None)  # of a rank that could not join
            if world is not None and world.size > 1:
                _end_job(error, said, world, hasattr(config, "resume"))
            if said is None:
                raise
        _leave_code(code)
        if said:
            _say_once(said, first)
        if world is not None:
            distributed.finish(world)
    return code


def _leave_code(code: int) -> None:
    """For a job script, which hears of the launcher's code only: srun -K and torchrun mask ours."""
    path = os.environ.get("HESSIAN_SPECTRUM_EXIT")
    if path:
        with suppress(OSError):
            Path(path).write_text(str(code))


def _stopped(stopped: Any, config: Any) -> tuple[int, str]:
    if hasattr(config, "resume"):
        how = "what was finished is saved: the same command with --resume goes on"
        return START_AGAIN, f"stopped by {stopped}; {how}"
    return FAILED, f"stopped by {stopped}; start it again with --overwrite"


def _end_job(error: BaseException, said: str | None, world: Any, saved: bool) -> None:
    """Never returns: the other ranks may not have this error, and wait for this one."""
    import traceback

    from hessian_spectrum import distributed

    where, silent = f"rank {world.rank} of {world.size}", []
    if isinstance(error, distributed.RankLost):
        lost, silent = distributed.why_lost(world, error)
        code = START_AGAIN if saved else FAILED
        if lost:
            how = "; the same command with --resume goes on from what was saved" if saved else ""
            _say(lost + how)
            _leave_code(code)
        distributed.leave(world, code, silent)
    _leave_code(FAILED)
    if world.presence:
        world.presence.speaks_first()  # so that no other says that this one is lost
    if said:
        _say(f"{where}: {said}")
    else:
        print(f"{where} failed:", file=sys.stderr)
        traceback.print_exception(error)
    distributed.leave(world, FAILED)


def _density(config: DensityConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.runs.density import density

    density(*_loaded(config, world), world, stop)


def _eigenpairs(config: EigenpairsConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.runs.eigenpairs import eigenpairs

    eigenpairs(*_loaded(config, world), world, stop)


def _interpolate(config: InterpolateConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.runs.surfaces import interpolate

    config = _at(config, config.between[0])
    interpolate(*_loaded(config, world), world, stop)


def _surface(config: SurfaceConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.runs.surfaces import surface

    config = _at(config, *config.checkpoints[-1:])
    surface(*_loaded(config, world), world, stop)


def _map(config: MapConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.runs.maps import curvature_map

    config = _at(config, *config.checkpoints[-1:])
    curvature_map(*_loaded(config, world), world, stop)


def _track(config: TrackConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.runs.surfaces import track

    config = _at(config, config.checkpoints[-1])
    track(*_loaded(config, world), world, stop)


def _at(config: Any, checkpoint: Path | None = None) -> Any:
    """At this checkpoint, unless another one was chosen."""
    return config if config.checkpoint else dataclasses.replace(config, checkpoint=checkpoint)


def _alignment(config: AlignmentConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum.runs.alignment import align

    align(*_loaded(config, world), world, stop)


def _loaded(config: Any, world: Any) -> tuple[Any, dict[str, Any]]:
    """The problem as Evaluator's arguments, and the configuration with what it left open."""
    from hessian_spectrum import problems
    from hessian_spectrum.runs import record

    if config.download:  # once, before the others look
        record.on_first_rank(world, lambda: problems.load(config))
    arguments = record.together(world, lambda: problems.load(config))
    return problems.settled(config, arguments), arguments


def _train(config: TrainConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum import training

    _alone(world, "train")
    training.train(config)


def _demo(config: DemoConfig, world: Any, stop: Any) -> None:
    from hessian_spectrum import demo

    _alone(world, "demo")
    demo.demo(config, world)


def _alone(world: Any, command: str) -> None:
    if world.size > 1:
        raise InputError(f"{command} runs in one process, but was started on {world.size}")


# -- commands that read: one process, without torch ------------------------------------------------


def _query(config: QueryConfig) -> None:
    from hessian_spectrum import queries, store
    from hessian_spectrum.measure import EigenPairs, SpectralMeasure

    with store.open(config.file) as run:
        default = "density" if config.query in queries.ARGUMENTS else "eigenpairs"
        key = config.result or default
        result = _stored(run, key)
        if config.density is not None and not isinstance(result, EigenPairs):
            raise InputError("--density is for eigenpairs; leave it out, or choose --result")
        if isinstance(result, SpectralMeasure):
            answer = queries.ask(result, config.query, config.numbers, config.sigma2)
        elif isinstance(result, EigenPairs) and config.sigma2 is None:
            measure = _density_of(run, config.density)
            sizes = run.plan.get("sizes")
            answer = queries.ask_pairs(result, config.query, config.numbers, sizes, measure)
        else:
            what = "--sigma2 is for a density" if config.sigma2 else "has no queries"
            raise InputError(f"{key}: {what}; expected --result density or eigenpairs")
    print(_json(answer) if config.json else queries.sentence(answer))


def _density_of(run: Any, file: Path | None) -> Any:
    """Of the file that is named, or of the run's own; None where it has none."""
    from hessian_spectrum import store

    if file is None:
        return run.get("density")
    with store.open(file) as other:
        return _stored(other, "density")


def _plot(config: PlotConfig) -> None:
    from hessian_spectrum import pictures, plotting, store

    out = config.out or config.file.with_suffix(".png")
    store.check_output(out, overwrite=config.overwrite)
    with store.open(config.file) as run:
        kinds = (*plotting.VIEWS_OF, *pictures.KINDS)
        key = config.result or next((kind for kind in kinds if kind in run), kinds[0])
        result = _stored(run, key)
        if config.beside:
            _view_options(config, config.view or "contour")
            surfaces = {config.file.stem: result, **_surfaces(config.beside, key)}
            pictures.save_beside(surfaces, out, config.view, config.value)
            print(f"written to {out}")
            return
        if isinstance(result, tuple(pictures.KINDS.values())):
            _view_options(config, config.view or "contour")
            path = run.get("trajectory") if key.partition("/")[0] == "surface" else None
            pictures.save(result, out, config.view, config.value, _title(run), path)
            print(f"written to {out}")
            return
        views = plotting.VIEWS_OF.get(store.schema.split_key(key)[0], {})
        view = config.view or next(iter(views), None)
        if view not in views:
            raise InputError(
                f"--view {view}: {key} has the views {', '.join(views) or '(none)'}; choose one, "
                "or another --result"
            )
        options: dict[str, Any] = _view_options(config, view)
        if view == "participation":
            options["sizes"] = _sizes(run)
        figure = views[view](result, title=_title(run), **options)
        plotting.save_figure(figure, out)
    print(f"written to {out}")


def _surfaces(files: Sequence[Path], key: str) -> dict[str, Any]:
    """The results of other files, by the files' names."""
    from hessian_spectrum import store

    found = {}
    for file in files:
        with store.open(file) as run:
            found[file.stem] = _stored(run, key)
    return found


def _sizes(run: Any) -> dict[str, int]:
    """Of the parameters, by name: what eigenvectors are made of."""
    if "sizes" not in run.plan:
        raise InputError(f"{run.path} does not say which entries of a vector are which parameter's")
    return run.plan["sizes"]


_VIEW_OPTIONS = {"sigma2": ("density", "certified"), "decades": ("log",), "floor": ("log",)}


def _view_options(config: PlotConfig, view: str) -> dict[str, Any]:
    """Those that were given; one that the view would ignore is refused."""
    names = [name for name in _VIEW_OPTIONS if getattr(config, name) is not None]
    for name in names:
        if view not in _VIEW_OPTIONS[name]:
            raise InputError(
                f"--{name} with --view {view}: expected --view "
                f"{' or '.join(_VIEW_OPTIONS[name])}; leave --{name} out"
            )
    return {name: getattr(config, name) for name in names}


def _info(config: InfoConfig) -> None:
    from hessian_spectrum import report, store

    with store.open(config.file) as run:
        print(_json(report.contents(run), indent=2) if config.json else report.info(run))


def _merge(config: MergeConfig) -> None:
    from hessian_spectrum import merging

    held = merging.merge(config.summary, config.files)
    print(f"{config.summary} holds {len(held)} results: {', '.join(held)}")


def _submit(config: SubmitConfig, command: list[str]) -> None:
    from hessian_spectrum import submission

    if not command:
        raise InputError(
            "no command to submit: expected one behind --, as in hessian-spectrum submit "
            "--minutes 60 -- density --problem my.py:make --out run.h5"
        )
    submitted = parse(command, _COMMANDS, _DESCRIPTION)
    if type(submitted) not in _COMPUTING or not hasattr(submitted, "resume"):
        raise InputError(f"{command[0]} does not compute for hours; submit density or its like")
    submitted.check()
    if not config.setup:  # a login shell would find another Python
        here = shlex.quote(str(Path(sys.executable).parent))
        config = dataclasses.replace(config, setup=(f"export PATH={here}:$PATH",))
    paths = [str(path) for path in config.checkpoints]
    text = script(config, command, paths, config.summary and str(config.summary))
    if config.dry_run:
        print(text, end="")
    else:
        print(submission.submit(text, config))


def _json(value: Any, **options: Any) -> str:
    """JSON text: "inf", "-inf" and null for what JSON has no numbers for."""
    return json.dumps(_plain(value), allow_nan=False, **options)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return str(value) if isinstance(value, complex) else value


def _stored(run: Any, key: str) -> Any:
    if key not in run:
        raise InputError(f"{run.path} holds no {key!r}; it holds {', '.join(run) or 'nothing'}")
    return run[key]


def _title(run: Any) -> str:
    config = run.config
    what = " on ".join(str(config[k]) for k in ("model", "dataset") if config.get(k)) or str(
        config.get("problem") or ""
    )
    operator = config.get("operator", "hessian")
    return what if operator == "hessian" else f"{what}, {operator}"


@contextmanager
def _warnings_on_one_line(first: bool) -> Iterator[None]:
    """Our own warnings, without the line of code that gave them; of the first rank only."""
    before = warnings.showwarning

    def show(message: Any, category: type, *where: Any) -> None:
        if category is not Warned:
            before(message, category, *where)
        elif first:
            _say(str(message))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _say_once(text: str, first: bool) -> None:
    """The first rank says it. The others wait: launchers end a job with its first failed rank."""
    if first:
        _say(text)
    else:
        time.sleep(PATIENCE)


def _say(text: str) -> None:
    print(f"hessian-spectrum: {' '.join(text.split())}", file=sys.stderr, flush=True)


def _failure(error: BaseException, config: Any = None) -> str | None:
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


_DESCRIPTION = (
    "Hessian eigenvalues and loss surfaces of PyTorch models; one HDF5 file a run. Commands that "
    "compute also take --config FILE: the same options in a .toml or .json file, or those stored "
    "in an earlier result (.h5); options on the command line win. But for demo and train they run "
    "unchanged alone, under torchrun, mpirun and srun. Exit codes: 0 done, 1 failed, 2 usage, 75 "
    "stopped by a signal with its state saved (go on with --resume)."
)

_COMMANDS = [
    ("demo", DemoConfig, "train a small network on real digits and look at its Hessian"),
    ("train", TrainConfig, "train a zoo model, writing checkpoints"),
    ("density", DensityConfig, "eigenvalue density of a Hessian"),
    ("eigenpairs", EigenpairsConfig, "extreme eigenvalues and eigenvectors of a Hessian"),
    ("alignment", AlignmentConfig, "curvature along the gradients of minibatches"),
    ("interpolate", InterpolateConfig, "loss between checkpoints: a line, a triangle, a rectangle"),
    ("surface", SurfaceConfig, "loss on a line or a plane around the parameters"),
    ("map", MapConfig, "smallest and largest eigenvalue at each point of a plane"),
    ("track", TrackConfig, "the way of a training run through its checkpoints"),
    ("query", QueryConfig, "ask a result file: masses, counts, quantiles, outlier ratios"),
    ("plot", PlotConfig, "draw a result"),
    ("info", InfoConfig, "what a result file holds and where it comes from"),
    ("merge", MergeConfig, "put the results of many files into one"),
    ("submit", SubmitConfig, "submit a command to SLURM as a job that goes on by itself"),
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
    QueryConfig: _query,
    PlotConfig: _plot,
    InfoConfig: _info,
    MergeConfig: _merge,
}
