"""Low-loss curves between two solutions: Bezier curves and polygonal chains.

Garipov, Izmailov, Podoprikhin, Vetrov & Wilson, NeurIPS 2018, section 3, except:

1. The gradient is that of all the data, not of a minibatch.
2. A step averages over several t, one from each of as many equal parts of [0, 1].
3. Adam replaces SGD with momentum.

Draxler et al., ICML 2018, ask the same question with chains of more pivots.
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
    """The state of a search, which ``step`` takes and returns; it is enough to resume."""

    kind: str  # "bezier" or "polygon"
    ends: Tensor  # (2, n)
    bends: Tensor  # (bends, n)
    first_moment: Tensor  # (bends, n)
    second_moment: Tensor  # (bends, n)
    num_steps: int = 0
    loss: float = float("nan")  # mean over the t of the last step, before that step

    @property
    def vertices(self) -> Tensor:
        """Ends and bends in their order along the curve, (bends + 2, n)."""
        return torch.cat([self.ends[:1], self.bends, self.ends[1:]])

    def weights(self, t: np.ndarray) -> np.ndarray:
        """Weights of the vertices at the curve's points, (p,) -> (p, bends + 2)."""
        return _WEIGHTS[self.kind](t, len(self.bends) + 2)


@dataclass(frozen=True)
class Connection:
    """The result of a search: values along the curve, and the state that a search can continue."""

    curve: Curve
    bends: Bends


def start(
    ev: Evaluator, theta0: Tensor, theta1: Tensor, kind: str = "bezier", num_bends: int = 1
) -> Bends:
    """The initial state: bends evenly spaced on the straight line.

    Raises:
        InputError: an unknown kind, or no bend.
    """
    if kind not in _WEIGHTS:
        raise InputError(f"kind={kind!r}: expected one of {', '.join(_WEIGHTS)}")
    require_whole(1, num_bends=num_bends)
    ends = stacked(ev, {"theta0": theta0, "theta1": theta1})
    inner = np.linspace(0, 1, num_bends + 2)[1:-1]
    bends = Points(ends, paths.linear(inner)).rows(0, num_bends)
    return Bends(kind, ends, bends, torch.zeros_like(bends), torch.zeros_like(bends))


def step(ev: Evaluator, state: Bends, lr: float, num_samples: int, seed: int) -> Bends:
    """One step of Adam on the mean loss over the curve, with the bends as unknowns.

    The gradient of L(phi(t)) by bend j is weight_j(t) grad L(phi(t)). The t of a step depend on
    (seed, number of the step) alone, so that a resumed search takes the same steps.

    Raises:
        FloatingPointError: the gradient is not finite.

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
    """Values along the curve as data, for a runner."""
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
    """A curve phi from theta0 to theta1 along which the loss is low, and the values along it.

    Minimizes the mean over t in [0, 1] of L(phi(t)) over the bends of phi. With kind="bezier" and
    one bend, phi(t) = (1-t)^2 theta0 + 2 t (1-t) bend + t^2 theta1 (Garipov et al. 2018, equation
    4); with kind="polygon" phi is a chain of straight edges (equation 3). The barrier of the curve
    is ``connection.curve.barrier()``; that of the straight line is ``interpolate(...).barrier()``.

    Args:
        theta0, theta1: flat parameters, (n,).
        num_bends: free vertices; a Bezier curve then has degree num_bends + 1.
        num_steps: steps of Adam in all.
        num_samples: values of t in a step.
        lr: learning rate of Adam, in units of theta: about how far an entry moves in a step.
        seed: of the values of t.
        num_points: evaluated points of the final curve, evenly spaced in t.
        state: the state of a search to continue until ``num_steps``; its ends, kind and number of
            bends are used in place of the arguments.
        on_step: called with the state after every step.
        **options: test, quantities and plan, as in ``landscape.tasks.compute``.

    Raises:
        FloatingPointError: the search diverged; use a smaller ``lr``.
        InputError: an argument is out of its range.

    Cost: num_steps * num_samples gradients and losses, then num_points losses.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> found = hs.connect(ev, ev.theta, -ev.theta, num_steps=10, lr=0.2, num_points=11)
        >>> line = hs.interpolate(ev, ev.theta, -ev.theta, 11)
        >>> found.bends.num_steps, bool(found.curve.loss.mean() < line.loss.mean())
        (10, True)
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
