"""The queries on what is known along a training run: of checkpoints, or as a tracker recorded it.

NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.cli.value_query import ValueQuery, best
from hessian_spectrum.landscape.results import Array, Track, Trajectory
from hessian_spectrum.landscape.results.values import Values
from hessian_spectrum.spectral import outliers
from hessian_spectrum.spectral.functionals import Answer

GEOMETRY = ("distance_from_start", "distance_to_end", "step_length", "alpha", "beta")


def quantities(found: Trajectory | Track) -> Mapping[str, Array]:
    """What a query can be about: evaluated values, and what follows from the others.

    Of a trajectory distances and projections; of a track each eigenvalue as lambda_1, lambda_2,
    ..., zeta = lambda_1 / lambda_10 where ten are recorded, and over_threshold, what the optimizer
    sees over its threshold of stability.
    """
    if isinstance(found, Trajectory):
        return Values({**found.values, **{name: getattr(found, name) for name in GEOMETRY}})
    more = {f"lambda_{k}": column for k, column in enumerate(found.eigenvalues.T, 1)}
    if found.eigenvalues.shape[1] >= outliers.TENTH:
        ratios = outliers.outlier_ratios(found.pairs, outliers.TENTH)
        more["zeta"] = np.array([ratio.value for ratio in ratios])
    if {"preconditioned", "threshold"} <= set(found.values):
        more["over_threshold"] = found["preconditioned"] / found["threshold"]
    return Values({**found.values, **more})


def _at(found: Trajectory | Track, index: int, name: str) -> Answer:
    axis = found.about.get("axis", "step")
    value, place = quantities(found)[name][index], found.steps[index]
    return {"value": float(value), "place": [float(place)], "axis": axis}


def _least(found: Trajectory | Track, name: str) -> Answer:
    return _at(found, best(quantities(found)[name], name), name)


def _greatest(found: Trajectory | Track, name: str) -> Answer:
    return _at(found, best(-quantities(found)[name], name), name)


def _of_step(found: Trajectory | Track, step: float, name: str) -> Answer:
    places = np.flatnonzero(found.steps == step)
    if not len(places):
        near = found.steps[np.argsort(np.abs(found.steps - step))[:2]]
        between = " and ".join(f"{x:g}" for x in sorted(near)) or "none"
        axis = found.about.get("axis", "step")
        raise InputError(
            f"at {step:g}: no {_one(found)} has that {axis}; the nearest are {between}"
        )
    return _at(found, int(places[0]), name)


def _first_below(found: Trajectory | Track, level: float, name: str) -> Answer:
    return _first(found, "first_below", level, name, lambda values: values <= level)


def _first_above(found: Trajectory | Track, level: float, name: str) -> Answer:
    return _first(found, "first_above", level, name, lambda values: values >= level)


def _first(
    found: Trajectory | Track, query: str, level: float, name: str, holds: Callable[[Array], Array]
) -> Answer:
    places = np.flatnonzero(holds(quantities(found)[name]))
    if not len(places):
        other = "above" if query == "first_below" else "below"
        raise InputError(f"{query} {level:g}: the {name} is {other} that at all {_one(found)}s")
    return _at(found, int(places[0]), name)


def _mean(found: Trajectory | Track, first: float | None, last: float | None, name: str) -> Answer:
    """With the standard deviation; records without the value are left out."""
    low = -np.inf if first is None else first
    high = np.inf if last is None else last
    values = quantities(found)[name][(low <= found.steps) & (found.steps <= high)]
    known = values[np.isfinite(values)]
    if not known.size:
        raise InputError(f"mean: no {_one(found)} from {low:g} to {high:g} has the {name}")
    spread = float(known.std(ddof=1)) if known.size > 1 else None
    return {"value": float(known.mean()), "records": int(known.size), "deviation": spread}


def _one(found: Trajectory | Track) -> str:
    return "record" if isinstance(found, Track) else "checkpoint"


def _table(step: str) -> dict[str, ValueQuery]:
    """The queries, where steps are called so."""
    rows = (
        ValueQuery(name="minimum", about=f"the smallest value, and its {step}", answer=_least),
        ValueQuery(name="maximum", about=f"the largest value, and its {step}", answer=_greatest),
        ValueQuery(
            name="at", about=f"the value at {step.upper()}", arguments=(step,), answer=_of_step
        ),
        ValueQuery(
            name="first_below",
            about=f"the first value of at most LEVEL, and its {step}",
            arguments=("level",),
            answer=_first_below,
        ),
        ValueQuery(
            name="first_above",
            about=f"the first value of at least LEVEL, and its {step}",
            arguments=("level",),
            answer=_first_above,
        ),
        ValueQuery(
            name="mean",
            about=f"the mean over {step}s FIRST to LAST, and the standard deviation",
            arguments=("first", "last"),
            defaults=(None, None),
            answer=_mean,
        ),
    )
    return {row.name: row for row in rows}


OF_TRAJECTORY = _table("epoch")
OF_TRACK = _table("step")
