"""How different networks are as functions: distances of outputs, and disagreement of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import require_same_call
from hessian_spectrum.landscape import paths, point_planner
from hessian_spectrum.landscape.geometry import chain_length
from hessian_spectrum.landscape.parameter_points import Points, check_points, edge_gram, stacked
from hessian_spectrum.landscape.paths import Numbers
from hessian_spectrum.landscape.point_evaluation import ranges
from hessian_spectrum.landscape.point_passes import PointPlan, outputs
from hessian_spectrum.landscape.results import Curve, FunctionalDistances
from hessian_spectrum.landscape.tasks import described
from hessian_spectrum.loss.evaluator import Evaluator

OUTPUTS = ("softmax", "logits")


def functional_values(
    ev: Evaluator,
    points: Points,
    references: Points,
    start: int = 0,
    stop: int | None = None,
    *,
    plan: PointPlan | None = None,
    of: str = "softmax",
) -> dict[str, np.ndarray]:
    """Distance and disagreement between points start, ..., stop - 1 and each reference.

    A pure function of the range, like ``evaluate``; called by every rank.

    Args:
        of: what f is: "softmax" probabilities, or the outputs as they are ("logits").

    Returns:
        Arrays of shape (stop - start, references), NaN where outputs are not finite.
        "distance": sqrt of the mean over samples of |f(x; theta) - f(x; reference)|^2, with the
        Euclidean norm over outputs (Im, Tao & Branson 2017, functional distance).
        "disagreement": the share of samples with different predicted labels (largest output).

    Raises:
        InputError: points of another model, or a network that does not return one tensor
            (B, classes, ...).

    Cost: a pass at the points and one at the references for each chunk of points.
    """
    if of not in OUTPUTS:
        raise InputError(f"of={of!r}: expected one of {', '.join(OUTPUTS)}")
    check_points(ev, points)
    check_points(ev, references)
    plan = plan or PointPlan()
    stop = len(points) if stop is None else stop
    alone = PointPlan(batch_size=plan.batch_size, channels_last=plan.channels_last)
    found: dict[str, list[Tensor]] = {"distance": [], "disagreement": []}
    for chunk in ranges(stop - start, plan):
        total = torch.zeros(3, len(chunk), len(references), dtype=torch.float64, device=ev.device)
        ours = outputs(ev, points, start + chunk.start, start + chunk.stop, plan)
        theirs = outputs(ev, references, 0, len(references), alone)
        for (a, _), (b, _) in zip(ours, theirs):
            total += _compared(_functions(a, of), _functions(b, of))
        squares, different, samples = ev.world.sum(total).unbind(0)
        found["distance"].append((squares / samples).sqrt())
        found["disagreement"].append(different / samples)
    return {
        name: torch.cat(parts).cpu().numpy() if parts else np.empty((0, len(references)))
        for name, parts in found.items()
    }


def functional_distances(
    ev: Evaluator, networks: Mapping[str, Tensor], *, of: str = "softmax"
) -> FunctionalDistances:
    """Functional distance and disagreement of all pairs of networks.

    Im, Tao & Branson 2017 (arXiv:1612.04010); definitions as in ``functional_values``.

    Args:
        ev: the model and the data on which outputs are compared; the paper uses test data.
        networks: flat parameters (n,) by name, two or more.
        of: "softmax" probabilities, or "logits".

    Raises:
        InputError: fewer than two networks, or one with another number of entries.

    Cost: two passes over the data at all networks.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.arange(20) % 2
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), data)
        >>> found = hs.functional_distances(ev, {"trained": ev.theta, "doubled": 2 * ev.theta})
        >>> found.distance.shape, found.between("trained", "trained")
        ((2, 2), 0.0)
        >>> float(found.disagreement[0, 1])  # twice the logits have the same largest entry
        0.0
    """
    names = list(networks)
    if len(names) < 2:
        raise InputError(f"{len(names)} networks; expected two or more")
    points = Points.of(stacked(ev, {repr(name): networks[name] for name in names}))
    require_same_call(ev.world, "functional_distances", names=names, networks=points.vectors, of=of)
    found = functional_values(ev, points, points, of=of)
    return FunctionalDistances(np.array(names), **found, about=described(ev, of=of))


def functional_path(
    ev: Evaluator,
    theta0: Tensor,
    theta1: Tensor,
    num_points: int = 21,
    *,
    alpha: Numbers | None = None,
    of: str = "softmax",
    plan: PointPlan | None = None,
) -> Curve:
    """Functional distance and disagreement with both ends, at (1 - alpha) theta0 + alpha theta1.

    Definitions as in ``functional_values``.

    Args:
        theta0, theta1: flat parameters, (n,).
        num_points: values of alpha, evenly spaced from 0 to 1.
        alpha: the values of alpha themselves, ascending.
        of: "softmax" probabilities, or "logits".
        plan: default: chosen by ``point_planner.plan``.

    Returns:
        A Curve over alpha with the values "distance_to_start", "distance_to_end",
        "disagreement_with_start" and "disagreement_with_end"; it has no "loss".

    Cost: two passes over the data for each chunk of points.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.arange(20) % 2
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), data)
        >>> curve = hs.functional_path(ev, ev.theta, -ev.theta, num_points=3)
        >>> float(curve.values["distance_to_start"][0]), curve.t.tolist()
        (0.0, [0.0, 0.5, 1.0])
    """
    ends = stacked(ev, {"theta0": theta0, "theta1": theta1})
    t = paths.coordinates(num_points if alpha is None else alpha, 0.0, 1.0, "alpha")
    points = Points(ends, paths.linear(t))
    require_same_call(ev.world, "functional_path", ends=ends, alpha=t, of=of, plan=plan)
    plan = plan or point_planner.plan(ev, points)[0]
    found = functional_values(ev, points, Points.of(ends), plan=plan, of=of)
    values = {
        f"{name}_{word}_{end}": found[name][:, i]
        for name, word in (("distance", "to"), ("disagreement", "with"))
        for i, end in enumerate(("start", "end"))
    }
    distance = chain_length(points.weights[:, 1:], edge_gram(ends))
    return Curve(t, distance, values, described(ev, path="linear", ends=[0.0, 1.0], of=of))


# -- inside ------------------------------------------------------------------------------------


def _functions(found: Any, of: str) -> Tensor:
    """Outputs as functions of samples or tokens: (p, B, C, ...) -> (p, samples, C), float64."""
    if not isinstance(found, Tensor) or found.ndim < 3:
        raise InputError(
            "functional distances need one tensor of outputs (B, classes, ...), but the network "
            f"returns {getattr(found, 'shape', type(found).__name__)}"
        )
    rows = found.detach().double().movedim(2, -1).flatten(1, -2)
    return rows.softmax(-1) if of == "softmax" else rows


def _compared(a: Tensor, b: Tensor) -> Tensor:
    """Sums over this minibatch of squared distances, different labels, and samples: (3, p, r).

    One reference at a time, since all at once would take p r copies of the outputs.
    """
    labels, finite = a.argmax(-1), a.isfinite().all(-1)
    columns = []
    for other in b:
        squares = (a - other).square().sum(-1).sum(1)
        different = (labels != other.argmax(-1)).sum(1).double()
        broken = ~(finite & other.isfinite().all(-1)).all(1)
        samples = torch.full_like(squares, a.shape[1])
        columns.append(torch.stack([squares, different.masked_fill(broken, torch.nan), samples]))
    return torch.stack(columns, dim=-1)
