"""Mean and variance of each BatchNorm layer's inputs over all the data, at given parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import Failures, together
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.batch_norm import layers
from hessian_spectrum.loss.counts import Counts
from hessian_spectrum.loss.functional import LossFunction
from hessian_spectrum.loss.loaders import Minibatches


class Recalibrated:
    """theta -> the BatchNorm buffers of ``batch_norm="recalibrate"``; the latest are cached.

    Called by every rank.
    """

    def __init__(self, function: LossFunction, batches: Minibatches, world: World, counts: Counts):
        self._function, self._batches, self._world = function, batches, world
        self._counts = counts
        self._latest: tuple[Tensor, dict[str, Tensor]] | None = None  # theta, buffers

    def at(self, theta: Tensor) -> dict[str, Tensor]:
        """``population_statistics`` at theta."""
        theta = theta.to(self._function.dtype)
        if self._latest is None or not torch.equal(self._latest[0], theta):
            found = population_statistics(self._function, self._batches, self._world, theta)
            self._counts.passes += len(found) // 2  # mean and variance of a layer in each
            self._latest = theta.clone(), found
        return self._latest[1]


def population_statistics(
    function: LossFunction, batches: Minibatches, world: World, theta: Tensor
) -> dict[str, Tensor]:
    """Mean and variance of each BatchNorm layer's inputs over all the data, at theta.

    The statistics of a layer depend on those of earlier layers, so the layers are visited in the
    order of their use: one forward pass each, on every rank. With the whole data in one minibatch
    they are the statistics of train mode; they do not depend on how the samples are batched.

    Returns:
        Buffers by name (``model.NAME.running_mean``, ``model.NAME.running_var``), (channels,).
    """
    found: dict[str, Tensor] = {}
    for name in _in_order_of_use(function, batches, world, theta):
        moments = _moments(function, batches, world, theta, name, found)
        mean, square = moments[1] / moments[0], moments[2] / moments[0]
        variance = (square - mean.square()).clamp(min=0.0)
        found[f"model.{name}.running_mean"] = mean.to(function.dtype)
        found[f"model.{name}.running_var"] = variance.to(function.dtype)
    return found


def _in_order_of_use(
    function: LossFunction, batches: Minibatches, world: World, theta: Tensor
) -> list[str]:
    """Names of the layers that the first minibatch passes; the same on every rank."""
    names: dict[nn.Module, str] = {m: name for name, m in layers(function.model).items()}
    used: list[str] = []

    def enter(module: nn.Module, _: Any) -> None:
        used.append(names[module])

    def visit() -> None:
        with function.evaluation_mode():
            batch = next(iter(batches), None)
            if batch is not None:
                function.outputs(theta, batch, function.constants())
        twice = next((name for name in used if used.count(name) > 1), None)
        if twice is not None:
            raise InputError(
                f"batch_norm='recalibrate': the layer {twice} is used more than once in an "
                "evaluation, so that its statistics would depend on themselves; use "
                "batch_norm='eval' or 'train'"
            )

    handles = [module.register_forward_pre_hook(enter) for module in names]
    try:
        together(world, visit)
    finally:
        for handle in handles:
            handle.remove()
    # A rank without data knows no order; every rank takes that of the first rank with data.
    return next((order for order in world.gather_objects(used) if order), [])


def _moments(
    function: LossFunction,
    batches: Minibatches,
    world: World,
    theta: Tensor,
    name: str,
    found: dict[str, Tensor],
) -> Tensor:
    """Number, sum and sum of squares of a layer's inputs by channel, (3, channels), float64."""
    module = layers(function.model)[name]
    total = torch.zeros(3, module.num_features, dtype=torch.float64, device=function.device)

    def enter(module: nn.Module, inputs: tuple) -> None:
        # (N, C, ...) or (C,): move channels first; all other entries are samples.
        x = inputs[0].detach().double()
        x = x.movedim(1, 0).reshape(module.num_features, -1)
        total[0] += x.shape[1]
        total[1] += x.sum(1)
        total[2] += x.square().sum(1)

    def visit() -> Tensor:
        with function.evaluation_mode():
            constants = function.constants(statistics=found)
            for batch in batches:  # also batches of weight 0, whose targets are all ignored
                function.outputs(theta, batch, constants)
        return total

    failures = Failures(world)
    handle = module.register_forward_pre_hook(enter)
    try:
        failures.attempt(visit, total)
    finally:
        handle.remove()
    failures.raise_where_not_finite(world.sum(total))
    return total
