"""All pairs of several trained networks: lines, triangles with their start, functional distances.

Im, Tao & Branson 2017 (arXiv:1612.04010), table 1, figures 5 and 6. One task has the points of all
pairs, so that a runner hands them out together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.analyses.corner_surfaces import corner_task
from hessian_spectrum.analyses.functional_distance import functional_values
from hessian_spectrum.analyses.interpolate import linear_task
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.point_evaluation import evaluate, ranges
from hessian_spectrum.landscape.point_passes import PointPlan
from hessian_spectrum.landscape.results import Pairs
from hessian_spectrum.landscape.results.pairs import (
    DISAGREEMENT,
    FUNCTIONAL,
    START,
    functional_of,
)
from hessian_spectrum.landscape.tasks import PointTask, ValuesByName
from hessian_spectrum.loss.evaluator import Evaluator


@dataclass(frozen=True)
class Part:
    """The points of one line or triangle among those of all."""

    task: PointTask  # its points as combinations of its own corners
    corners: tuple[int, ...]  # which vectors of the whole these are
    between: tuple[str, str]
    first: int  # its first point

    @property
    def is_end_to_end(self) -> bool:
        return len(self.corners) == 2 and self.between[0] != START

    @property
    def stop(self) -> int:
        return self.first + len(self.task.points)

    def finish(self, values: ValuesByName) -> Any:
        """Its result, from the values at the points of all parts."""
        own = {name: array[self.first : self.stop] for name, array in values.items()}
        if not self.is_end_to_end:
            own = {name: array for name, array in own.items() if name not in OUTPUTS}
        found = self.task.finish(own)
        return dataclasses.replace(found, about={**found.about, "between": list(self.between)})


OUTPUTS = (*FUNCTIONAL, *DISAGREEMENT)  # along lines from end to end


@dataclass(frozen=True, kw_only=True)
class PairsTask(PointTask):
    """The points of all lines and triangles, and which of them belong together."""

    parts: tuple[Part, ...]

    def ranges(self, plan: PointPlan) -> list[range]:
        """Points that share passes over the data: never of two parts."""
        return [
            range(part.first + chunk.start, part.first + chunk.stop)
            for part in self.parts
            for chunk in ranges(len(part.task.points), plan)
        ]

    def values(
        self, ev: Evaluator, indices: Sequence[int], plan: PointPlan, test: Evaluator | None = None
    ) -> dict[str, np.ndarray]:
        """What is known of consecutive points of one part: as ``evaluate``, and ``OUTPUTS``.

        Args:
            test: the same model on other data; functional distances are then those on these data.

        Cost: a loss for each point; on a line from end to end also outputs at each, and at both
        ends once for each call.
        """
        first, stop = indices[0], indices[-1] + 1
        found = evaluate(ev, self.points, first, stop, plan=plan, test=test)
        part = next(part for part in self.parts if first < part.stop)
        if not part.is_end_to_end:
            return {**found, **{name: np.full(len(indices), np.nan) for name in OUTPUTS}}
        ends = Points.of(self.points.vectors[list(part.corners)])
        outputs = functional_values(test or ev, self.points, ends, first, stop, plan=plan)
        columns = (*outputs["distance"].T, *outputs["disagreement"].T)
        return {**found, **dict(zip(OUTPUTS, columns))}


def pairs_task(
    ev: Evaluator,
    ends: Mapping[str, Tensor],
    starts: Mapping[str, Tensor],
    num_points: int = 25,
) -> PairsTask:
    """Lines between all ends, lines from their starts, triangles of a common start and two ends.

    Args:
        ends: flat parameters (n,) of trained networks by name, two or more.
        starts: those that the trainings of some or all of them started from.
        num_points: points on each line, and along each side of a triangle.

    Raises:
        InputError: fewer than two networks, or one that is named as the start is.

    Cost: with k networks of one start k (k - 1) / 2 num_points^2 losses over triangles. Memory: all
    networks.
    """
    names = list(ends)
    if len(names) < 2:
        raise InputError(f"{len(names)} networks; expected two or more")
    if START in names:
        raise InputError(f"a network is named {START!r}, as the start of all; rename it")
    distinct: list[Tensor] = []
    start_of = {name: _place(theta, distinct) for name, theta in starts.items()}
    vectors = torch.stack([*ends.values(), *distinct])
    rows = {name: i for i, name in enumerate(names)}
    started = {name: len(names) + place for name, place in start_of.items() if name in rows}

    parts: list[Part] = []

    def add(between: tuple[str, str], *corners: int) -> None:
        thetas = vectors[list(corners)]
        task = (
            linear_task(ev, thetas[0], thetas[1], num_points)
            if len(corners) == 2
            else corner_task(ev, "barycentric", list(thetas), num_points, num_points)
        )
        parts.append(Part(task, corners, between, parts[-1].stop if parts else 0))

    for name, start in started.items():
        add((START, name), start, rows[name])
    for a, b in combinations(names, 2):
        add((a, b), rows[a], rows[b])
    for a, b in combinations(names, 2):
        if a in started and started[a] == started.get(b):
            add((a, b), started[a], rows[a], rows[b])
    weights = np.concatenate([_spread(part, len(vectors)) for part in parts])
    # Each part keeps its weights alone: the vectors are those of the whole.
    slim = tuple(_without_vectors(part) for part in parts)

    def finish(values: ValuesByName) -> Pairs:
        lines = dict(_finished(slim, values, lambda part: part.is_end_to_end))
        from_start = _finished(slim, values, lambda part: part.between[0] == START)
        return Pairs(
            lines=lines,
            triangles=dict(_finished(slim, values, lambda part: len(part.corners) == 3)),
            from_start={name: line for (_, name), line in from_start},
            functional=functional_of(names, lines),
        )

    return PairsTask(Points(vectors, weights), finish, parts=slim)


# -- inside ------------------------------------------------------------------------------------


def _place(theta: Tensor, distinct: list[Tensor]) -> int:
    """The index of a vector among the distinct ones, to which it is added if it is new."""
    for i, other in enumerate(distinct):
        if torch.equal(theta, other):
            return i
    distinct.append(theta)
    return len(distinct) - 1


def _spread(part: Part, count: int) -> np.ndarray:
    """A part's weights (p, count) of the vectors of all."""
    own = part.task.points.weights
    found = np.zeros((len(own), count))
    found[:, list(part.corners)] = own
    return found


def _without_vectors(part: Part) -> Part:
    points = part.task.points
    empty = Points(points.vectors.new_empty(points.weights.shape[1], 0), points.weights)
    return dataclasses.replace(part, task=dataclasses.replace(part.task, points=empty))


def _finished(
    parts: Sequence[Part], values: ValuesByName, chosen: Any
) -> Iterator[tuple[tuple[str, str], Any]]:
    return ((part.between, part.finish(values)) for part in parts if chosen(part))
