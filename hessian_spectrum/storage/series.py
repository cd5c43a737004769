"""All results of one kind in a file, in the order of training. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hessian_spectrum.storage import hdf5_schema

STEP = "step-"  # begins a tracker's label of results of one step

ORDINAL = ("block", "index")  # axes that count results and have no unit


@dataclass(frozen=True)
class Series:
    """Labelled results of one kind, such as the densities that ``merge`` has collected."""

    kind: str
    results: Mapping[str, Any]  # by label, in order
    places: tuple[float, ...]  # of each on the axis, ascending
    axis: str  # "epoch", "step", "block", or "index" where none is known

    def __len__(self) -> int:
        return len(self.results)

    @property
    def keys(self) -> list[str]:
        """Of each result in the file."""
        return [hdf5_schema.join_key(self.kind, label) for label in self.results]


def of(run: Mapping[str, Any], kind: str) -> Series:
    """All results of that kind in a file.

    An epoch is what a label's ``values`` say, who have it from the checkpoint. Labels of a
    tracker's file are of its steps; no other label's text is read as a number. Where a label has
    none, or two have the same, the axis is the step that ``values`` say, then the place of a block
    of parameters among those of its run (``density --blocks``), and without either the index:
    in the order of a track's checkpoints where it is stored, else as the file lists them.
    """
    keys = [key for key in run if hdf5_schema.split_key(key)[0] == kind]
    results = {hdf5_schema.split_key(key)[1]: run[key] for key in keys}
    steps = {label: step_of(label) for label in results}
    if "track" in run and None not in steps.values():
        known_steps = tuple(sorted(float(step) for step in steps.values() if step is not None))
        return _series(kind, results, steps.__getitem__, known_steps, "step")
    for name in ("epoch", "step", "block", "index"):
        found = {label: _value(run, label, name) for label in results}
        known = {label: value for label, value in found.items() if value is not None}
        if len(set(known.values())) == len(results):
            places = range(len(results)) if name in ORDINAL else sorted(known.values())
            return _series(kind, results, known.__getitem__, tuple(places), name)
    order = list(results).index
    return _series(kind, results, order, tuple(range(len(results))), "index")


def step_of(label: str) -> int | None:
    """The step that a tracker's label names, such as step-000100; None of another label."""
    number = label.removeprefix(STEP)
    return int(number) if label.startswith(STEP) and number.isdecimal() else None


def _series(
    kind: str,
    results: Mapping[str, Any],
    order: Callable[[str], Any],
    places: tuple[float, ...],
    axis: str,
) -> Series:
    return Series(
        kind, {label: results[label] for label in sorted(results, key=order)}, places, axis
    )


def _value(run: Mapping[str, Any], label: str, name: str) -> float | None:
    value = run.get(hdf5_schema.join_key("values", label), {}).get(name)
    return None if value is None else float(value)
