"""The queries on stored critical points. NumPy only."""

from __future__ import annotations

from functools import partial

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.cli.value_query import ValueQuery, best
from hessian_spectrum.landscape.results import CriticalPoints
from hessian_spectrum.spectral.functionals import Answer


def _count(result: CriticalPoints, kind: str, name: str) -> Answer:
    _only_loss(name)
    return {"value": result.count(kind), "points": len(result)}


def _point(result: CriticalPoints, i: float, name: str) -> Answer:
    if not 0 <= i < len(result) or i != int(i):
        raise InputError(f"point {i:g}: expected a number from 0 to {len(result) - 1}")
    point = result[int(i)]
    return {"value": float(result.values[name][int(i)]), "kind": point.kind, "told": str(point)}


def _least(result: CriticalPoints, name: str) -> Answer:
    values = np.where(np.isfinite(result.values[name]), result.values[name], np.nan)
    i = best(values, name)
    return {"value": float(values[i]), "place": [float(i)], "axis": "point"}


def _rank_correlation(result: CriticalPoints, name: str) -> Answer:
    _only_loss(name)
    found = result.rank_correlation()
    return {
        "value": found.value,
        "low": found.fisher[0],
        "high": found.fisher[1],
        "bootstrap": list(found.bootstrap),
        "level": found.level,
        "points": found.count,
        "told": f"Of index and loss, Spearman's: {found}.",
    }


def _only_loss(name: str) -> None:
    if name != "loss":
        raise InputError(f"--value {name}: points are counted; leave it out, or ask point")


def _counting(name: str, kind: str) -> ValueQuery:
    about = f"how many points are {kind}"
    return ValueQuery(name=name, about=about, answer=partial(_count, kind=kind))


OF_CRITICAL = {
    row.name: row
    for row in (
        ValueQuery(name="point", about="what point I is, from 0", arguments=("i",), answer=_point),
        _counting("minima", "minimum"),
        _counting("maxima", "maximum"),
        _counting("saddles", "saddle"),
        _counting("undecided", "undecided"),
        _counting("not_critical", "not critical"),
        ValueQuery(
            name="rank_correlation",
            about="Spearman's correlation of index and loss, critical points; 95 % interval",
            answer=_rank_correlation,
        ),
        ValueQuery(
            name="minimum", about="the smallest value, and the point that has it", answer=_least
        ),
    )
}
