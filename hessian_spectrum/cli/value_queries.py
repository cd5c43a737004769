"""The table of queries on what landscape analyses store, and of all kinds.

NumPy only.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.cli import noise_queries, track_queries
from hessian_spectrum.cli.barrier_queries import OF_BARRIERS
from hessian_spectrum.cli.critical_queries import OF_CRITICAL
from hessian_spectrum.cli.value_query import ValueQuery
from hessian_spectrum.landscape.results import (
    Array,
    Barriers,
    CriticalPoints,
    Curve,
    Surface,
    Track,
    Trajectory,
)
from hessian_spectrum.spectral import functionals
from hessian_spectrum.spectral.functionals import Answer, Query
from hessian_spectrum.spectral.queries import row_of

Asked = Curve | Surface | Trajectory | Track | Barriers | CriticalPoints


def _minimum(result: Curve | Surface, name: str) -> Answer:
    found = result.minimum(name)
    return {"value": found.value, "place": list(found.place)}


def _at(result: Curve | Surface, *place: float, name: str) -> Answer:
    value = float(result.at(*place, name=name))  # type: ignore[arg-type, misc]
    if value != value:
        raise InputError(f"at {place}: beyond the points, or beside one that is not finite")
    return {"value": value}


def _barrier(curve: Curve, name: str) -> Answer:
    return {"value": curve.barrier(name), "ends": list(curve.ends)}


def _barrier_above_ends(curve: Curve, name: str) -> Answer:
    return {"value": curve.barrier(name, "max"), "ends": list(curve.ends)}


def _basin(curve: Curve, level: float, near: float | None, name: str) -> Answer:
    found = curve.basin(level, near, name)
    return {
        "value": found.width,
        **{"left": found.left, "right": found.right, "bounded": found.bounded},
    }


def _share_below(surface: Surface, level: float, name: str) -> Answer:
    return {"value": surface.share_below(level, name)}


def quantities(result: Asked) -> Mapping[str, Array]:
    """What a query can be about, by name; of a trajectory and a track, derived numbers too."""
    if isinstance(result, (Trajectory, Track)):
        return track_queries.quantities(result)
    return result.values


_MINIMUM = ValueQuery(name="minimum", about="the smallest value, and where it is", answer=_minimum)

OF_CURVE = {
    row.name: row
    for row in (
        _MINIMUM,
        ValueQuery(name="at", about="the value at T", arguments=("t",), answer=_at),
        ValueQuery(name="barrier", about="the largest rise between the networks", answer=_barrier),
        ValueQuery(
            name="barrier_above_ends",
            about="the largest rise above the higher of both networks' values",
            answer=_barrier_above_ends,
        ),
        ValueQuery(
            name="basin",
            about="width, a distance, of the part around NEAR with values of at most LEVEL",
            arguments=("level", "near"),
            defaults=(None,),
            answer=_basin,
        ),
    )
}
OF_SURFACE = {
    row.name: row
    for row in (
        _MINIMUM,
        ValueQuery(name="at", about="the value at (A, B)", arguments=("a", "b"), answer=_at),
        ValueQuery(
            name="share_below",
            about="share of the points with values of at most LEVEL",
            arguments=("level",),
            answer=_share_below,
        ),
    )
}

OF_LANDSCAPE = {
    "curve": OF_CURVE,
    "surface": OF_SURFACE,
    "trajectory": track_queries.OF_TRAJECTORY,
    "track": track_queries.OF_TRACK,
    "barriers": OF_BARRIERS,
    "critical": OF_CRITICAL,
}
CALLED = {"barriers": "barriers", "critical": "critical points"}  # others: a curve, a surface
TABLES: dict[str, Mapping[str, Query]] = {
    "density": functionals.OF_MEASURE,
    "eigenpairs": functionals.OF_PAIRS,
    "noise": noise_queries.OF_NOISE,
    **OF_LANDSCAPE,
}
NAMES = tuple(dict.fromkeys(name for table in TABLES.values() for name in table))


def kinds_of(query: str) -> list[str]:
    """The kinds of results that have a query of that name."""
    return [kind for kind, table in TABLES.items() if query in table]


def default_kind(query: str, held: Container[str]) -> str:
    """Which kind of result is asked: the first of ``held`` that has the query.

    Of a curve's query, where there is only a surface, that; it says which queries it has.
    """
    kinds = kinds_of(query)
    near = OF_LANDSCAPE if OF_LANDSCAPE.keys() & kinds else ()
    return next((kind for kind in (*kinds, *near) if kind in held), kinds[0])


def described() -> str:
    """All queries in words, kind by kind, for --help."""
    parts = []
    for kind, table in TABLES.items():
        rows = "; ".join(f"{row.usage}: {row.about}" for row in table.values())
        parts.append(f"Of {kind}: {rows}.")
    return " ".join(parts)


def questions(run: Mapping[str, Any]) -> str:
    """What the results of a file can be asked, kind by kind, one line a question."""
    lines = []
    for kind, table in TABLES.items():
        keys = [key for key in run if key.partition("/")[0] == kind]
        if not keys:
            continue
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        lines.append(f"{keys[0]}{more}:")
        rows = [(row.usage, row.about) for row in table.values()]
        width = max(len(usage) for usage, _ in rows)
        lines += [f"  {usage:<{width}}  {about}" for usage, about in rows]
        if kind in OF_LANDSCAPE:
            names = {name for key in keys for name in quantities(run[key])}
            lines.append(f"  each of --value {', '.join(sorted(names))}; default: loss")
    if not lines:
        held = ", ".join(run) or "nothing"
        return f"no questions: expected {', '.join(TABLES)}; the file holds {held}"
    return "\n".join(lines)


def ask(
    result: Asked,
    query: str,
    numbers: tuple[float, ...],
    name: str = "loss",
) -> dict[str, Any]:
    """``{"query", "arguments", "of", "value", ...}``; what more there is depends on the query.

    minimum has its "place", barrier its "ends", basin "left", "right" and "bounded". Of a
    trajectory or a track each has the "place" on its "axis", such as epoch, but mean, which has
    "records" and "deviation"; of barriers count has "segments",
    and "unknown", those with a loss that is not finite; of critical points counts have "points",
    point has "kind" and "told", a sentence, and rank_correlation "low", "high" (Fisher's interval)
    and "bootstrap".

    Args:
        query: a name in the kind's table of ``OF_LANDSCAPE``.
        name: of which values.

    Raises:
        InputError: a query that does not exist, numbers that it does not take, no such values.
    """
    kind = "critical" if isinstance(result, CriticalPoints) else type(result).__name__.lower()
    row = row_of(OF_LANDSCAPE[kind], query, CALLED.get(kind, f"a {kind}"))
    args = row.typed(numbers)
    quantities(result)[name]  # refused by name
    given = [x for x in args if x is not None]
    return {"query": query, "arguments": given, "of": name, **row.answer(result, *args, name=name)}


def sentence(answer: dict[str, Any]) -> str:
    """``barrier of the loss = 0.366, between t = 0 and 1``."""
    arguments = " ".join(f"{number:g}" for number in answer["arguments"])
    words = " ".join(filter(None, (answer["query"], arguments)))
    text = f"{words} of the {answer['of'].replace('_', ' ')} = {answer['value']:.8g}"
    if "told" in answer:
        return f"{text}. {answer['told']}"
    if "points" in answer:
        return (
            f"{answer['query'].replace('_', ' ')}: {answer['value']} of {answer['points']} points"
        )
    if "deviation" in answer:
        spread = "" if answer["deviation"] is None else f", deviation {answer['deviation']:.3g}"
        return f"{text} over {answer['records']} records{spread}"
    if "segments" in answer:
        unknown = f", {answer['unknown']} more unknown" if answer["unknown"] else ""
        return f"{text} barriers on {answer['segments']} segments{unknown}"
    if "axis" in answer:
        return f"{text} at {answer['axis']} {answer['place'][0]:g}"
    if "place" in answer:
        return f"{text} at {', '.join(f'{x:.6g}' for x in answer['place'])}"
    if "ends" in answer:
        return f"{text}, between t = {answer['ends'][0]:g} and {answer['ends'][1]:g}"
    if "left" in answer:
        beyond = "" if answer["bounded"] else "; it goes on beyond the points"
        within = f"from {answer['left']:.6g} to {answer['right']:.6g} along the path"
        return f"{text}, {within}{beyond}"
    return text
