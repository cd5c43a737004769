"""An analysis of many points as data: the points, and what their values are made into.

Every analysis of many points has a function that makes its task. ``compute`` carries one out at
once; a runner hands out ``ranges(len(task.points), plan)``, keeps what ``evaluate`` gives for each,
joins the arrays in the points' order and calls ``task.finish`` at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from hessian_spectrum.landscape import point_planner
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.point_evaluation import evaluate
from hessian_spectrum.landscape.point_passes import PointPlan
from hessian_spectrum.loss import batch_norm as normalization
from hessian_spectrum.loss.evaluator import Evaluator

Values = Mapping[str, np.ndarray]  # by name, (p,)


@dataclass(frozen=True)
class PointTask:
    points: Points
    finish: Callable[[Values], Any]  # the values at all points -> the result
    beside: tuple[Any, ...] = ()  # results that are known already, of other kinds


def compute(
    ev: Evaluator,
    task: PointTask,
    *,
    test: Evaluator | None = None,
    quantities: Sequence[str] | None = None,
    plan: PointPlan | None = None,
) -> Any:
    """The result of a task.

    Args:
        test: the same model on other data, evaluated at the same points ("test_loss", ...).
        quantities: as in ``evaluate``.
        plan: default: measured, where that pays.
    """
    plan = plan or point_planner.plan(ev, task.points, test=test)[0]
    values = evaluate(ev, task.points, plan=plan, test=test, quantities=quantities)
    return task.finish(values)


def gram(vectors: Tensor) -> np.ndarray:
    """Inner products of the rows, (k, k), in float64."""
    rows = vectors.double()
    return (rows @ rows.T).cpu().numpy()


def edges(vectors: Tensor) -> np.ndarray:
    """Inner products of vectors 1, 2, ... minus vector 0, (k - 1, k - 1), in float64."""
    rows = vectors.double()
    return gram(rows[1:] - rows[:1])


def described(ev: Evaluator, **about: Any) -> dict[str, Any]:
    """What a result says of its evaluation, with more of its own."""
    normalized = ev.batch_norm if normalization.layers(ev.model) else "none"
    return {"batch_norm": normalized, "n": ev.n, "num_samples": int(ev.num_samples), **about}
