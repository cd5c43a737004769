"""Which curvature an optimizer can follow: its preconditioner, and the threshold of stability.

On a quadratic an optimizer with fixed coefficients diverges along an eigenvector of the matrix that
it sees once the eigenvalue exceeds a threshold (Cohen et al. 2021, "Gradient descent on neural
networks typically occurs at the edge of stability", section 2 and appendix B; Cohen et al. 2022,
"Adaptive gradient methods at the edge of stability", section 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from hessian_spectrum._core.errors import InputError

Group = Mapping[str, Any]
States = Sequence[Mapping[str, Any]]  # the optimizer's, in the parameters' order


@dataclass(frozen=True)
class Stability:
    """What an optimizer's next steps do on a quadratic with its state as it is now.

    The matrix that it sees is P^-1/2 (H + shift I) P^-1/2, P = I where there is no preconditioner.
    """

    lr: float  # of the first group of parameters; the others' are in P
    threshold: float | None = None  # the largest stable eigenvalue; None where it is not known
    shift: float = 0.0  # of weight decay that the optimizer adds to the gradient
    preconditioner: Tensor | None = None  # P, (n,), positive
    why_not: str = ""  # why the threshold is not known


def stability(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], weight_decay: float = 0.0
) -> Stability:
    """Of an optimizer after a step, for these parameters in this order.

    ==========  =========================================  =======================================
    optimizer   threshold                                  P
    ==========  =========================================  =======================================
    SGD         2 / lr                                     I
    momentum b  (2 + 2 b) / ((1 - dampening) lr)           I
    Nesterov    (2 + 2 b) / ((1 + 2 b) lr)                 I
    Adam        (2 + 2 b1) / ((1 - b1) lr)                 (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps)
    AdamW       (2 - lr wd) (1 + b1) / ((1 - b1) lr)       as Adam's
    RMSprop     (2 + 2 momentum) / lr                      sqrt(v) + eps
    Adagrad     2 / lr                                     (1 + (t - 1) lr_decay) (sqrt(s) + eps)
    ==========  =========================================  =======================================

    v and s are the running mean, and the sum, of squared gradients after t steps.

    Args:
        parameters: by name; all of them must be stepped by the optimizer.
        weight_decay: of the loss whose Hessian is looked at; it is in H already.

    Raises:
        InputError: the optimizer does not step some of the parameters.
    """
    groups = require_stepped(optimizer, parameters)
    first = groups[0]
    lr = _number(first["lr"])
    for other in groups[1:]:
        different = [name for name in _SHARED if name in first and other[name] != first[name]]
        if different:
            why = f"groups of parameters differ in {', '.join(different)}"
            return Stability(lr, why_not=why)
    rule = next((rule for kind, rule in _RULES if type(optimizer) is kind), None)
    if rule is None:
        return Stability(lr, why_not=f"none is known for {type(optimizer).__name__}")
    if first.get("maximize"):
        return Stability(lr, why_not="the optimizer maximizes")
    if not all(_number(group["lr"]) for group in groups):  # as where a warm-up begins
        return Stability(lr, why_not="a learning rate is 0")
    if first.get("momentum") and first.get("dampening") == 1:
        return Stability(lr, why_not="dampening of 1: the gradient has no part in later steps")
    states = [optimizer.state[parameter] for parameter in parameters.values()]
    if any(not state for state in states) and rule is not _sgd:
        return Stability(lr, why_not="the optimizer has not made a step")
    found = rule(first, lr, states)
    is_decoupled = first["weight_decay"] and not found.decay
    if is_decoupled and any(_number(group["lr"]) != lr for group in groups):
        return Stability(lr, why_not="decoupled weight decay at several learning rates")
    preconditioner = _by_rates(groups, list(parameters.values()), found.diagonals)
    if preconditioner is not None and not (preconditioner > 0).all():  # nor is NaN
        return Stability(lr, why_not="its preconditioner is not positive: add a small eps")
    return Stability(lr, found.threshold, found.decay - weight_decay, preconditioner)


def require_stepped(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[Group]:
    """The optimizer's groups that have some of the parameters.

    Raises:
        InputError: it does not step all of them.
    """
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer is a {type(optimizer).__name__}; expected a torch.optim one")
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, parameter in parameters.items() if id(parameter) not in stepped]
    if missing:
        raise InputError(
            f"the optimizer does not step {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''} of the evaluator: give the tracker the "
            "optimizer of this model, or choose what is trained by Evaluator(parameters=...)"
        )
    own = {id(p) for p in parameters.values()}
    return [g for g in optimizer.param_groups if any(id(p) in own for p in g["params"])]


# -- a rule for each optimizer: of a group's options, its learning rate, and the states ------------


class _Rule(NamedTuple):
    threshold: float
    decay: float  # weight decay that is added to the gradient, and so to the matrix
    diagonals: list[Tensor] | None = None  # P, by parameter; None: the identity


def _sgd(group: Group, lr: float, states: States) -> _Rule:
    b, decay = group["momentum"], group["weight_decay"]
    if group["nesterov"]:
        return _Rule((2 + 2 * b) / ((1 + 2 * b) * lr), decay)
    return _Rule((2 + 2 * b) / ((1 - group["dampening"] if b else 1.0) * lr), decay)


def _adam(group: Group, lr: float, states: States) -> _Rule:
    b1, b2 = group["betas"]
    diagonals = []
    for state in states:
        t = _number(state["step"])
        v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        diagonals.append((1 - b1**t) * ((v / (1 - b2**t)).sqrt() + group["eps"]))
    if not group.get("decoupled_weight_decay", False):
        return _Rule((2 + 2 * b1) / ((1 - b1) * lr), group["weight_decay"], diagonals)
    kept = 1 - lr * group["weight_decay"]  # of the parameters, in each step
    return _Rule((1 + kept) * (1 + b1) / ((1 - b1) * lr), 0.0, diagonals)


def _adamw(group: Group, lr: float, states: States) -> _Rule:
    return _adam({**group, "decoupled_weight_decay": True}, lr, states)


def _rmsprop(group: Group, lr: float, states: States) -> _Rule:
    diagonals = []
    for state in states:
        v = state["square_avg"]
        if group["centered"]:
            v = (v - state["grad_avg"].square()).clamp(min=0.0)
        diagonals.append(v.sqrt() + group["eps"])
    return _Rule((2 + 2 * group["momentum"]) / lr, group["weight_decay"], diagonals)


def _adagrad(group: Group, lr: float, states: States) -> _Rule:
    diagonals = []
    for state in states:
        slower = 1 + (_number(state["step"]) - 1) * group["lr_decay"]
        diagonals.append(slower * (state["sum"].sqrt() + group["eps"]))
    return _Rule(2 / lr, group["weight_decay"], diagonals)


_RULES = (
    (SGD, _sgd),
    (Adam, _adam),
    (AdamW, _adamw),
    (RMSprop, _rmsprop),
    (Adagrad, _adagrad),
)
# Options that all groups must share for one threshold; learning rates go into P.
_SHARED = (
    *("momentum", "dampening", "nesterov", "weight_decay", "betas", "eps", "amsgrad"),
    *("centered", "lr_decay", "maximize", "decoupled_weight_decay"),
)


def _by_rates(
    groups: Sequence[Group], parameters: Sequence[nn.Parameter], diagonals: list[Tensor] | None
) -> Tensor | None:
    """P as one vector, divided by each group's learning rate over the first; None for the identity.

    A step is lr P^-1 times the gradient.
    """
    first = _number(groups[0]["lr"])
    rate = {id(p): _number(group["lr"]) for group in groups for p in group["params"]}
    if diagonals is None:
        if all(_number(group["lr"]) == first for group in groups):
            return None
        diagonals = [torch.ones_like(parameter) for parameter in parameters]
    parts = [
        diagonal.detach().reshape(-1).double() * (first / rate[id(parameter)])
        for parameter, diagonal in zip(parameters, diagonals)
    ]
    return torch.cat(parts)


def _number(value: Any) -> float:
    return float(value)
