"""One page about one run or many: assembled, and written whole."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hessian_spectrum._core.atomic import replacing
from hessian_spectrum._core.version import __version__
from hessian_spectrum.reporting import look, parts, pictures, turning
from hessian_spectrum.reporting.findings import Finding
from hessian_spectrum.reporting.html import Element, Node, Trusted, element
from hessian_spectrum.reporting.numbers import command_line
from hessian_spectrum.reporting.source import Source, files_of, names_of
from hessian_spectrum.reporting.tables import Column, Table
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.storage import run_file, series

OPEN = 3  # runs whose sections are open; of more all are folded
FULL = 8  # runs that are shown with all pictures; of more each has the first of each result
MOST_ROWS = 10_000  # of the overview


@dataclass(frozen=True)
class Row:
    """What the overview says of a run."""

    name: str
    mark: str
    subject: str
    holds: str
    parameters: float
    largest: float
    smallest: float
    trace: float
    loss: float
    state: str
    beware: int


def write(paths: Sequence[Path], out: Path) -> int:
    """Write the page of result files and folders; returns the number of runs.

    Args:
        out: the page, an HTML file; it is replaced whole.

    Raises:
        InputError: a file is damaged, foreign, or not a result file; a folder holds none.
        FileNotFoundError: there is no such file.
        OSError: the page cannot be written.

    Cost: about half a second a picture, of which a density has four; memory for the results and
    the page.
    """
    files = files_of(paths)
    text = page(files, ["hessian-spectrum", "report", *map(str, paths), "--out", str(out)])
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return len(files)


def page(files: Sequence[Path], command: Sequence[str]) -> str:
    """The page's text.

    Args:
        files: result files, as ``source.files_of`` gives them.
        command: what made this page, for its foot.
    """
    marks, many = parts.Marks(), len(files) > 1
    rows: list[Row] = []
    sections: list[Element] = []
    held: dict[str, dict[str, Any]] = {}
    said: list[Finding] = []
    for name, file in zip(names_of(files), files):
        with run_file.open(file) as run:
            source = Source(name, run)
            found, top = parts.findings_of(source), parts.foremost(source)
            rows.append(_row(source, marks.new("run"), found))
            sections.append(_run(source, marks, rows[-1].mark, top, len(files)))
            said = top
            for kind, result in run.items():
                if "/" not in kind:
                    held.setdefault(kind, {})[name] = _detached(result)
    turns = any(map(_has_turning, sections))
    title = f"Curvature report: {rows[0].name if not many else f'{len(rows)} runs'}"
    content = [
        _overview(rows, held, marks) if many else _summary(rows[0], said),
        *sections,
    ]
    return _document(title, _head(title, rows), _contents(rows), content, command, turns)


# -- what stands first ---------------------------------------------------------------------------


def _summary(row: Row, said: Sequence[Finding]) -> Element:
    beware = parts.said(said, beware=True)
    return element(
        "section",
        element("h2", "What was found", id="found"),
        parts.said(said, beware=False) or element("p", "The file holds nothing to say of."),
        None
        if beware is None
        else element("div", element("h2", "What to beware of"), beware, class_="beware"),
        aria_labelledby="found",
    )


def _overview(
    rows: Sequence[Row],
    held: Mapping[str, Mapping[str, Any]],
    marks: parts.Marks,
) -> Element:
    unfinished = [row.name for row in rows if row.state != "finished"]
    told = f"Not finished: {', '.join(unfinished)}." if unfinished else None
    columns = [
        Column("run", [element("a", row.name, href=f"#{row.mark}") for row in rows]),
        *(
            Column(words, cells, about)
            for name, words, about in _COLUMNS
            if _any_known(cells := [getattr(row, name) for row in rows])
        ),
    ]
    table = Table(f"{len(rows)} runs", tuple(columns)).html(MOST_ROWS)
    beside = [pictures.beside(results) for results in held.values() if len(results) > 1]
    return element(
        "section",
        element("h2", "All runs", id="found"),
        None if told is None else element("div", element("p", told), class_="beware"),
        table,
        [parts.figure(picture, marks) for picture in beside if picture is not None],
        aria_labelledby="found",
    )


_COLUMNS = (
    ("subject", "model and data", ""),
    ("holds", "results", ""),
    ("parameters", "parameters", "number of eigenvalues"),
    ("largest", "largest eigenvalue", "of the density or the eigenpairs"),
    ("smallest", "smallest eigenvalue", "of the density or the eigenpairs at both ends"),
    ("trace", "trace", "of the density"),
    ("loss", "loss", "at the parameters"),
    ("state", "state", ""),
    ("beware", "to beware of", "sentences in the run's section"),
)


def _any_known(cells: Sequence[Any]) -> bool:
    return any(cell not in ("", None) and cell == cell for cell in cells)


def _row(source: Source, mark: str, found: Sequence[Finding]) -> Row:
    run = source.run
    measures = [result for result in run.values() if isinstance(result, SpectralMeasure)]
    if len(measures) > 1:
        # Several, of blocks or of a training's checkpoints, have no trace in common, and blocks
        # no ends.
        alone = run.get("density")
        is_of_blocks = series.of(run, "density").axis == "block"
        measures = [alone] if alone is not None else [] if is_of_blocks else measures
    whole = measures[0] if len(measures) == 1 else None
    pairs = [result for result in run.values() if isinstance(result, EigenPairs) and len(result)]
    both = [result for result in pairs if result.num_lower]
    ends = [measure.support for measure in measures]
    highs = [high for _, high in ends] + [float(result.values[-1]) for result in pairs]
    lows = [low for low, _ in ends] + [float(result.values[0]) for result in both]
    values = run.get("values", {})
    loss = values.get("loss") if isinstance(values, Mapping) else None
    return Row(
        name=source.name,
        mark=mark,
        subject=source.subject,
        holds=_held(run),
        parameters=float(whole.n if whole else run.plan.get("parameters") or np.nan),
        largest=max(highs, default=np.nan),
        smallest=min(lows, default=np.nan),
        trace=whole.trace if whole else np.nan,
        loss=float(loss) if isinstance(loss, (int, float)) else np.nan,
        state="finished" if run.finished else "not finished",
        beware=sum(finding.beware for finding in found),
    )


def _held(run: Mapping[str, Any]) -> str:
    kinds = [key.partition("/")[0] for key in run]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return ", ".join(kind if n == 1 else f"{kind} ({n})" for kind, n in counts.items())


def _detached(result: Any) -> Any:
    """Without eigenvectors, which can be read while their file is open alone."""
    if isinstance(result, EigenPairs):
        return EigenPairs(result.values, result.residuals, result.converged, None, result.num_lower)
    return result


# -- a run ---------------------------------------------------------------------------------------


def _run(
    source: Source, marks: parts.Marks, mark: str, found: Sequence[Finding], count: int
) -> Element:
    if count == 1:
        return element(
            "section",
            element("h2", "Results", id=mark),
            parts.results(source, marks, "h3", brief=False),
            parts.origin(source, "h3"),
            aria_labelledby=mark,
        )
    beware = parts.said(found, beware=True)
    content = [
        parts.said(found, beware=False),
        None
        if beware is None
        else element("div", element("h3", "What to beware of"), beware, class_="beware"),
        parts.results(source, marks, "h3", brief=count > FULL),
        parts.origin(source, "h3"),
    ]
    told = element("summary", "Results, numbers, provenance")
    return element(
        "section",
        element("h2", source.name, id=mark),
        element("details", told, content, class_="run", open=count <= OPEN),
        aria_labelledby=mark,
    )


def _has_turning(node: Node) -> bool:
    if isinstance(node, Element):
        is_box = node.attributes.get("class") == "turn"
        return is_box or any(_has_turning(child) for child in node.children)
    if node is None or isinstance(node, (str, int, float, Trusted)):
        return False
    return any(_has_turning(child) for child in node)


# -- the document --------------------------------------------------------------------------------


def _head(title: str, rows: Sequence[Row]) -> Element:
    subjects = list(dict.fromkeys(row.subject for row in rows if row.subject))
    told = "; ".join(subjects[:3]) + ("; ..." if len(subjects) > 3 else "")
    return element(
        "header",
        element("h1", title),
        element("p", told, class_="soft") if told else None,
    )


def _contents(rows: Sequence[Row]) -> Element:
    links = [("found", "All runs" if len(rows) > 1 else "What was found")]
    if len(rows) == 1:
        links.append((rows[0].mark, "Results"))
    elif len(rows) <= FULL:
        links += [(row.mark, row.name) for row in rows]
    items = [element("li", element("a", name, href=f"#{mark}")) for mark, name in links]
    return element("nav", element("ul", items), aria_label="Contents")


def _document(
    title: str,
    header: Element,
    contents: Element,
    content: Sequence[Node],
    command: Sequence[str],
    turns: bool,
) -> str:
    scripts = [Trusted(look.SORT)]
    if turns:
        scripts += [turning.library(), Trusted(look.TURN)]
    foot = element(
        "footer",
        element("h2", "This page"),
        element("p", f"Written by hessian_spectrum {__version__} with"),
        parts.commands([command_line(command)]),
    )
    document = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            _policy(scripts),
            element("title", title),
            element("style", Trusted(look.STYLE)),
        ),
        element(
            "body",
            element("a", "Skip to the content", href="#main", class_="skip"),
            header,
            contents,
            element("main", content, id="main"),
            foot,
            [element("script", script) for script in scripts],
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{document}\n"


def _policy(scripts: Sequence[Trusted]) -> Element:
    """What a browser lets the page do: run these scripts, and fetch nothing."""
    hashes = " ".join(f"'sha256-{_digest(script.text)}'" for script in scripts)
    rules = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {hashes}"
    )
    return element("meta", **{"http_equiv": "Content-Security-Policy", "content": rules})


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
