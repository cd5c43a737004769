"""Checks that the loss of a batch is the weighted mean over its samples, as stated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hessian_spectrum._core.errors import InputError, in_one_line, is_out_of_memory
from hessian_spectrum.loss import batch_norm, criteria, models
from hessian_spectrum.loss.batching import cast, leading_size, split
from hessian_spectrum.loss.functional import LossFunction


def require_mean(function: LossFunction, batch: Any, value: Tensor, index: int) -> None:
    """InputError unless ``value``, the loss of a batch, is the weighted loss of two uneven parts.

    Called for every minibatch, since ignored targets may occur in the last one only.
    """
    size = leading_size(batch)
    parts = split(batch, max(1, size // 3))
    if size < 2 or parts is None:
        return
    try:
        whole = value.double().sum() * function.scale(batch) / function.weight(batch)
        together = _mean(function, parts, function.weight(batch), function.dtype)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"the loss of a part of minibatch {index} ({leading_size(parts[0])} of {size} samples) "
            f"cannot be evaluated: {in_one_line(error)}; "
            + (models.exported(function.model) or "a sum over samples must accept any number")
        ) from error
    if not close(whole, together, function.rounding) and function.dtype != torch.float64:
        # Losses near zero are mostly rounding: decide in float64 where the model can.
        try:
            whole = _mean(function, (batch,), function.weight(batch), torch.float64)
            together = _mean(function, parts, function.weight(batch), torch.float64)
        except RuntimeError:
            pass
    if close(whole, together, function.rounding):
        return
    raise InputError(
        f"the loss of minibatch {index} ({size} samples) is {whole.item():.9g}, but its two parts "
        f"give {together.item():.9g} under reduction={function.reduction!r}; "
        + (_own_norm(function) or _pairing(function, batch) or _other(function, batch, parts))
    )


def _own_norm(function: LossFunction) -> str | None:
    by_batch = {
        n: m for n, m in batch_norm.layers(function.model).items() if m.running_mean is None
    }
    if not by_batch:
        return None
    return (
        f"the layer {batch_norm.described(by_batch)} normalizes by the batch's own statistics: "
        "pass batch_norm='train' if these minibatches are meant, give it "
        "track_running_stats=True, or use GroupNorm"
    )


def _pairing(function: LossFunction, batch: Any) -> str | None:
    if not function.is_pair:
        return None
    outputs = function.outputs(function.theta, batch, function.constants())
    return criteria.pairing(outputs, batch[1])


def _other(function: LossFunction, batch: Any, parts: tuple) -> str:
    """What fits: the other reduction, or none at all."""
    if function.reduction != "none":
        other = "sum" if function.reduction == "mean" else "mean"
        value, first, second = (
            function.loss(function.theta, b, function.constants()).detach().double()
            for b in (batch, *parts)
        )
        a, b = (leading_size(part) / leading_size(batch) for part in parts)
        expected = first + second if other == "sum" else a * first + b * second
        if close(value, expected, function.rounding):
            return f"loss_fn returns the {other} of its samples: pass reduction={other!r}"
    return (
        "state what loss_fn does (reduction='mean', 'sum' or 'none'), or pass count= if it divides "
        "by something else than samples. If the loss of a sample depends on the others in its "
        "minibatch, as a contrastive loss does, let each minibatch be one sample: pass a list of "
        "the minibatches with batch_size=1, reduction='none', and a loss_fn that returns one "
        "number for each of the minibatches in its first dimension"
    )


def require_mean_of_two(function: LossFunction, first: Any, other: Any, index: int) -> None:
    """As ``require_mean``, for samples of two minibatches joined.

    Within a minibatch whose samples all have the same number of targets, a mean over targets that
    are not ignored cannot be told from a mean over samples.
    """
    cut = [split(batch, max(1, leading_size(batch) // 3)) for batch in (first, other)]
    parts = tuple(halves[0] for halves in cut if halves is not None)
    if len(parts) < 2:
        return
    try:
        joined = tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) else a, *parts)
        weight = function.weight(joined)
        whole = _mean(function, (joined,), weight, function.dtype)
        together = _mean(function, parts, weight, function.dtype)
    except Exception as error:  # the samples differ in shape
        if is_out_of_memory(error):
            raise
        return
    if close(whole, together, function.rounding) or not (whole.isfinite() and together.isfinite()):
        return
    raise InputError(
        f"samples of minibatches 0 and {index} together have the loss {whole.item():.9g}, but "
        f"{together.item():.9g} weighted by their numbers: "
        + (
            _pairing(function, joined)
            or "loss_fn divides by something else, such as the number of targets that are not "
            "ignored; pass count=, that number for a batch"
        )
    )


def _mean(function: LossFunction, parts: tuple, weight: float, dtype: torch.dtype) -> Tensor:
    """Sum over the parts' samples, divided by the weight of all."""
    constants, theta = function.constants(dtype), function.theta.to(dtype)

    def total(part):
        scale = function.scale(part)
        if not scale:
            return torch.zeros((), dtype=torch.float64, device=function.device)
        return function.loss(theta, cast(part, dtype), constants).double() * scale

    return sum(map(total, parts)) / weight


def close(a: Tensor, b: Tensor, rounding: float) -> bool:
    """Do they agree to rounding^0.6 of the larger: 7e-5 in float32, 4e-10 in float64?

    Args:
        rounding: ``LossFunction.rounding``, eps of the arithmetic that the loss really has.
    """
    return bool((a - b).abs() <= rounding**0.6 * torch.maximum(a.abs(), b.abs()))
