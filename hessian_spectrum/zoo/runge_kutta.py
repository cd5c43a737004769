"""Gradient descent and Adam as second-order Runge-Kutta methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from hessian_spectrum._core.errors import InputError

Closure = Callable[[], Any]


class Tableau(NamedTuple):
    """A method of two stages; of second order, because b1 + b2 = 1 and b2 c = 1/2."""

    c: float  # the second stage lies at theta - c lr k1
    b1: float  # the step is -lr (b1 k1 + b2 k2)
    b2: float


TABLEAUS = {
    "midpoint": Tableau(1 / 2, 0.0, 1.0),
    "heun": Tableau(1.0, 1 / 2, 1 / 2),
    "ralston": Tableau(2 / 3, 1 / 4, 3 / 4),
}


class RungeKuttaSGD(Optimizer):
    """One Runge-Kutta step of length lr along the gradient flow dtheta/dt = -grad L(theta).

    With ``k1 = grad L(theta)`` and ``k2 = grad L(theta - c lr k1)``, both of the same minibatch::

        theta <- theta - lr (b1 k1 + b2 k2)

        midpoint    c = 1/2    b = (0, 1)
        heun        c = 1      b = (1/2, 1/2)
        ralston     c = 2/3    b = (1/4, 3/4)

    The error of a step is O(lr^3), after a fixed time O(lr^2). On a quadratic the step is stable
    for curvatures below 2 / lr, as that of gradient descent.

    Args:
        params: as for every torch optimizer.
        lr: length of the step.
        method: midpoint, heun or ralston.
        weight_decay: adds weight_decay * theta to the gradient, at both stages.

    Raises:
        InputError: an unknown method.

    Cost: two gradients a step; memory for two vectors of the parameters' size.

    References:
        Im, Tao & Branson, "An empirical analysis of the optimization of deep network loss
        surfaces" (2017), appendix A.3. Ralston, Math. Comp. 16 (1962) 431-437.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        method: str = "heun",
        weight_decay: float = 0.0,
        **more: Any,
    ):
        if method not in TABLEAUS:
            raise InputError(f"unknown method {method!r}; use one of: {', '.join(TABLEAUS)}")
        super().__init__(params, {"lr": lr, "method": method, "weight_decay": weight_decay, **more})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step.

        Args:
            closure: clears the gradients, evaluates the loss of this step's minibatch, calls
                ``backward`` and returns the loss. Called twice, the first time at theta.

        Returns:
            The loss at theta. Gradients are left as the second stage's.

        Raises:
            InputError: no closure.
        """
        if closure is None:
            raise InputError(
                f"{type(self).__name__}.step() needs a closure, which evaluates the gradient at "
                "both stages: optimizer.step(closure)"
            )
        with torch.enable_grad():
            loss = closure()
        moved = [(p, g) for g in self.param_groups for p in g["params"] if p.grad is not None]
        starts = [p.clone() for p, _ in moved]
        first = [self._slope(p, group) for p, group in moved]
        for (p, group), (k1, *_) in zip(moved, first):
            p.sub_(k1, alpha=group["lr"] * TABLEAUS[group["method"]].c)
        with torch.enable_grad():
            closure()
        second = [self._slope(p, group) for p, group in moved]
        for (p, group), start, one, two in zip(moved, starts, first, second):
            _, b1, b2 = TABLEAUS[group["method"]]
            slope, *state = (b1 * x + b2 * y for x, y in zip(one, two))
            p.copy_(start.sub_(slope, alpha=group["lr"]))
            self._keep(p, state)
        return loss

    def _slope(self, p: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
        """The direction of descent at this stage, and what the state would become."""
        assert p.grad is not None
        return (p.grad.add(p, alpha=group["weight_decay"]),)

    def _keep(self, p: Tensor, state: list[Tensor]) -> None:
        """The step was made, with this state, averaged over the stages."""


class RungeKuttaAdam(RungeKuttaSGD):
    """``RungeKuttaSGD`` along Adam's direction in place of the gradient.

    Each stage has the moments that Adam's would be after its gradient, both from those before the
    step, m_i = beta1 m + (1 - beta1) g_i and v_i = beta2 v + (1 - beta2) g_i^2, and the direction
    k_i = m_i / (1 - beta1^t) / (sqrt(v_i / (1 - beta2^t)) + eps). Directions and moments of the
    stages are averaged by b. Where both gradients are the same it is Adam. Since a moment's share
    of a step does not shrink with lr, there is no flow of which it has second order.

    Args:
        params, lr, method, weight_decay: as for ``RungeKuttaSGD``.
        betas, eps: as for torch.optim.Adam.

    Cost: two gradients a step; memory for nine vectors of the parameters' size.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        method: str = "heun",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr, method, weight_decay, betas=betas, eps=eps)

    def _slope(self, p: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
        (g,), (beta1, beta2) = super()._slope(p, group), group["betas"]
        before, t = self.state[p], int(self.state[p].get("step", 0)) + 1
        zero = torch.zeros_like(p)
        m = torch.lerp(before.get("exp_avg", zero), g, 1 - beta1)
        v = beta2 * before.get("exp_avg_sq", zero) + (1 - beta2) * g.square()
        scale = (v / (1 - beta2**t)).sqrt() + group["eps"]
        return m / (1 - beta1**t) / scale, m, v

    def _keep(self, p: Tensor, state: list[Tensor]) -> None:
        own = self.state[p]
        own["exp_avg"], own["exp_avg_sq"] = state
        own["step"] = int(own.get("step", 0)) + 1
