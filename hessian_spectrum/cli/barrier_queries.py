"""The queries on stored barriers. NumPy only."""

from __future__ import annotations

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.cli.value_query import ValueQuery, best
from hessian_spectrum.landscape.results import Array, Barriers
from hessian_spectrum.spectral.functionals import Answer


def _lowest(result: Barriers, name: str) -> Answer:
    values = np.where(np.isfinite(result.values[name]), result.values[name], np.nan)
    segment = best(values.min(axis=1), name)
    return {"value": float(values[segment].min()), **_after(result, segment)}


def _count(result: Barriers, epoch: float | None, name: str) -> Answer:
    _only_loss(name)
    found = result.count(epoch)
    return {"value": found.barriers, "segments": found.segments, "unknown": found.unknown}


def _highest(result: Barriers, name: str) -> Answer:
    _only_loss(name)
    if not result.is_barrier.any():
        return {"value": 0.0}
    segment = best(-np.where(result.is_barrier, result.rise, np.nan), name)
    return {"value": float(result.rise[segment]), **_after(result, segment)}


def _floor(result: Barriers, step: float, name: str) -> Answer:
    _only_loss(name)
    found = np.flatnonzero(result.start == step)
    if not len(found):
        raise InputError(f"floor {step:g}: no segment starts there; they start at {_span(result)}")
    return {"value": float(result.floor[found[0]]), **_after(result, int(found[0]))}


def _height(result: Barriers, epoch: float | None, name: str) -> Answer:
    _only_loss(name)
    return {"value": _mean(result, result.height_above_floor, epoch), "of": "iterates above floor"}


def _cosine(result: Barriers, epoch: float | None, name: str) -> Answer:
    _only_loss(name)
    return {"value": _mean(result, result.cosine, epoch), "of": "consecutive updates"}


def _only_loss(name: str) -> None:
    if name != "loss":
        raise InputError(f"--value {name}: barriers are of the loss; leave it out, or ask minimum")


def _mean(result: Barriers, array: Array, epoch: float | None) -> float:
    """Over the segments where it is known."""
    result.count(epoch)  # refuses an epoch that is not there
    known = array[np.isfinite(array) & (True if epoch is None else result.epoch == epoch)]
    if not known.size:
        raise InputError("no segment has it: a cosine takes three consecutive iterates")
    return float(known.mean())


def _after(result: Barriers, segment: int) -> Answer:
    axis = result.about.get("axis", "step")
    return {"place": [float(result.start[segment])], "axis": axis}


def _span(result: Barriers) -> str:
    return f"{result.start[0]:g} to {result.start[-1]:g}"


OF_BARRIERS = {
    row.name: row
    for row in (
        ValueQuery(
            name="count",
            about="the number of barriers, of all or of EPOCH",
            arguments=("epoch",),
            defaults=(None,),
            answer=_count,
        ),
        ValueQuery(
            name="barrier",
            about="the largest height of a barrier above the higher end, and the step before it",
            answer=_highest,
        ),
        ValueQuery(
            name="height",
            about="mean of (L_t + L_(t+1) - 2 L_b) / 2, L_b the smallest loss between two iterates",
            arguments=("epoch",),
            defaults=(None,),
            answer=_height,
        ),
        ValueQuery(
            name="floor",
            about="the smallest loss between the iterate of STEP and the next",
            arguments=("step",),
            answer=_floor,
        ),
        ValueQuery(
            name="cosine",
            about="mean cosine of consecutive updates, of all or of EPOCH",
            arguments=("epoch",),
            defaults=(None,),
            answer=_cosine,
        ),
        ValueQuery(
            name="minimum", about="the smallest value, and the step before it", answer=_lowest
        ),
    )
}
