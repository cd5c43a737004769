"""Commands that read result files: query, plot, info, merge. One process, without torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Table, Whole
from hessian_spectrum.cli import answers, noise_queries, value_queries
from hessian_spectrum.cli.exit_status import say

if TYPE_CHECKING:
    from hessian_spectrum.storage.series import Series

    Query = str
else:
    Query = Literal[value_queries.NAMES]

View = Literal[
    "density",
    "log",
    "cumulative",
    "certified",
    "eigenvalues",
    "participation",
    "alignment",
    "noise",
    "contour",
    "heat",
    "relief",
    "ridge",
    "blocks",
    "loss",
    "critical",
    "distance",
    "heights",
    "cosine",
    "zeta",
    "table",
    "lines",
    "index",
    "spectra",
]


@dataclass(frozen=True)
class QueryConfig:
    """Ask a result file: QUERY and its numbers, such as mass 0.1 inf; with standard errors.

    Without a QUERY: print those that FILE can be asked. Of a file with several labelled results, as
    merge and track --density write it, the answer is a table: one line a label, by epoch.

        hessian-spectrum query all.h5 count 0.1 inf
    """

    file: tyro.conf.Positional[Path]
    """The result file."""
    query: Annotated[
        Query | None, tyro.conf.Positional, tyro.conf.arg(help=value_queries.described())
    ] = None
    numbers: tyro.conf.Positional[tuple[float, ...]] = ()
    """The query's arguments."""
    result: str | None = None
    """Which result in the file, such as density/epoch-0005. Default: the one of the kind that the
    query is for, or all labelled ones where none is without a label."""
    value: str | None = None
    """Which of the values of a curve, surface or trajectory: loss, accuracy, test_loss; of a map
    ratio, smallest, largest; of a track of checkpoints smallest, largest, distance_from_start; of a
    tracker's file lambda_max, lambda_2, zeta, over_threshold, ... Default: loss."""
    density: Path | None = None
    """A result file with a density of the same matrix, for log_determinant of eigenpairs.
    Default: FILE."""
    sigma2: float | None = None
    """Variance of the smoothing, for density T."""
    json: bool = False
    """Print JSON; infinities are the texts "inf" and "-inf", what cannot be known is null."""


@dataclass(frozen=True)
class PlotConfig:
    """Draw a result: density, eigenpairs, alignment, noise, surface, curve, trajectory, barriers,
    or critical points.

    Of a file with several labelled densities or eigenpairs, as merge and track --density write it:
    all of them over the epochs. Writes one picture and prints its path.

        hessian-spectrum plot density.h5 --view log --out density.pdf
    """

    file: tyro.conf.Positional[Path]
    """Result file."""
    out: Path | None = None
    """Picture to write: .png, .pdf or .svg; for a surface also .html, an interactive page, or .vts
    for ParaView. Default: FILE with the suffix .png."""
    result: str | None = None
    """Result to draw: noise, density, eigenpairs, alignment, surface, curve, trajectory, barriers,
    critical, or a labelled one, as listed by info. Default: the first of these that FILE holds. Of
    a kind whose results are all labelled: all of them."""
    view: View | None = None
    """For a density: density, smoothed; log, eigenvalues per decade of |lambda|, by sign;
    cumulative, the number of eigenvalues up to t; certified, individually resolved eigenvalues as
    bars over the density of the rest. For eigenpairs: eigenvalues with their residuals;
    participation, the share of each layer in the eigenvectors. For a surface: contour; heat, one
    cell per point; relief, in three dimensions. For several densities: heat, colours on a log
    scale; ridge, one curve above the other; blocks, a named row for each. Along a training run:
    eigenvalues; density; zeta, the largest eigenvalue over the tenth; alignment; loss; distance; of
    a tracker's file also critical.
    For barriers: loss between iterates; heights; cosine of consecutive updates. For all pairs of
    networks, as interpolate --pairs writes them: table; lines. Several curves, such as those before
    and after --match, are drawn on one axis. For critical points: index against loss; spectra, the
    eigenvalues by level of the loss. Default: the first, or heat for a
    map's ratio."""
    beside: tuple[Path, ...] = ()
    """Further result files, whose results are drawn beside that of FILE: surfaces side by side on
    one colour scale, densities and curves on one axis. Each is titled with its file's name, or
    with its path if names repeat."""
    value: str | None = None
    """Value to draw. Of a surface or curve: loss, accuracy, test_loss and so on; of a map: ratio,
    smallest, largest. Default: loss; of a map ratio; of a track loss, accuracy and eigenvalues."""
    sigma2: float | None = None
    """For the views density, certified, heat and ridge: variance of the Gaussian smoothing.
    Default: (width of the widest spectrum / 500)^2."""
    decades: float | None = None
    """For the view log: standard deviation of the smoothing in decades, 0.01 to 1. Default: 0.1."""
    floor: float | None = None
    """For the view log: eigenvalues of at most this magnitude are counted in the caption and not
    drawn. Default: the largest node whose residual does not distinguish it from 0."""
    overwrite: bool = False
    """Replace an existing picture."""


@dataclass(frozen=True)
class InfoConfig:
    """Print what a result file holds: results, configuration, plan and provenance.

    Of a run under way also which job writes it, how far it is and how much time it has left; this
    can be asked before anything is saved.

    Arrays are described by their shapes. Writes no file.

        hessian-spectrum info density.h5
    """

    file: tyro.conf.Positional[Path]
    """Result file."""
    json: bool = False
    """Print JSON. Infinities are the strings "inf" and "-inf"; unknown values are null."""


@dataclass(frozen=True)
class MergeConfig:
    """Copy the results of finished files into SUMMARY, each labelled with its file's name.

    Writes SUMMARY, an HDF5 file. Of the results that it already holds, those of the same name are
    replaced and all others are kept.

        hessian-spectrum merge summary.h5 spectra/*.h5
    """

    summary: tyro.conf.Positional[Path]
    """File to create, or to add to."""
    files: tyro.conf.Positional[tuple[Path, ...]]
    """Finished result files."""


def query(config: QueryConfig) -> None:
    from hessian_spectrum.storage import run_file

    with run_file.open(config.file) as run:
        if config.query is None:
            print(value_queries.questions(run))
            return
        kinds = {key.partition("/")[0] for key in run}
        key = config.result or value_queries.default_kind(config.query, kinds)
        several = _several(run, key)
        if several is None:
            answer = _answer(config, config.query, run, key)
            print(_json(answer) if config.json else answers.sentence(answer))
            return
        each = [_answer(config, config.query, run, key) for key in several.keys]
    listed = answers.listed(several, each)
    print(_json(listed) if config.json else answers.table(several, each))
    _say_axis(several)


def _several(run: Any, key: str) -> Series | None:
    """The labelled results that a bare kind stands for; None where it is one result."""
    from hessian_spectrum.storage import series

    found = None if key in run or "/" in key else series.of(run, key)
    return found if found else None


def _say_axis(several: Series) -> None:
    is_between = any(
        {"between", "match"} & getattr(found, "about", {}).keys()
        for found in several.results.values()
    )
    if several.axis == "index" and not is_between:
        say("the results do not say of which epochs they are: they are numbered 0, 1, ...")


def _answer(config: QueryConfig, query: str, run: Any, key: str) -> dict[str, Any]:
    from hessian_spectrum.analyses.noise_result import Noise
    from hessian_spectrum.spectral import queries
    from hessian_spectrum.spectral.eigenpairs import EigenPairs
    from hessian_spectrum.spectral.measure import SpectralMeasure

    result = _stored(run, key)
    if isinstance(result, value_queries.Asked) and config.sigma2 is None:
        return value_queries.ask(result, query, config.numbers, config.value or "loss")
    if config.value is not None:
        raise InputError(
            "--value is for a curve, a surface or a trajectory; leave it out, or name --result"
        )
    if config.density is not None and not isinstance(result, EigenPairs):
        raise InputError("--density is for eigenpairs; leave it out, or choose --result")
    if isinstance(result, SpectralMeasure):
        return queries.ask(result, query, config.numbers, config.sigma2)
    if isinstance(result, EigenPairs) and config.sigma2 is None:
        measure = _density_of(run, key, config.density)
        sizes = _sizes(run) if "sizes" in run.plan else None
        return queries.ask_pairs(result, query, config.numbers, sizes, measure)
    if isinstance(result, Noise) and config.sigma2 is None:
        return noise_queries.ask(result, query, config.numbers)
    what = "--sigma2 is for a density" if config.sigma2 else "has no queries"
    raise InputError(
        f"{key}: {what}; expected a density, eigenpairs, a noise, a curve, a surface, a trajectory"
    )


def _density_of(run: Any, key: str, file: Path | None) -> Any:
    """Of the file that is named, or of the run's own of that label; None where it has none."""
    _, slash, label = key.partition("/")
    own = f"density{slash}{label}"
    return run.get(own) if file is None else _result_of(file, "density")


def plot(config: PlotConfig) -> None:
    from hessian_spectrum.storage import run_file

    out = config.out or config.file.with_suffix(".png")
    run_file.check_output(out, overwrite=config.overwrite)
    with run_file.open(config.file) as run:
        _draw(config, run, out)
    print(f"written to {out}")


def _draw(config: PlotConfig, run: Any, out: Path) -> None:
    from hessian_spectrum.plotting import density as plotting
    from hessian_spectrum.plotting import registry

    if registry.draws_pairs(run, config.view) and config.result is None and not config.beside:
        _view_options(config, "table")
        registry.save_pairs(run, out, config.view, config.value, _title(run))
        return
    kinds = ("track", *plotting.VIEWS_OF, *registry.KINDS)
    counts = {kind: sum(key.partition("/")[0] == kind for key in run) for kind in kinds}
    held = {kind: kind not in run and count > 1 for kind, count in counts.items() if count}
    wanted = registry.kind_of_view(config.view, held)
    key = config.result or wanted or next(iter(held), kinds[0])
    several = _several(run, key)
    if several is not None and len(several) == 1:
        key, several = several.keys[0], None
    if config.beside:
        options = _view_options(config, config.view or _of_all(key))
        results = [_stored(run, key), *(_result_of(file, key) for file in config.beside)]
        named = dict(zip(_titles([config.file, *config.beside]), results))
        registry.save_beside(named, out, config.view, config.value, **options)
        return
    if several is not None:
        if config.value is not None and several.kind != "curve":
            raise InputError("--value is for one curve, surface or trajectory; leave it out")
        options = _view_options(config, config.view or _of_all(key))
        if config.value is not None:
            options["value"] = config.value
        registry.save_series(several, out, config.view, _title(run), **options)
        _say_axis(several)
        return
    result = _stored(run, key)
    if isinstance(result, registry.DRAWN):
        _view_options(config, config.view or "contour")
        path = run.get("trajectory") if key.partition("/")[0] == "surface" else None
        registry.save(result, out, config.view, config.value, _title(run), path)
        return
    plotting.save_figure(_figure(config, run, key, result), out)


def _of_all(key: str) -> str:
    """The view of several results whose options are those of a density."""
    return "density" if key.partition("/")[0] == "density" else "contour"


def _figure(config: PlotConfig, run: Any, key: str, result: Any) -> Any:
    """Of one density, eigenpairs, alignment or noise."""
    from hessian_spectrum.plotting import density as plotting
    from hessian_spectrum.storage import hdf5_schema

    views: Mapping[str, Any] = plotting.VIEWS_OF.get(hdf5_schema.split_key(key)[0], {})
    view: str = config.view or next(iter(views), "none")
    if view not in views:
        raise InputError(
            f"--view {view}: {key} has the views {', '.join(views) or '(none)'}; choose one, "
            "or another --result"
        )
    options: dict[str, Any] = _view_options(config, view)
    if view == "participation":
        options["sizes"] = _sizes(run)
    return views[view](result, title=_title(run), **options)


def _result_of(file: Path, key: str) -> Any:
    from hessian_spectrum.storage import run_file

    with run_file.open(file) as run:
        return _stored(run, key)


def _titles(files: Sequence[Path]) -> list[str]:
    """The files' names, or their paths if two have the same name."""
    if len(set(files)) < len(files):
        raise InputError("--beside: names a file twice; expected other files than FILE")
    names = [file.stem for file in files]
    return names if len(set(names)) == len(names) else [str(file) for file in files]


def _sizes(run: Any) -> dict[str, int]:
    """Number of entries that each parameter has in a vector, by name."""
    if "sizes" not in run.plan:
        raise InputError(f"{run.path} does not store the parameters' sizes, which this view needs")
    Table(Whole()).require(run.plan["sizes"], f"{run.path}: is damaged: plan.sizes")
    return run.plan["sizes"]


_VIEW_OPTIONS = {
    "sigma2": ("density", "certified", "heat", "ridge"),
    "decades": ("log",),
    "floor": ("log",),
}


def _view_options(config: PlotConfig, view: str) -> dict[str, Any]:
    """The options that were given.

    Raises:
        InputError: an option that the view would ignore.
    """
    names = [name for name in _VIEW_OPTIONS if getattr(config, name) is not None]
    for name in names:
        if view not in _VIEW_OPTIONS[name]:
            raise InputError(
                f"--{name} with --view {view}: expected --view "
                f"{' or '.join(_VIEW_OPTIONS[name])}; leave --{name} out"
            )
    return {name: getattr(config, name) for name in names}


def info(config: InfoConfig) -> None:
    from hessian_spectrum.commands import report
    from hessian_spectrum.storage import run_file
    from hessian_spectrum.storage.writer_lock import Writer

    writer = Writer.of(config.file)
    if writer is not None and not config.file.exists():  # before the first save
        found = {"running": dataclasses.asdict(writer)}
        print(_json(found, indent=2) if config.json else report.running(writer, config.file))
        return
    with run_file.open(config.file) as run:
        if config.json:
            running = {} if writer is None else {"running": dataclasses.asdict(writer)}
            print(_json({**report.contents(run), **running}, indent=2))
            return
        if writer is not None:
            print(report.running(writer, config.file))
        print(report.info(run))


def merge(config: MergeConfig) -> None:
    from hessian_spectrum.storage import merge as merging

    held = merging.merge(config.summary, config.files)
    print(f"{config.summary} holds {len(held)} results: {', '.join(held)}")


def _json(value: Any, **options: Any) -> str:
    """JSON text, with "inf", "-inf" and null for values that JSON has no numbers for."""
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
    if not run.finished:
        say(f"{run.path} is not finished: values not computed yet are missing or NaN")
    return run[key]


def _title(run: Any) -> str:
    config = run.config
    what = " on ".join(str(config[k]) for k in ("model", "dataset") if config.get(k)) or str(
        config.get("problem") or ""
    )
    operator = config.get("operator", "hessian")
    words = [what, *([] if operator == "hessian" else [operator])]
    return ", ".join([*words, *([] if run.finished else ["not finished"])])
