"""All-gather and reduce-scatter of plain shards with derivatives of every order.

Each is the other's derivative, in reverse mode and, being linear, its own in forward mode. torch's
own (DTensor's, those of FSDP2) have a first derivative, some a wrong second one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hessian_spectrum.distributed.world import World


class Gather(torch.autograd.Function):
    """(c,) on each of P ranks -> (P c,) on all, in ``dtype``; the sum over ranks is linear in it.

    Its derivative is ``Scatter``: of a function that is a sum over ranks, whose terms see the whole
    tensor, this rank's entries of the gradient.
    """

    @staticmethod
    def forward(shard: Tensor, world: World, dtype: torch.dtype) -> Tensor:
        gathered = world.all_gather_rows(shard.to(dtype)[None])[0]
        # One rank alone: autograd must not be given its input back.
        return gathered.clone() if gathered.data_ptr() == shard.data_ptr() else gathered

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        shard, ctx.world, ctx.dtype = inputs
        ctx.own = shard.dtype

    @staticmethod
    def backward(ctx: Any, whole: Tensor) -> Any:
        return Scatter.apply(whole, ctx.world, ctx.own), None, None

    @staticmethod
    def jvp(ctx: Any, shard: Tensor, *_: Any) -> Any:
        return Gather.apply(shard, ctx.world, ctx.dtype)


class Scatter(torch.autograd.Function):
    """(P c,) on each of P ranks -> this rank's (c,) of their sum, formed in ``dtype``."""

    @staticmethod
    def forward(whole: Tensor, world: World, dtype: torch.dtype) -> Tensor:
        share = world.reduce_scatter_rows(whole.to(dtype)[None])[0]
        return share.clone() if share.data_ptr() == whole.data_ptr() else share

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        whole, ctx.world, ctx.dtype = inputs
        ctx.own = whole.dtype

    @staticmethod
    def backward(ctx: Any, shard: Tensor) -> Any:
        return Gather.apply(shard, ctx.world, ctx.own), None, None

    @staticmethod
    def jvp(ctx: Any, whole: Tensor, *_: Any) -> Any:
        return Scatter.apply(whole, ctx.world, ctx.dtype)
