"""Passes over the data that evaluate several points at once: losses and outputs by minibatch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape import batchnorm_folding, vmap_evaluation
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.loss.batching import leading_size
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.minibatch_loss import Part


@dataclass(frozen=True)
class PointPlan:
    """How points are evaluated. ``point_planner.plan`` chooses it; runs store it.

    With ``together=1`` the bits of a value do not depend on ``chunk``.
    """

    chunk: int = 8  # points that share a pass over the data
    together: int = 1  # points in one call of the network, under vmap
    batch_size: int | None = None  # cut larger minibatches to this size; None: do not cut
    channels_last: bool = False  # memory order of images, faster for convolutions on CPUs
    superposed: bool = False  # first dense layers by linearity (vmap_evaluation.py)
    folded: bool = False  # BatchNorm folded into convolutions (batchnorm_folding.py)

    def __post_init__(self):
        if not 1 <= self.together <= self.chunk:
            raise InputError(
                f"chunk={self.chunk}, together={self.together}: expected numbers of points with "
                "1 <= together <= chunk"
            )


def minibatches(
    ev: Evaluator,
    points: Points,
    first: int,
    theta: Tensor,
    plan: PointPlan,
    statistics: dict[str, Tensor] | None = None,
) -> Iterator[tuple[Part, slice, Tensor, Any]]:
    """(part, rows, losses, outputs) for each minibatch and group of rows, in evaluation mode.

    The model stays in evaluation mode until the last item, so read them all without using the
    model in between.

    Args:
        first: index of the first point.
        theta: points first, first + 1, ..., (p, n).
        statistics: ``ev.statistics`` at these points; default: computed at the first of them.
    """
    statistics = ev.statistics(theta[0]) if statistics is None else statistics
    with ev.evaluation_mode():
        yield from _items(ev, points, first, theta, plan, statistics)


def outputs(
    ev: Evaluator, points: Points, start: int, stop: int, plan: PointPlan | None = None
) -> Iterator[tuple[Any, Any]]:
    """Outputs of the network at points start, ..., stop - 1 for each minibatch of this rank.

    Yields (outputs, batch) with outputs of shape (points, B, ...). With
    ``batch_norm="recalibrate"`` the outputs of all minibatches are in memory at once, and every
    rank must take part.
    """
    # The caller may use the model between two minibatches, so that what a pass changes in the
    # model and in torch must not last from one to the next.
    plan = replace(plan or PointPlan(), folded=False)
    points = points.to(ev.device, ev.dtype)
    theta = points.rows(start, stop)
    if ev.batch_norm == "recalibrate":
        alone = [
            [(out, part.batch) for part, _, _, out in minibatches(ev, points, i, row[None], plan)]
            for i, row in enumerate(theta, start)
        ]
        for same in zip(*alone):
            yield _joined([out for out, _ in same]), same[0][1]
        return
    held: list[Any] = []
    items = _items(ev, points, start, theta, plan, ev.statistics(theta[0]))
    while True:
        with ev.evaluation_mode():
            item = next(items, None)
        if item is None:
            return
        part, rows, _, out = item
        held.append(out)
        if rows.stop == len(theta):
            yield _joined(held), part.batch
            held = []


def losses_of_part(
    ev: Evaluator,
    points: Points,
    theta: Tensor,
    plan: PointPlan,
    samples: int,
    batch_size: int | None = None,
) -> Tensor:
    """The loss of this rank's first ``samples`` samples at the points, (p,), for trials.

    Args:
        theta: all of the points, (p, n).
        batch_size: used where the plan has none.
    """
    plan = replace(plan, batch_size=plan.batch_size or batch_size or samples)
    total = torch.zeros(len(theta), dtype=torch.float64, device=ev.device)
    seen = 0
    for part, rows, losses, _ in minibatches(ev, points, 0, theta, plan):
        total[rows] += losses.double()
        if rows.stop == len(theta):
            seen += leading_size(part.batch)
            if seen >= samples:
                break
    return total


# -- inside ------------------------------------------------------------------------------------


def _items(
    ev: Evaluator,
    points: Points,
    first: int,
    theta: Tensor,
    plan: PointPlan,
    statistics: dict[str, Tensor],
) -> Iterator[tuple[Part, slice, Tensor, Any]]:
    """``minibatches`` without evaluation mode, which the caller enters."""
    weights = torch.from_numpy(points.weights[first : first + len(theta)]).to(theta)
    vectors = points.vectors if plan.superposed else None
    with ExitStack() as stack:
        parts = ev.parts(statistics, None if ev.is_whole else plan.batch_size)
        for i, part in enumerate(parts):
            part = part.in_channels_last() if plan.channels_last else part
            if plan.folded and i == 0:
                stack.enter_context(
                    batchnorm_folding.folded(batchnorm_folding.pairs(ev, part, theta[0]))
                )
            known: list[Tensor] = []
            for j in range(0, len(theta), plan.together):
                rows = slice(j, min(j + plan.together, len(theta)))
                if plan.together == 1:
                    # Not under no_grad, since a loss may contain derivatives by the inputs.
                    found = tree_map(_alone, part.evaluated(theta[j]))
                else:
                    found = vmap_evaluation.evaluated(
                        ev, part, theta[rows], weights[rows], vectors, known
                    )
                yield part, rows, *found


def _alone(leaf: Any) -> Any:
    return leaf.detach()[None] if isinstance(leaf, Tensor) else leaf


def _joined(outputs: list[Any]) -> Any:
    def join(*leaves: Any) -> Any:
        return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    return tree_map(join, *outputs)
