"""Which curvature an optimizer can follow: its preconditioner, and the threshold of stability.

On a quadratic an optimizer with fixed coefficients diverges along an eigenvector of the matrix that
it sees once the eigenvalue exceeds a threshold (Cohen et al. 2021, "Gradient descent on neural
networks typically occurs at the edge of stability", section 2 and appendix B; Cohen et al. 2022,
"Adaptive gradient methods at the edge of stability", section 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from hessian_spectrum._core.errors import InputError

Group = Mapping[str, Any]


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
    Adagrad     2 (1 + (t - 1) lr_decay) / lr              sqrt(sum of squares) + eps
    ==========  =========================================  =======================================

    Args:
        parameters: by name; all of them must be stepped by the optimizer.
        weight_decay: of the loss whose Hessian is looked at; it is in H already.

    Raises:
        InputError: the optimizer does not step some of the parameters.
    """
    groups = _groups_of(optimizer, parameters)
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
    states = [optimizer.state[parameter] for parameter in parameters.values()]
    if any(not state for state in states) and rule is not _sgd:
        return Stability(lr, why_not="the optimizer has not made a step")
    return rule(groups, list(parameters.values()), states, weight_decay)


def _sgd(
    groups: Sequence[Group],
    parameters: Sequence[nn.Parameter],
    states: Sequence[Mapping[str, Any]],
    weight_decay: float,
) -> Stability:
    group, lr = groups[0], _number(groups[0]["lr"])
    b = group["momentum"]
    threshold = (2 + 2 * b) / ((1 - group["dampening"] if b else 1.0) * lr)
    if group["nesterov"]:
        threshold = (2 + 2 * b) / ((1 + 2 * b) * lr)
    return Stability(
        lr,
        threshold,
        shift=group["weight_decay"] - weight_decay,
        preconditioner=_by_rates(groups, parameters, [torch.ones_like(p) for p in parameters]),
    )


def _adam(
    groups: Sequence[Group],
    parameters: Sequence[nn.Parameter],
    states: Sequence[Mapping[str, Any]],
    weight_decay: float,
) -> Stability:
    group, lr = groups[0], _number(groups[0]["lr"])
    b1, b2 = group["betas"]
    diagonals = []
    for state in states:
        t, v = _number(state["step"]), state["exp_avg_sq"]
        if group["amsgrad"]:
            v = state["max_exp_avg_sq"]
        root = (v / (1 - b2**t)).sqrt() + group["eps"]
        diagonals.append((1 - b1**t) * root)
    decay = group["weight_decay"]
    decoupled = group.get("decoupled_weight_decay", False)
    kept = 1 - lr * decay if decoupled else 1.0  # of the parameters, in each step
    return Stability(
        lr,
        (1 + kept) * (1 + b1) / ((1 - b1) * lr),
        # What is decoupled is not in the matrix: a loss that has it is taken without.
        shift=(0.0 if decoupled else decay) - weight_decay,
        preconditioner=_by_rates(groups, parameters, diagonals),
    )


def _adamw(groups: Sequence[Group], *rest: Any) -> Stability:
    return _adam([{**group, "decoupled_weight_decay": True} for group in groups], *rest)


def _rmsprop(
    groups: Sequence[Group],
    parameters: Sequence[nn.Parameter],
    states: Sequence[Mapping[str, Any]],
    weight_decay: float,
) -> Stability:
    group, lr = groups[0], _number(groups[0]["lr"])
    diagonals = []
    for state in states:
        v = state["square_avg"]
        if group["centered"]:
            v = (v - state["grad_avg"].square()).clamp(min=0.0)
        diagonals.append(v.sqrt() + group["eps"])
    return Stability(
        lr,
        (2 + 2 * group["momentum"]) / lr,
        shift=group["weight_decay"] - weight_decay,
        preconditioner=_by_rates(groups, parameters, diagonals),
    )


def _adagrad(
    groups: Sequence[Group],
    parameters: Sequence[nn.Parameter],
    states: Sequence[Mapping[str, Any]],
    weight_decay: float,
) -> Stability:
    group, lr = groups[0], _number(groups[0]["lr"])
    steps = {_number(state["step"]) for state in states}
    if len(steps) > 1:
        return Stability(lr, why_not="parameters have made different numbers of steps")
    slower = 1 + (steps.pop() - 1) * group["lr_decay"]
    diagonals = [state["sum"].sqrt() + group["eps"] for state in states]
    return Stability(
        lr,
        2 * slower / lr,
        shift=group["weight_decay"] - weight_decay,
        preconditioner=_by_rates(groups, parameters, diagonals),
    )


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
    groups: Sequence[Group], parameters: Sequence[nn.Parameter], diagonals: Iterable[Tensor]
) -> Tensor | None:
    """P as one vector, divided by each group's learning rate over the first; None for the identity.

    A step is lr P^-1 times the gradient.
    """
    first = _number(groups[0]["lr"])
    rate = {id(p): _number(group["lr"]) for group in groups for p in group["params"]}
    parts = [
        diagonal.detach().reshape(-1).double() * (first / rate[id(parameter)])
        for parameter, diagonal in zip(parameters, diagonals)
    ]
    whole = torch.cat(parts)
    return None if bool((whole == 1.0).all()) else whole


def _groups_of(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[Group]:
    """The optimizer's groups that have some of the parameters."""
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


def _number(value: Any) -> float:
    return float(value)
