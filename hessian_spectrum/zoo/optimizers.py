"""The trainer's optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.runge_kutta import TABLEAUS, RungeKuttaAdam, RungeKuttaSGD

_WITH_MOMENTUM: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": SGD,
    "nesterov": partial(SGD, nesterov=True),
}
_OTHERS: dict[str, Callable[..., Optimizer]] = {
    "plain-sgd": SGD,
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
    "adadelta": Adadelta,
    "adam": Adam,
    "adamw": AdamW,
    **{f"rk2-{method}": partial(RungeKuttaSGD, method=method) for method in TABLEAUS},
    **{f"rk2-adam-{method}": partial(RungeKuttaAdam, method=method) for method in TABLEAUS},
}
OPTIMIZERS = (*_WITH_MOMENTUM, *_OTHERS)


def optimizer_named(
    name: str,
    parameters: Iterable[Any],
    lr: float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Optimizer:
    """An optimizer of torch.optim, or a Runge-Kutta form of one, with its own other defaults.

    Args:
        name: ``sgd``; ``momentum``, the same, which has to have one; ``nesterov``; ``plain-sgd``,
            without momentum; ``adagrad``, ``rmsprop``, ``adadelta``, ``adam``, ``adamw``;
            ``rk2-METHOD`` and ``rk2-adam-METHOD``, METHOD one of midpoint, heun and ralston
            (``zoo.runge_kutta``), whose ``step`` needs a closure.
        parameters: tensors, or groups of them.
        momentum: of sgd, momentum and nesterov.
        weight_decay: the optimizer's; decoupled from the gradient in adamw alone.

    Raises:
        InputError: an unknown name, or no momentum where there has to be one.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"unknown optimizer {name!r}; use one of: {', '.join(OPTIMIZERS)}")
    if name in ("momentum", "nesterov") and not momentum > 0:
        raise InputError(f"{name} with momentum {momentum}: expected a number above 0; or use sgd")
    if name in _WITH_MOMENTUM:
        make = partial(_WITH_MOMENTUM[name], momentum=momentum)
    else:
        make = partial(_OTHERS[name])
    return make(parameters, lr=lr, weight_decay=weight_decay)
