"""An analysis of many points as data: the points, and the function that makes the result.

Every analysis of many points has a function that returns its task. ``compute`` carries out a task
in one call. A runner instead hands out ``ranges(len(task.points), plan)``, stores what ``evaluate``
returns for each range, concatenates the arrays in the order of the points and calls
``task.finish``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hessian_spectrum.distributed.agreement import require_same_call
from hessian_spectrum.landscape import point_planner
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.point_evaluation import evaluate
from hessian_spectrum.landscape.point_passes import PointPlan
from hessian_spectrum.landscape.results import Curve, Surface
from hessian_spectrum.loss import batch_norm
from hessian_spectrum.loss.evaluator import Evaluator

ValuesByName = Mapping[str, np.ndarray]  # "loss", "accuracy", ... -> (p,)


@dataclass(frozen=True)
class PointTask:
    """Points to evaluate, and what their values are made into."""

    points: Points
    finish: Callable[[ValuesByName], Any]  # the values at all points -> the result
    beside: tuple[Any, ...] = ()  # results of other kinds that are known before the evaluation


def curve_task(
    points: Points, t: np.ndarray, distance: np.ndarray, about: Mapping[str, Any]
) -> PointTask:
    """The task of a ``Curve``; t and the arc length ``distance`` have an entry for each point."""
    return PointTask(points, lambda values: Curve(t, distance, values, about))


def surface_task(
    points: Points,
    a: np.ndarray,
    b: np.ndarray,
    about: Mapping[str, Any],
    positions: np.ndarray | None = None,
) -> PointTask:
    """The task of a ``Surface`` over the axes a and b; points run over b first.

    Args:
        positions: (points, 2), coordinates of the points in their plane; None where they do not
            lie in one.
    """
    shape = len(a), len(b)
    places = {} if positions is None else {"positions": positions.reshape(*shape, 2)}

    def finish(values: ValuesByName) -> Surface:
        grids = {name: array.reshape(shape) for name, array in values.items()}
        return Surface(a, b, grids, about, **places)

    return PointTask(points, finish)


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
        plan: default: chosen by ``point_planner.plan``, which times trials where that pays.

    Raises:
        InputError: the points or options differ between ranks.

    Cost: that of ``evaluate``; on several ranks a SHA-256 of the points' vectors, in one exchange.
    """
    require_same_call(
        ev.world,
        "an evaluation of points",
        weights=task.points.weights,
        vectors=task.points.vectors,
        test=test is not None,
        quantities=quantities and list(quantities),
        plan=plan,
    )
    plan = plan or point_planner.plan(ev, task.points, test=test)[0]
    values = evaluate(ev, task.points, plan=plan, test=test, quantities=quantities)
    return task.finish(values)


def described(ev: Evaluator, **about: Any) -> dict[str, Any]:
    """What a result records about its evaluation, with the entries ``about`` added."""
    mode = ev.batch_norm if batch_norm.layers(ev.model) else "none"
    return {"batch_norm": mode, "n": ev.n, "num_samples": int(ev.num_samples), **about}
