"""Loss, accuracy and outputs at many parameter vectors, a range of them at a time.

What a runner may rely on: ``evaluate(ev, points, start, stop, plan=plan)`` is a pure function of
its arguments. It knows nothing of the other points, keeps nothing and writes nothing; ranges may be
computed in any order, by any process, and joined (``ranges`` cuts them). With the same plan and the
same numbers of ranks and threads the values are the same bits. All ranks of ``ev.world`` call it
with the same arguments: they share the data, not the points. To share out the points as well, give
each group of ranks an evaluator of its own world, and ranges of its own. A point whose loss
overflows has inf or NaN there, and the others are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import Failures
from hessian_spectrum.landscape import batchnorm_folding, vmap_evaluation
from hessian_spectrum.loss.batching import leading_size
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.minibatch_loss import Part

QUANTITIES = ("loss", "accuracy")
# Rounding of superposed layers is that of the largest term: more than so many times the sum itself
# is not accepted.
CANCELLATION = 16.0


@dataclass(frozen=True)
class Points:
    """p parameter vectors in the span of k: theta_i = sum_j weights[i, j] vectors[j].

    Lines, planes, triangles and curves are all of this form, and so is any list of vectors.
    """

    vectors: Tensor  # (k, n), whole, the same on every rank
    weights: np.ndarray  # (p, k), float64

    def __post_init__(self):
        if self.vectors.ndim != 2 or not self.vectors.is_floating_point():
            raise InputError(f"vectors of shape {tuple(self.vectors.shape)}; expected (k, n)")
        if not self.vectors.isfinite().all():
            raise InputError("vectors have NaN or infinite entries; did the training diverge?")
        weights = np.asarray(self.weights, dtype=np.float64)
        if weights.ndim != 2 or weights.shape[1] != len(self.vectors):
            raise InputError(
                f"weights of shape {weights.shape} for {len(self.vectors)} vectors; expected "
                f"(points, {len(self.vectors)})"
            )
        if not np.isfinite(weights).all():
            raise InputError("weights have NaN or infinite entries; expected finite numbers")
        object.__setattr__(self, "weights", weights)

    @classmethod
    def of(cls, thetas: Tensor | Sequence[Tensor]) -> Points:
        """The points themselves, (p, n)."""
        if not isinstance(thetas, Tensor):
            thetas = torch.stack([torch.as_tensor(theta).detach() for theta in thetas])
        return cls(thetas.detach(), np.eye(len(thetas)))

    @classmethod
    def around(cls, origin: Tensor, directions: Tensor, coordinates: np.ndarray) -> Points:
        """origin + coordinates @ directions; (n,), (k, n), (p, k)."""
        vectors = torch.cat([origin[None].to(directions), directions])
        return cls(vectors, np.column_stack([np.ones(len(coordinates)), coordinates]))

    def __len__(self) -> int:
        return len(self.weights)

    def to(self, device: torch.device, dtype: torch.dtype) -> Points:
        return replace(self, vectors=self.vectors.to(device, dtype))

    def rows(self, start: int, stop: int) -> Tensor:
        """theta of these points, (stop - start, n); added up in float64, and rounded once.

        A weight of 1 beside zeros gives the vector itself, bit for bit.
        """
        weights = self.weights[start:stop]
        total = torch.zeros(
            len(weights), self.vectors.shape[1], dtype=torch.float64, device=self.vectors.device
        )
        for column, vector in zip(torch.from_numpy(weights).T.to(total), self.vectors):
            if column.any():
                total.addcmul_(column[:, None], vector.double())
        return total.to(self.vectors.dtype)

    def cancellation(self) -> float:
        """max_i sum_j |weights[i, j]| |vectors[j]| / |theta_i|: by how much rounding can grow."""
        gram = (self.vectors.double() @ self.vectors.double().T).cpu().numpy()
        norms = np.sqrt(np.diagonal(gram))
        squares = np.einsum("pj,jk,pk->p", self.weights, gram, self.weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.abs(self.weights) @ norms / np.sqrt(np.maximum(squares, 0.0))
        return float(np.nan_to_num(ratios, nan=1.0, posinf=math.inf).max(initial=1.0))


@dataclass(frozen=True)
class PointPlan:
    """How points are evaluated; measured by ``point_planner.plan``, to be stored with a run.

    One by one (``together=1``) the bits of a value do not depend on the chunk.
    """

    chunk: int = 8  # points that share a pass over the data
    together: int = 1  # points in one call, under vmap
    batch_size: int | None = None  # larger minibatches are cut to it; None: as they are
    channels_last: bool = False  # images in the order that convolutions on CPUs prefer
    superposed: bool = False  # first dense layers by linearity: see vmap_evaluation.py
    folded: bool = (
        False  # BatchNorm with fixed statistics into convolutions: see batchnorm_folding.py
    )

    def __post_init__(self):
        if not 1 <= self.together <= self.chunk:
            raise InputError(
                f"chunk={self.chunk}, together={self.together}: expected numbers of points with "
                "1 <= together <= chunk"
            )


def ranges(num_points: int, plan: PointPlan, at_least: int = 1) -> list[range]:
    """Index ranges that ``evaluate`` can be handed; whole chunks, so that their bits are those of
    one call for all. Each has ``at_least`` so many points, but the last."""
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
        points: vectors in the evaluator's dtype and on its device, or moved there at each call.
        plan: default: one by one.
        test: the same model on other data; with ``batch_norm="recalibrate"`` normalized by the
            statistics of ``ev``'s data.
        quantities: "loss", "accuracy", or both; default: what there is. Accuracy, the share of
            samples (for sequences: of targets that are not ignored) whose largest output is their
            label, exists where targets are class indices.

    Returns:
        "loss", "accuracy", and "test_loss", "test_accuracy". The loss includes weight decay. Values
        that overflow are inf or NaN, and the accuracy there is NaN.

    Cost: one pass over the data for each chunk of points (with "recalibrate", for each point, and
    the passes that its statistics take).
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


def outputs(
    ev: Evaluator, points: Points, start: int, stop: int, plan: PointPlan | None = None
) -> Iterator[tuple[Any, Any]]:
    """What the network returns at these points for each of this rank's minibatches, and the batch.

    Yields (outputs, batch), outputs (points, B, ...). With ``batch_norm="recalibrate"`` the outputs
    of all minibatches are held at once, and every rank must take part.
    """
    # Who is given a minibatch's outputs may evaluate others before the next: what a pass changes in
    # the model and in torch must not last until then.
    plan = replace(plan or PointPlan(), folded=False)
    points = points.to(ev.device, ev.dtype)
    theta = points.rows(start, stop)
    if ev.batch_norm == "recalibrate":
        alone = [
            [(out, part.batch) for part, _, _, out in _pass(ev, points, i, row[None], plan)]
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


def check_points(ev: Evaluator, points: Points, test: Evaluator | None = None) -> None:
    """InputError unless the points are of this model, and the test evaluator too."""
    if points.vectors.shape[1] != ev.n:
        raise InputError(
            f"the points have {points.vectors.shape[1]} entries, but theta has {ev.n}; are they of "
            "the same model, with the same choice of parameters?"
        )
    if test is not None and (test.layout.names, test.dtype) != (ev.layout.names, ev.dtype):
        raise InputError(
            "the test evaluator has other parameters or another dtype; make both with the same "
            "model, parameters= and dtype="
        )


# -- inside ------------------------------------------------------------------------------------


def _wanted(ev: Evaluator, quantities: Sequence[str] | None) -> list[str]:
    first = next((ev.function.labels(batch) is not None for batch in ev.batches), None)
    # A rank without data does not know what its targets are.
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
    """Cut at multiples of the chunk, so that a point's neighbours do not depend on the range."""
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
    """(points, quantities), first of ``ev`` and then of ``test``."""
    theta = points.rows(chunk.start, chunk.stop)
    evaluators = [ev] if test is None else [ev, test]
    decay = theta.new_zeros(len(theta), dtype=torch.float64)
    if ev.weight_decay:  # 0 times a square that overflows is NaN
        decay = ev.weight_decay / 2 * theta.double().square().sum(1)
    # Where BatchNorm is recalibrated each point has statistics, and so a pass, of its own.
    shared = 1 if ev.batch_norm == "recalibrate" else len(theta)
    sums: list[list[Tensor]] = [[] for _ in evaluators]
    failures = Failures(ev.world)
    for i, rows in zip(range(chunk.start, chunk.stop, shared), theta.split(shared)):
        statistics = ev.statistics(rows[0])
        for one, total in zip(evaluators, sums):
            sums_of = partial(_sums, one, points, i, rows, plan, wanted, statistics)
            total.append(failures.attempt(sums_of, decay.new_empty(len(rows), 3)))
    columns = []
    for one, total in zip(evaluators, sums):
        summed = one.world.sum(torch.cat(total))
        failures.raise_where_not_finite(summed)
        loss, correct, counted = summed.unbind(1)
        loss = loss + decay
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
    """This rank's part of the loss, right predictions and targets, (p, 3), float64."""
    total = torch.zeros(len(theta), 3, dtype=torch.float64, device=ev.device)
    for part, rows, losses, outputs in _pass(ev, points, first, theta, plan, statistics):
        total[rows, 0] += losses.double()
        if "accuracy" in wanted:
            labels = ev.function.labels(part.batch)
            kept = labels != getattr(ev.loss_fn, "ignore_index", -100)
            right = (outputs.argmax(2) == labels) & kept
            total[rows, 1] += right.flatten(1).sum(1)
            total[rows, 2] += kept.sum()
    ev.counts.passes += 1
    return total


def _pass(
    ev: Evaluator,
    points: Points,
    first: int,
    theta: Tensor,
    plan: PointPlan,
    statistics: dict[str, Tensor] | None = None,
) -> Iterator[tuple[Part, slice, Tensor, Any]]:
    """``_items`` in evaluation mode, which lasts until the last: to be read at once."""
    statistics = ev.statistics(theta[0]) if statistics is None else statistics
    with ev.evaluation_mode():
        yield from _items(ev, points, first, theta, plan, statistics)


def _items(
    ev: Evaluator,
    points: Points,
    first: int,
    theta: Tensor,
    plan: PointPlan,
    statistics: dict[str, Tensor],
) -> Iterator[tuple[Part, slice, Tensor, Any]]:
    """(part, rows, losses, outputs) for each minibatch and, in it, for rows of theta in turn.

    Args:
        theta: points first, first + 1, ..., (p, n).
    """
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
                    # Not under no_grad: a loss may contain derivatives by the inputs.
                    found = tree_map(_alone, part.evaluated(theta[j]))
                else:
                    found = vmap_evaluation.evaluated(
                        ev, part, theta[rows], weights[rows], vectors, known
                    )
                yield part, rows, *found


def losses_of_part(
    ev: Evaluator,
    points: Points,
    theta: Tensor,
    plan: PointPlan,
    samples: int,
    batch_size: int | None = None,
) -> Tensor:
    """The loss of the first so many samples at these points, (p,), by this rank alone: for trials.

    Args:
        theta: all of the points, (p, n).
        batch_size: that of the plan, for a plan that has none.
    """
    plan = replace(plan, batch_size=plan.batch_size or batch_size or samples)
    total = torch.zeros(len(theta), dtype=torch.float64, device=ev.device)
    seen = 0
    for part, rows, losses, _ in _pass(ev, points, 0, theta, plan):
        total[rows] += losses.double()
        if rows.stop == len(theta):
            seen += leading_size(part.batch)
            if seen >= samples:
                break
    return total


def _alone(leaf: Any) -> Any:
    return leaf.detach()[None] if isinstance(leaf, Tensor) else leaf


def _joined(outputs: list[Any]) -> Any:
    def join(*leaves: Any) -> Any:
        return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    return tree_map(join, *outputs)
