"""BatchNorm by the statistics of a minibatch that several ranks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss import batch_norm
from hessian_spectrum.zoo.data_parallel import Share


@contextmanager
def synchronized(model: nn.Module, world: World, share: Share) -> Iterator[None]:
    """Inside, layers in training mode normalize by the whole minibatch, on every rank.

    Running statistics are those of the whole minibatch, too. torch's SyncBatchNorm has no form for
    CPUs. Forward and backward passes are collective. One rank alone does what torch does.

    Cost: for each layer two reductions forward and two backward, of one vector of its channels.
    """
    layers = list(batch_norm.layers(model).values()) if world.size > 1 else []
    for layer in layers:
        layer.forward = partial(_forward, layer, world, share)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: _NormBase, world: World, share: Share, x: Tensor) -> Tensor:
    if not (layer.training or layer.running_mean is None):
        return type(layer).forward(layer, x)
    over = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    count = x.numel() // x.shape[1] // share.rows * share.total  # of values for each channel
    if count < 2:
        raise ValueError(f"BatchNorm needs more than 1 value per channel, got {tuple(x.shape)}")
    counted = float(share.counts)
    mean = _Sum.apply(counted * x.sum(over), world) / count
    centred = x - _seen(mean, share).view(shape)
    variance = _Sum.apply(counted * centred.square().sum(over), world) / count
    if layer.training and layer.track_running_stats:
        _update(layer, mean.detach(), variance.detach() * (count / (count - 1)))
    y = centred * (_seen(variance, share) + layer.eps).rsqrt().view(shape)
    if layer.weight is None:
        return y
    return y * layer.weight.view(shape) + layer.bias.view(shape)


def _seen(statistics: Tensor, share: Share) -> Tensor:
    """The same numbers; a sample that does not count has no part in their gradient.

    A loss of single samples, as of adversarial examples, has no weights. The graph stays, since
    its reductions are those of all ranks.
    """
    return statistics if share.counts else 0.0 * statistics + statistics.detach()


def _update(layer: _NormBase, mean: Tensor, unbiased: Tensor) -> None:
    assert layer.running_mean is not None and layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    seen = float(layer.num_batches_tracked)
    rate = 1 / seen if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean, rate)
    layer.running_var.lerp_(unbiased, rate)


class _Sum(torch.autograd.Function):
    """The sum over ranks. Each rank's loss depends on it, so that its gradient is a sum, too."""

    @staticmethod
    def forward(x: Tensor, world: World) -> Tensor:
        return world.sum(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, World], output: Tensor) -> None:
        ctx.world = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.world), None  # also inside torch.func.grad
