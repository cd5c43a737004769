"""What is known about loss functions: how they weigh a batch, and which labels they accept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hessian_spectrum.batches import Minibatches, leading_size
from hessian_spectrum.errors import InputError

LABELLED = (nn.CrossEntropyLoss, nn.NLLLoss)  # targets are class indices
LABELLED_FUNCTIONS = (F.cross_entropy, F.nll_loss)


def takes_labels(loss_fn: Callable) -> bool:
    return isinstance(loss_fn, LABELLED) or loss_fn in LABELLED_FUNCTIONS


def placed(loss_fn: Callable, dtype: torch.dtype, device: torch.device) -> Callable:
    """A loss module's own copy on the device (class weights); functions as they are."""
    if isinstance(loss_fn, nn.Module):
        return copy.deepcopy(loss_fn).to(device, dtype)
    return loss_fn


def pair_forward(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


def default_count(loss_fn: Callable, is_pair: bool) -> Callable[[Any], float]:
    """A batch's weight: by what the mean over it was divided.

    Samples; for cross entropy over class indices, the targets that are not ignored, each
    with its class weight, as torch's mean reduction counts them.
    """
    if not (is_pair and takes_labels(loss_fn)):
        return leading_size
    ignore_index = getattr(loss_fn, "ignore_index", -100)
    weight = getattr(loss_fn, "weight", None)

    def count(batch: Any) -> float:
        labels = batch[1]
        if labels.is_floating_point():  # class probabilities
            return leading_size(batch)
        labels = labels[labels != ignore_index]
        if weight is None:
            return labels.numel()
        return weight.detach().double().to(labels.device)[labels].sum().item()

    return count


def with_int64_labels(batches: Minibatches, loss_fn: Callable) -> Minibatches:
    """Class indices of any integer type as the int64 that torch's cross entropy wants."""
    if not takes_labels(loss_fn):
        return batches

    def convert(batch):
        if _is_labelled(batch) and batch[1].dtype != torch.int64:
            return batch[0], batch[1].long()
        return batch

    if batches.kept:
        kept = [convert(batch) for batch in batches]
        return Minibatches(lambda: iter(kept), True)
    return replace(batches, read=lambda: map(convert, batches.read()))


def check_labels(loss_fn: Callable, shape: Sequence[int], batch: Any, index: int) -> None:
    """Refuse class indices that the outputs have no entry for: on a GPU they end the process.

    Args:
        shape: of the outputs of any batch, (B, C, ...) or (C,).
        index: of the minibatch, for the message.
    """
    if not (takes_labels(loss_fn) and _is_labelled(batch)):
        return
    labels = batch[1]
    labels = labels[labels != getattr(loss_fn, "ignore_index", -100)]
    classes = shape[min(1, len(shape) - 1)]
    if labels.numel() and (labels.min() < 0 or labels.max() >= classes):
        wrong = labels.min().item() if labels.min() < 0 else labels.max().item()
        raise InputError(
            f"minibatch {index} has the label {wrong}, but the model has {classes} outputs: labels "
            f"must lie in 0..{classes - 1}; give the model one output a class, or mend the labels"
        )


def _is_labelled(batch: Any) -> bool:
    return (
        isinstance(batch, (tuple, list))
        and len(batch) == 2
        and isinstance(batch[1], Tensor)
        and not batch[1].is_floating_point()
    )
