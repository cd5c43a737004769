"""BatchNorm in a loss that is one function of theta: which statistics it normalizes by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hessian_spectrum._core.errors import InputError

if TYPE_CHECKING:
    from hessian_spectrum.loss.evaluator import Evaluator

BATCH_NORM = ("eval", "train", "recalibrate")


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The model's BatchNorm layers by name, in the order in which they are registered."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and "Instance" not in type(module).__name__
    }


def described(found: dict[str, nn.Module]) -> str:
    """``bn1 (BatchNorm2d) and 19 more``."""
    name, module = next(iter(found.items()))
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{name or 'the model itself'} ({type(module).__name__}){more}"


def check(model: nn.Module, batch_norm: str) -> None:
    """InputError where the model's layers cannot be evaluated in this way."""
    if batch_norm not in BATCH_NORM:
        raise InputError(
            f"batch_norm={batch_norm!r}: expected 'eval' (running statistics), 'train' (those of "
            "each minibatch) or 'recalibrate' (those of all the data, at these parameters)"
        )
    if batch_norm != "eval" and not layers(model):
        raise InputError(
            f"batch_norm={batch_norm!r}, but the model has no BatchNorm layer of torch.nn; leave "
            "it out, or build the model from those layers"
        )
    for name, module in layers(model).items():
        if batch_norm == "train" and isinstance(module, nn.SyncBatchNorm):
            raise InputError(
                f"batch_norm='train': {name} (SyncBatchNorm) would mix the statistics of ranks; "
                "use BatchNorm, or batch_norm='eval' or 'recalibrate'"
            )
        if batch_norm == "recalibrate" and module.running_mean is None:
            raise InputError(
                f"batch_norm='recalibrate': {name} ({type(module).__name__}) has no running "
                "statistics to recompute; give it track_running_stats=True, or use "
                "batch_norm='train'"
            )


@contextmanager
def by_batch(model: nn.Module) -> Iterator[None]:
    """BatchNorm normalizes by the minibatch's own statistics, and updates none."""
    found = list(layers(model).values())
    before = [(module.training, module.track_running_stats) for module in found]
    try:
        for module in found:
            module.training, module.track_running_stats = True, False
        yield
    finally:
        for module, (training, tracking) in zip(found, before):
            module.training, module.track_running_stats = training, tracking


def population_statistics(ev: Evaluator, theta: Tensor) -> dict[str, Tensor]:
    """Mean and variance of each BatchNorm layer's inputs over all the data, at theta.

    Those of a layer depend on those of the layers before it, so the layers are visited in the order
    of their use: one forward pass each, on every rank. With the whole data in one minibatch they
    are the statistics of train mode; they do not depend on how the samples are batched.

    Returns:
        Buffers by name (``model.NAME.running_mean``, ``model.NAME.running_var``), (channels,).
    """
    found: dict[str, Tensor] = {}
    for name in _in_order_of_use(ev, theta):
        moments = _moments(ev, theta, name, found)
        mean, square = moments[1] / moments[0], moments[2] / moments[0]
        variance = (square - mean.square()).clamp(min=0.0)
        found[f"model.{name}.running_mean"] = mean.to(ev.dtype)
        found[f"model.{name}.running_var"] = variance.to(ev.dtype)
    return found


def _in_order_of_use(ev: Evaluator, theta: Tensor) -> list[str]:
    """Names of the layers that the first minibatch passes; the same on every rank."""
    names = {module: name for name, module in layers(ev.model).items()}
    used: list[str] = []

    def enter(module: nn.Module, _: Any) -> None:
        used.append(names[module])

    handles = [module.register_forward_pre_hook(enter) for module in names]
    error = None
    try:
        with ev.evaluation_mode():
            batch = next(iter(ev.batches), None)
            if batch is not None:
                ev.batch_outputs(theta, batch, ev.constants())
    finally:
        for handle in handles:
            handle.remove()
    twice = next((name for name in used if used.count(name) > 1), None)
    if twice is not None:
        error = InputError(
            f"batch_norm='recalibrate': the layer {twice} is used more than once in an evaluation, "
            "so that its statistics would depend on themselves; use batch_norm='eval' or 'train'"
        )
    ev.world.raise_together(error)
    # A rank without data has seen no order; every rank takes that of the first one that has.
    return next((order for order in ev.world.gather_objects(used) if order), [])


def _moments(ev: Evaluator, theta: Tensor, name: str, found: dict[str, Tensor]) -> Tensor:
    """Number, sum and sum of squares of a layer's inputs by channel, (3, channels), float64."""
    module = layers(ev.model)[name]
    total = torch.zeros(3, module.num_features, dtype=torch.float64, device=ev.device)

    def enter(module: nn.Module, inputs: tuple) -> None:
        # (N, C, ...) or (C,): channels first, everything else is a sample of them.
        x = inputs[0].detach().double()
        x = x.movedim(1, 0).reshape(module.num_features, -1)
        total[0] += x.shape[1]
        total[1] += x.sum(1)
        total[2] += x.square().sum(1)

    handle = module.register_forward_pre_hook(enter)
    try:
        with ev.evaluation_mode():
            constants = {**ev.constants(), **found}
            for batch in ev.batches:  # also those that weigh nothing: all targets ignored
                ev.batch_outputs(theta, batch, constants)
    finally:
        handle.remove()
    ev.counts.passes += 1
    return ev.world.sum(total)
