"""Low-loss curves between two solutions: quadratic Bezier curves and polygonal chains.

Garipov, Izmailov, Podoprikhin, Vetrov and Wilson 2018, section 3; Draxler et al. 2018 ask the same
with chains of more pivots. Departures: 1. The gradient is that of all the data, not of a minibatch.
2. A step takes the mean over several t, one from each of as many equal parts of [0, 1].
3. Adam in place of momentum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.landscape import paths
from hessian_spectrum.landscape.geometry import chain_length
from hessian_spectrum.landscape.parameter_points import Points, edge_gram, stacked
from hessian_spectrum.landscape.results import Curve
from hessian_spectrum.landscape.tasks import PointTask, compute, curve_task, described
from hessian_spectrum.loss.evaluator import Evaluator

ADAM = (0.9, 0.999, 1e-8)


@dataclass(frozen=True)
class Bends:
    """The state of a search: what a step reads and returns, and all that a resume needs."""

    kind: str  # "bezier" or "polygon"
    ends: Tensor  # (2, n)
    bends: Tensor  # (bends, n)
    first_moment: Tensor  # (bends, n)
    second_moment: Tensor  # (bends, n)
    num_steps: int = 0
    loss: float = float("nan")  # the mean over t, before the last step

    @property
    def vertices(self) -> Tensor:
        """(bends + 2, n), in their order along the curve."""
        return torch.cat([self.ends[:1], self.bends, self.ends[1:]])

    def weights(self, t: np.ndarray) -> np.ndarray:
        """(p, bends + 2), of the vertices in the curve's points."""
        return _WEIGHTS[self.kind](t, len(self.bends) + 2)


@dataclass(frozen=True)
class Connection:
    """A curve that was found, and the values along it."""

    curve: Curve
    bends: Bends


def start(
    ev: Evaluator, theta0: Tensor, theta1: Tensor, kind: str = "bezier", num_bends: int = 1
) -> Bends:
    """Bends spread evenly over the straight line."""
    if kind not in _WEIGHTS:
        raise InputError(f"kind={kind!r}: expected one of {', '.join(_WEIGHTS)}")
    require_whole(1, num_bends=num_bends)
    ends = stacked(ev, {"theta0": theta0, "theta1": theta1})
    inner = np.linspace(0, 1, num_bends + 2)[1:-1]
    bends = Points(ends, paths.linear(inner)).rows(0, num_bends)
    return Bends(kind, ends, bends, torch.zeros_like(bends), torch.zeros_like(bends))


def step(ev: Evaluator, state: Bends, lr: float, num_samples: int, seed: int) -> Bends:
    """One step of Adam on the mean loss over the curve, of which the bends are the unknowns.

    d/d bend_j of L(phi(t)) is weight_j(t) grad L(phi(t)). The t of a step depend on (seed, step)
    alone, so that a resumed search takes the same ones.

    Cost: num_samples losses and gradients.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, state.num_steps]))
    t = (np.arange(num_samples) + generator.random(num_samples)) / num_samples
    weights = state.weights(t)
    points = Points(state.vertices, weights).rows(0, num_samples)
    loss, slope = ev.loss(points).mean().item(), torch.zeros_like(state.bends)
    for theta, row in zip(points, weights[:, 1:-1]):
        found = ev.gradient(theta)
        slope += torch.from_numpy(row).to(slope)[:, None] * found / num_samples
    if not slope.isfinite().all():
        raise FloatingPointError(
            f"the gradient on the curve is not finite at step {state.num_steps}; use a smaller lr"
        )
    beta1, beta2, eps = ADAM
    k = state.num_steps + 1
    m = beta1 * state.first_moment + (1 - beta1) * slope
    v = beta2 * state.second_moment + (1 - beta2) * slope.square()
    change = (m / (1 - beta1**k)) / ((v / (1 - beta2**k)).sqrt() + eps)
    return replace(
        state,
        bends=state.bends - lr * change,
        first_moment=m,
        second_moment=v,
        num_steps=k,
        loss=loss,
    )


def bends_task(ev: Evaluator, state: Bends, num_points: int = 51) -> PointTask:
    """Values along the curve, as data for a runner."""
    t = paths.window(0.0, 1.0, num_points)
    weights, vertices = state.weights(t), state.vertices
    distance = chain_length(weights[:, 1:], edge_gram(vertices))
    about = described(ev, path=state.kind, num_bends=len(state.bends), num_steps=state.num_steps)
    return curve_task(Points(vertices, weights), t, distance, about)


def connect(
    ev: Evaluator,
    theta0: Tensor,
    theta1: Tensor,
    *,
    kind: str = "bezier",
    num_bends: int = 1,
    num_steps: int = 100,
    num_samples: int = 4,
    lr: float = 0.01,
    seed: int = 0,
    num_points: int = 51,
    state: Bends | None = None,
    on_step: Callable[[Bends], Any] | None = None,
    **options: Any,
) -> Connection:
    """A curve from theta0 to theta1 along which the loss is low, and the values along it.

    Minimizes the mean over t of L(phi(t)) over the bends of phi: of ``kind="bezier"`` with one bend
    (1-t)^2 theta0 + 2 t (1-t) bend + t^2 theta1, with "polygon" a chain of straight edges, each an
    equal part of t. The barrier is ``connection.curve.barrier()``; that of the straight line is
    ``interpolate(...).barrier()``.

    Args:
        num_bends: of a Bezier curve its degree less 1.
        num_samples: t in a step.
        lr: of Adam, in units of theta: about how far an entry moves in a step.
        state: of a search to be continued until ``num_steps``; the first three are then its own.
        on_step: called with the state after every step.
        **options: of ``compute``: test, quantities, plan.

    Raises:
        FloatingPointError: the search diverged.

    Cost: num_steps * num_samples gradients and losses, then num_points losses.
    """
    require_whole(0, num_steps=num_steps, seed=seed)
    require_whole(1, num_samples=num_samples, num_points=num_points)
    if not 0 < lr < math.inf:
        raise InputError(f"lr={lr!r}: expected a finite number above 0")
    state = state or start(ev, theta0, theta1, kind, num_bends)
    while state.num_steps < num_steps:
        state = step(ev, state, lr, num_samples, seed)
        if on_step:
            on_step(state)
    return Connection(compute(ev, bends_task(ev, state, num_points), **options), state)


_WEIGHTS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "bezier": lambda t, vertices: paths.bezier(t, vertices - 1),
    "polygon": paths.polygon,
}
