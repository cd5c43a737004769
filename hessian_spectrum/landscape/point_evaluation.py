"""Loss and accuracy at many parameter vectors, in ranges.

Contract with a runner:

- ``evaluate(ev, points, start, stop, plan=plan)`` is a pure function of its arguments: it keeps
  and writes nothing. The ranges that ``ranges`` returns may be computed in any order and by any
  process, and their results concatenated.
- The same plan and the same numbers of ranks and threads give the same bits.
- All ranks of ``ev.world`` call it with the same arguments; they share the data, not the points.
  To divide the points as well, give each group of ranks an evaluator with a world of its own, and
  ranges of its own.
- A point whose loss overflows has inf or NaN, and does not change the other points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import Failures
from hessian_spectrum.landscape.parameter_points import Points, check_points
from hessian_spectrum.landscape.point_passes import PointPlan, minibatches
from hessian_spectrum.loss.evaluator import Evaluator

QUANTITIES = ("loss", "accuracy")


def ranges(num_points: int, plan: PointPlan, at_least: int = 1) -> list[range]:
    """Index ranges for ``evaluate``: whole chunks, so that the bits are those of a single call.

    Args:
        at_least: points in each range except the last.
    """
    step = plan.chunk * max(1, math.ceil(at_least / plan.chunk))
    return [range(i, min(i + step, num_points)) for i in range(0, num_points, step)]


def evaluate(
    ev: Evaluator,
    points: Points,
    start: int = 0,
    stop: int | None = None,
    *,
    plan: PointPlan | None = None,
    test: Evaluator | None = None,
    quantities: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Loss and accuracy at points start, ..., stop - 1; each (stop - start,), float64.

    Args:
        points: converted to the evaluator's dtype and device at each call, if they differ.
        plan: default: one point at a time.
        test: the same model on other data, with a weight decay of its own. With
            ``batch_norm="recalibrate"`` it is normalized by the statistics of ``ev``'s data.
        quantities: "loss", "accuracy", or both; default: both where targets are class indices.
            Accuracy is the share of samples (for sequences: of targets that are not ignored) whose
            largest output is their label.

    Returns:
        "loss", "accuracy", and with ``test`` also "test_loss", "test_accuracy". Each loss
        includes the weight decay of its own evaluator. Where it is inf or NaN the accuracy is NaN.

    Raises:
        InputError: a range outside the points, points of another model, an unknown quantity, or
            accuracy without class indices.

    Cost: one pass over the data for each chunk of points; with "recalibrate" one pass for each
    point, and the passes of its statistics.
    """
    plan = plan or PointPlan()
    stop = len(points) if stop is None else stop
    if not 0 <= start <= stop <= len(points):
        raise InputError(
            f"points {start} to {stop}: expected 0 <= start <= stop <= {len(points)}, their number"
        )
    check_points(ev, points, test)
    wanted = _wanted(ev, quantities)
    points = points.to(ev.device, ev.dtype)
    found = [_chunk(ev, points, chunk, plan, test, wanted) for chunk in _chunks(start, stop, plan)]
    names = [prefix + name for prefix in ("", "test_")[: 1 + (test is not None)] for name in wanted]
    columns = np.concatenate([np.empty((0, len(names))), *found])
    return dict(zip(names, columns.T.copy()))


# -- inside ------------------------------------------------------------------------------------


def _wanted(ev: Evaluator, quantities: Sequence[str] | None) -> list[str]:
    first = next((ev.function.labels(batch) is not None for batch in ev.batches), None)
    # A rank without data cannot know the kind of its targets.
    has_labels = any(answer for answer in ev.world.gather_objects(first))
    if quantities is None:
        return list(QUANTITIES if has_labels else QUANTITIES[:1])
    unknown = [name for name in quantities if name not in QUANTITIES]
    if unknown or not quantities:
        raise InputError(f"quantities={list(quantities)}: expected some of {', '.join(QUANTITIES)}")
    if "accuracy" in quantities and not has_labels:
        raise InputError(
            "accuracy needs class indices as targets, with torch's cross entropy or negative "
            "log-likelihood; ask for quantities=('loss',)"
        )
    return [name for name in QUANTITIES if name in quantities]


def _chunks(start: int, stop: int, plan: PointPlan) -> list[range]:
    """Chunks of a range, cut at multiples of the chunk: neighbours do not depend on the range."""
    cuts = [start, *range((start // plan.chunk + 1) * plan.chunk, stop, plan.chunk), stop]
    return [range(*pair) for pair in pairwise(cuts) if pair[0] < pair[1]]


def _chunk(
    ev: Evaluator,
    points: Points,
    chunk: range,
    plan: PointPlan,
    test: Evaluator | None,
    wanted: list[str],
) -> np.ndarray:
    """Values at a chunk of points, (points, quantities), of ``ev`` and then of ``test``."""
    theta = points.rows(chunk.start, chunk.stop)
    evaluators = [ev] if test is None else [ev, test]
    # With recalibrated BatchNorm each point has its own statistics, and so its own pass.
    shared = 1 if ev.batch_norm == "recalibrate" else len(theta)
    sums: list[list[Tensor]] = [[] for _ in evaluators]
    failures = Failures(ev.world)
    for i, rows in zip(range(chunk.start, chunk.stop, shared), theta.split(shared)):
        statistics = ev.statistics(rows[0])
        for one, total in zip(evaluators, sums):
            sums_of = partial(_sums, one, points, i, rows, plan, wanted, statistics)
            total.append(
                failures.attempt(sums_of, rows.new_empty(len(rows), 3, dtype=torch.float64))
            )
    columns = []
    for one, total in zip(evaluators, sums):
        summed = one.world.sum(torch.cat(total))
        failures.raise_where_not_finite(summed)
        loss, correct, counted = summed.unbind(1)
        if one.weight_decay:  # skipped at 0, since 0 times a square that overflows is NaN
            loss = loss + one.weight_decay / 2 * theta.double().square().sum(1)
        accuracy = torch.where(loss.isfinite(), correct / counted, torch.nan)
        columns += [{"loss": loss, "accuracy": accuracy}[name] for name in wanted]
    return torch.stack(columns, dim=1).cpu().numpy()


def _sums(
    ev: Evaluator,
    points: Points,
    first: int,
    theta: Tensor,
    plan: PointPlan,
    wanted: list[str],
    statistics: dict[str, Tensor],
) -> Tensor:
    """This rank's sums of losses, correct predictions and targets, (p, 3), float64."""
    total = torch.zeros(len(theta), 3, dtype=torch.float64, device=ev.device)
    for part, rows, losses, outputs in minibatches(ev, points, first, theta, plan, statistics):
        total[rows, 0] += losses.double()
        if "accuracy" in wanted:
            labels = ev.function.labels(part.batch)
            assert labels is not None  # _wanted refuses accuracy without them
            kept = labels.ne(getattr(ev.loss_fn, "ignore_index", -100))
            right = (outputs.argmax(2) == labels) & kept
            total[rows, 1] += right.flatten(1).sum(1)
            total[rows, 2] += kept.sum()
    ev.counts.passes += 1
    return total
