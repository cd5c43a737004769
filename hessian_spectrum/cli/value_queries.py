"""The table of queries on stored curves, surfaces and trajectories, and those of all kinds.

NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.cli import noise_queries
from hessian_spectrum.landscape.results import Array, Curve, Surface, Trajectory
from hessian_spectrum.landscape.results.values import Values
from hessian_spectrum.spectral import functionals
from hessian_spectrum.spectral.functionals import Answer, Query
from hessian_spectrum.spectral.queries import row_of


@dataclass(frozen=True, kw_only=True)
class ValueQuery(Query):
    """A query on a curve, a surface or a trajectory: what answers, and what is told of that."""

    answer: Callable[..., Answer]  # of the result, the numbers, and name=, which of its values


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


def _basin(curve: Curve, level: float, near: float | None, name: str) -> Answer:
    found = curve.basin(level, near, name)
    return {
        "value": found.width,
        **{"left": found.left, "right": found.right, "bounded": found.bounded},
    }


def _share_below(surface: Surface, level: float, name: str) -> Answer:
    return {"value": surface.share_below(level, name)}


GEOMETRY = ("distance_from_start", "distance_to_end", "step_length", "alpha", "beta")


def quantities(result: Curve | Surface | Trajectory) -> Mapping[str, Array]:
    """What a query can be about, by name; of a trajectory, distances and projections too."""
    if not isinstance(result, Trajectory):
        return result.values
    return Values({**result.values, **{name: getattr(result, name) for name in GEOMETRY}})


def _at_step(track: Trajectory, index: int, name: str) -> Answer:
    axis = track.about.get("axis", "step")
    value, place = quantities(track)[name][index], track.steps[index]
    return {"value": float(value), "place": [float(place)], "axis": axis}


def _least(track: Trajectory, name: str) -> Answer:
    return _at_step(track, _best(quantities(track)[name], name), name)


def _greatest(track: Trajectory, name: str) -> Answer:
    return _at_step(track, _best(-quantities(track)[name], name), name)


def _best(values: Array, name: str) -> int:
    """The index of the smallest value that is a number."""
    if np.isnan(values).all():
        raise InputError(f"{name}: no value is a number")
    return int(np.nanargmin(values))


def _of_step(track: Trajectory, step: float, name: str) -> Answer:
    found = np.flatnonzero(track.steps == step)
    if not len(found):
        near = track.steps[np.argsort(np.abs(track.steps - step))[:2]]
        between = " and ".join(f"{x:g}" for x in sorted(near))
        axis = track.about.get("axis", "step")
        raise InputError(f"at {step:g}: no checkpoint has that {axis}; the nearest are {between}")
    return _at_step(track, int(found[0]), name)


def _first_below(track: Trajectory, level: float, name: str) -> Answer:
    below = np.flatnonzero(quantities(track)[name] <= level)
    if not len(below):
        raise InputError(f"first_below {level:g}: the {name} is above that at all checkpoints")
    return _at_step(track, int(below[0]), name)


_MINIMUM = ValueQuery(name="minimum", about="the smallest value, and where it is", answer=_minimum)

OF_CURVE = {
    row.name: row
    for row in (
        _MINIMUM,
        ValueQuery(name="at", about="the value at T", arguments=("t",), answer=_at),
        ValueQuery(name="barrier", about="the largest rise between the networks", answer=_barrier),
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

OF_TRAJECTORY = {
    row.name: row
    for row in (
        ValueQuery(name="minimum", about="the smallest value, and its epoch", answer=_least),
        ValueQuery(name="maximum", about="the largest value, and its epoch", answer=_greatest),
        ValueQuery(name="at", about="the value at EPOCH", arguments=("epoch",), answer=_of_step),
        ValueQuery(
            name="first_below",
            about="the first value of at most LEVEL, and its epoch",
            arguments=("level",),
            answer=_first_below,
        ),
    )
}

OF_LANDSCAPE = {"curve": OF_CURVE, "surface": OF_SURFACE, "trajectory": OF_TRAJECTORY}
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
    result: Curve | Surface | Trajectory,
    query: str,
    numbers: tuple[float, ...],
    name: str = "loss",
) -> dict[str, Any]:
    """``{"query", "arguments", "of", "value", ...}``; what more there is depends on the query.

    minimum has its "place", barrier its "ends", basin "left", "right" and "bounded". Of a
    trajectory each has the "place" on its "axis", such as epoch.

    Args:
        query: a name in ``OF_CURVE``, ``OF_SURFACE`` or ``OF_TRAJECTORY``.
        name: of which values.

    Raises:
        InputError: a query that does not exist, numbers that it does not take, no such values.
    """
    kind = type(result).__name__.lower()
    row = row_of(OF_LANDSCAPE[kind], query, f"a {kind}")
    args = row.typed(numbers)
    quantities(result)[name]  # refused by name
    given = [x for x in args if x is not None]
    return {"query": query, "arguments": given, "of": name, **row.answer(result, *args, name=name)}


def sentence(answer: dict[str, Any]) -> str:
    """``barrier of the loss = 0.366, between t = 0 and 1``."""
    arguments = " ".join(f"{number:g}" for number in answer["arguments"])
    words = " ".join(filter(None, (answer["query"], arguments)))
    text = f"{words} of the {answer['of'].replace('_', ' ')} = {answer['value']:.8g}"
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
