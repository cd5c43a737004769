"""Cross entropy over many classes with few copies of the logits.

torch's own keeps the logits' log-softmax, gradient and several products of them: at the peak of a
Hessian product eight tensors as large as the logits, more than all else in a language model. Here
the derivatives are written in closed form. With p = softmax(z) and one-hot labels y::

    loss = sum_t w_t (logsumexp(z_t) - z_t[y_t]),   slope_t = g w_t (p_t - y_t),
    d slope_t = g w_t (p_t u_t - p_t <p_t, u_t>)

so that the logits themselves and the slope are all that is kept. Under torch.func the same loss is
written with logsumexp, which keeps one tensor more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MANY_CLASSES = 4096  # with fewer, torch's own takes no more memory that matters
BLOCK = 1 << 20  # logits whose exponentials are in memory at once


class LeanCrossEntropy(TorchFunctionMode):
    """While active, replaces F.cross_entropy over many classes by this module's."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func is F.cross_entropy and is_large(*args, **kwargs):
            return cross_entropy(*args, **kwargs)
        return func(*args, **kwargs)


def is_large(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> bool:
    """Do these arguments of F.cross_entropy have many classes, in a form supported here?"""
    return (
        input.ndim > 1
        and input.shape[1] >= MANY_CLASSES
        and not target.is_floating_point()
        and not label_smoothing
        and size_average is None
        and reduce is None
        and reduction in ("mean", "sum")
        and input.dtype in (torch.float32, torch.float64)
    )


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Twice differentiable F.cross_entropy of logits (N, C, ...) and class indices (N, ...).

    Memory beside the logits: their gradient, and in a product as much for each vector.
    """
    logits = input.movedim(1, -1).reshape(-1, input.shape[1])
    labels = target.reshape(-1)
    counted = labels != ignore_index
    labels = labels.where(counted, 0)
    weights = counted.to(input.dtype)
    if weight is not None:
        weights = weights * weight[labels]
    if peek_interpreter_stack() is None:
        total, _ = _CrossEntropy.apply(logits, labels, weights)
    else:  # torch.func records and batches elementary operations only
        total = (weights * (logits.logsumexp(1) - _at(logits, labels))).sum()
    return total / weights.sum() if reduction == "mean" else total


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(z: Tensor, labels: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        lse = torch.cat([z[rows].logsumexp(1) for rows in _blocks(z)])
        return (w * (lse - _at(z, labels))).sum(), lse

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx, g: Tensor, _: Any) -> tuple[Tensor, None, None]:
        return _Slope.apply(*ctx.saved_tensors, g), None, None


class _Slope(torch.autograd.Function):
    """g w (softmax(z) - one hot), the gradient of g times the loss."""

    @staticmethod
    def forward(z: Tensor, labels: Tensor, w: Tensor, lse: Tensor, g: Tensor) -> Tensor:
        out = torch.empty_like(z)
        for rows in _blocks(z):
            torch.sub(z[rows], lse[rows, None], out=out[rows]).exp_()
        return out.scatter_add_(1, labels[:, None], -torch.ones_like(z[:, :1])).mul_(
            (g * w)[:, None]
        )

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, u: Tensor) -> tuple[Tensor | None, ...]:
        z, labels, w, lse, g = ctx.saved_tensors
        out, along = torch.empty_like(u), []
        for rows in _blocks(z):
            p = (z[rows] - lse[rows, None]).exp()
            weighted = p * u[rows]
            along.append(weighted.sum(1))
            out[rows] = (weighted - p * along[-1][:, None]) * (g * w[rows])[:, None]
        by_g = None
        if ctx.needs_input_grad[4]:
            by_g = (w * (torch.cat(along) - _at(u, labels))).sum()
        return out, None, None, None, by_g


def _blocks(z: Tensor) -> Iterator[slice]:
    rows = max(1, BLOCK // z.shape[1])
    return (slice(i, i + rows) for i in range(0, len(z), rows))


def _at(z: Tensor, labels: Tensor) -> Tensor:
    return z.gather(1, labels[:, None])[:, 0]
