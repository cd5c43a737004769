"""The parts of a page: sentences, figures, tables and commands of one result, and of one run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Surface, Trajectory
from hessian_spectrum.landscape.results.pairs import Pairs, holds_pairs
from hessian_spectrum.plotting import pair_views
from hessian_spectrum.reporting import findings, pictures, result_tables, turning
from hessian_spectrum.reporting.figures import inline_svg
from hessian_spectrum.reporting.findings import Finding
from hessian_spectrum.reporting.html import Element, Node, element
from hessian_spectrum.reporting.numbers import counted, duration
from hessian_spectrum.reporting.pictures import Picture
from hessian_spectrum.reporting.source import Source
from hessian_spectrum.storage import series

FOLDED = 3  # results of one kind; further ones are folded
NAMES = {
    "density": "Density of eigenvalues",
    "eigenpairs": "Eigenpairs",
    "alignment": "Curvature along gradients",
    "noise": "Gradients and their covariance",
    "values": "Values at the parameters",
    "curve": "Curve",
    "surface": "Surface",
    "directions": "Directions",
    "trajectory": "Trajectory",
    "track": "Track",
    "functional": "Networks as functions",
    "asymmetry": "Asymmetry",
    "averaging": "Averaging",
    "barriers": "Between iterates",
    "critical": "Critical points",
}


@dataclass
class Marks:
    """Names of a page's elements: numbers alone, so that no file has a word in them."""

    count: Iterator[int] = field(default_factory=itertools.count)

    def new(self, kind: str) -> str:
        return f"{kind}-{next(self.count)}"


def said(found: Iterable[Finding], beware: bool) -> Element | None:
    """The findings of one sort as a list."""
    items = [element("li", finding.text) for finding in found if finding.beware == beware]
    return element("ul", items, class_="said") if items else None


def figure(picture: Picture, marks: Marks, command: str | None = None) -> Element:
    """A picture with its sentence; where it cannot be drawn, why."""
    try:
        drawn: Node = element(
            "div",
            inline_svg(picture.draw(), marks.new("figure"), picture.title, picture.sentence),
            class_="paper",
            tabindex="0",
            role="group",
            aria_label=f"Figure: {picture.title}",
        )
    except (InputError, ValueError) as error:  # nothing to draw, or names that are no labels
        drawn = element("p", f"This figure cannot be drawn: {error}", class_="soft")
    return element(
        "figure",
        drawn,
        element("figcaption", element("strong", picture.title), ". ", picture.sentence),
        None if command is None else commands([command]),
    )


def commands(lines: Iterable[str]) -> Element:
    return element("pre", element("code", "\n".join(lines)))


def numbers(result: Any, file: str = "FILE", key: str = "") -> list[Node]:
    """The tables of a result: the first in sight, the others folded."""
    found = result_tables.tables(result, file, key)
    shown: list[Node] = [table.html() for table in found[:1]]
    for table in found[1:]:
        shown.append(element("details", element("summary", table.caption), table.html()))
    return shown


# -- one result ----------------------------------------------------------------------------------


def result(source: Source, key: str, marks: Marks, heading: str, brief: bool) -> Element:
    """All that a page says of one result.

    Args:
        heading: the tag of its heading.
        brief: the first figure alone, and no surface to turn: one of many runs.
    """
    found = source.run[key]
    kind, _, label = key.partition("/")
    name = f"{NAMES.get(kind, kind)}: {label}" if label else NAMES.get(kind, kind)
    mark = marks.new("result")
    told = [] if _is_foremost(source, key) else _told(source, key)
    path = _path(source, key)
    drawn = pictures.of_result(found, _sizes(source), path)
    small = "h4" if heading == "h3" else "h5"
    return element(
        "section",
        element(heading, name, id=mark),
        said(told, beware=False),
        _beware(told, None),
        [] if brief else _turning(found, marks, path),
        [
            figure(picture, marks, source.plot_command(key, picture.view))
            for picture in (drawn[:1] if brief else drawn)
        ],
        _numbers(found, source, key, small),
    )


def _numbers(found: Any, source: Source, key: str, heading: str) -> list[Node]:
    shown = numbers(found, str(source.run.path), key)
    return [element(heading, "Numbers"), *shown] if shown else []


def _turning(found: Any, marks: Marks, path: Trajectory | None) -> list[Node]:
    if not isinstance(found, Surface) or min(found.shape) < 2:
        return []
    return turning.box(found, marks.new("turn"), path)


def _path(source: Source, key: str) -> Trajectory | None:
    if not key.startswith("surface"):
        return None
    found = source.run.get("trajectory")
    return found if isinstance(found, Trajectory) else None


def _sizes(source: Source) -> Mapping[str, int] | None:
    sizes = source.run.plan.get("sizes")
    whole = isinstance(sizes, Mapping) and all(type(size) is int for size in sizes.values())
    return sizes if whole and sizes else None


def _beware(told: Iterable[Finding], heading: Element | None) -> Element | None:
    listed = said(told, beware=True)
    return None if listed is None else element("div", heading, listed, class_="beware")


# -- one run -------------------------------------------------------------------------------------


def findings_of(source: Source) -> list[Finding]:
    """Of the file and of all its results."""
    return [*findings.of_run(source), *itertools.chain(*map(partial(_told, source), source.run))]


def foremost(source: Source) -> list[Finding]:
    """What stands first: of the file, and of its results but labelled ones, which are many.

    Sentences of labelled results stand in their sections.
    """
    keys = [key for key in source.run if _is_foremost(source, key)]
    found = [*findings.of_run(source), *itertools.chain(*map(partial(_told, source), keys))]
    return list(dict.fromkeys(found))


def _is_foremost(source: Source, key: str) -> bool:
    return "/" not in key or len(source.run) == 1


def _told(source: Source, key: str) -> list[Finding]:
    operator = str(source.config_of(key).get("operator", "hessian"))
    return findings.of_result(source.run[key], operator)


def results(source: Source, marks: Marks, heading: str, brief: bool) -> list[Node]:
    """The results of a run, kind by kind; of many of one kind first all together."""
    shown: list[Node] = []
    if holds_pairs(source.run):
        shown.append(_pairs(source, marks))
    kinds: dict[str, list[str]] = {}
    for key in source.run:
        kinds.setdefault(key.partition("/")[0], []).append(key)
    for kind, keys in kinds.items():
        together = _together(source, kind, keys)
        if together is not None:
            shown.append(figure(together, marks, source.plot_command(kind, together.view)))
        parts = [result(source, key, marks, heading, brief) for key in keys[:FOLDED]]
        shown += parts
        if len(keys) > FOLDED:
            rest = [result(source, key, marks, heading, True) for key in keys[FOLDED:]]
            many = counted(len(rest), "further result")
            shown.append(
                element("details", element("summary", f"{many}: {NAMES.get(kind, kind)}"), rest)
            )
    return shown


def _together(source: Source, kind: str, keys: list[str]) -> Picture | None:
    if len(keys) < 2:
        return None
    found = series.of(source.run, kind)
    return pictures.over_epochs(kind, found) or pictures.beside(found.results)


def _pairs(source: Source, marks: Marks) -> Element:
    view, draw = next(iter(pair_views.VIEWS.items()))
    found = Pairs.of(source.run)
    picture = Picture(
        "All pairs of networks",
        f"Lines, triangles and distances of all pairs of {counted(len(found.names), 'network')}.",
        lambda: draw(found, "loss", None),
        view,
    )
    return figure(picture, marks, source.plot_command("functional", view))


def origin(source: Source, heading: str) -> list[Node]:
    """How to compute it again, and where it comes from."""
    run = source.run
    lines = {key: source.command_of(key) for key in run} or {"": source.command_of()}
    told = list(dict.fromkeys(line for line in lines.values() if line))
    launched = _launched(source)
    return [
        element(heading, "How to compute it again"),
        commands(told) if told else element("p", "The file does not say by which command."),
        None if launched is None else element("p", launched),
        element(heading, "Provenance"),
        element(
            "dl",
            [
                (element("dt", name), element("dd", value))
                for name, value in _provenance(source).items()
            ],
        ),
        element(
            "details",
            element("summary", "Configuration and plan, in full"),
            [
                _record(name, record)
                for name, record in (("config", run.config), ("plan", run.plan))
            ],
        ),
    ]


def _launched(source: Source) -> str | None:
    told = source.provenance_of(next(iter(source.run), ""))
    size = told.get("world_size")
    if not isinstance(size, int) or size < 2:
        return None
    return f"It ran on {size} ranks, started by {told.get('launcher', 'a launcher')}."


def _provenance(source: Source) -> dict[str, str]:
    run = source.run
    told = source.provenance_of(next(iter(run), ""))
    found: dict[str, Any] = {
        "file": str(run.path),
        "written": f"{run.created:%Y-%m-%d %H:%M} UTC",
        "state": "finished" if run.finished else "not finished",
        "holds": ", ".join(run) or "nothing",
    }
    for name in ("hessian_spectrum", "package_commit", "working_directory_commit", "python"):
        found[name] = told.get(name)
    for name in ("host", "platform", "device", "world_size", "job", "started"):
        found[name] = told.get(name)
    seconds = told.get("seconds")
    found["time"] = duration(seconds) if isinstance(seconds, (int, float)) else None
    for name in ("products", "passes"):
        found[name] = told.get(name)
    for group in ("libraries", "digests"):
        if isinstance(told.get(group), Mapping):
            found[group] = ", ".join(f"{name} {value}" for name, value in told[group].items())
    return {
        name.replace("_", " "): str(value) for name, value in found.items() if value is not None
    }


def _record(name: str, record: Mapping[str, Any]) -> Element:
    rows = [
        element("tr", element("th", path, scope="row"), element("td", str(value)))
        for path, value in _flat(record)
    ]
    head = element("tr", element("th", "option", scope="col"), element("th", "value", scope="col"))
    table = element(
        "table", element("caption", name), element("thead", head), element("tbody", rows)
    )
    return element(
        "div", table, class_="scroll", tabindex="0", role="group", aria_label=f"{name}, in full"
    )


def _flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        elif value not in (None, [], "", {}):
            yield f"{before}{name}", value
