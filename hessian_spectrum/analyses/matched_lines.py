"""The lines from one network to another, and to the same network with its hidden units matched."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum.analyses.interpolate import Window, linear_task
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.results.curve import Curve
from hessian_spectrum.landscape.results.matched_lines import MATCH, MatchedLines
from hessian_spectrum.landscape.tasks import PointTask, ValuesByName
from hessian_spectrum.loss.evaluator import Evaluator


def matched_lines_task(
    ev: Evaluator,
    theta0: Tensor,
    theta1: Tensor,
    matched: Tensor,
    method: str,
    num_points: int = 50,
    window: Window = (0.0, 1.0),
) -> PointTask:
    """The points of both lines, that of ``interpolate`` to theta1 and that to ``matched``.

    Args:
        theta0, theta1, matched: flat parameters, (n,); ``matched`` is theta1 permuted.
        method: how units were matched, for the curves' ``about``.
        num_points, window: of each line, as in ``interpolate``.

    Cost: 2 ``num_points`` losses.
    """
    first = linear_task(ev, theta0, theta1, num_points, window=window)
    second = linear_task(ev, theta0, matched, num_points, window=window)
    count = len(first.points)
    weights = np.zeros((2 * count, 3))
    weights[:count, [0, 1]] = first.points.weights
    weights[count:, [0, 2]] = second.points.weights
    vectors = torch.cat([first.points.vectors, second.points.vectors[1:]])

    def finish(values: ValuesByName) -> MatchedLines:
        return MatchedLines(
            _named(first.finish({name: v[:count] for name, v in values.items()}), method),
            _named(second.finish({name: v[count:] for name, v in values.items()}), method),
        )

    return PointTask(Points(vectors, weights), finish)


def _named(line: Curve, method: str) -> Curve:
    return dataclasses.replace(line, about={**line.about, MATCH: method})
