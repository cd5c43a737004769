"""Refusal of data whose items are minibatches where single samples are expected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data._utils.collate import default_collate

from hessian_spectrum._core.errors import InputError, is_out_of_memory
from hessian_spectrum.loss.additivity import close
from hessian_spectrum.loss.batching import cast
from hessian_spectrum.loss.functional import LossFunction


def refuse(function: LossFunction, data: Any) -> None:
    """InputError if the items of a data set are minibatches. In ``evaluation_mode``.

    An item of inputs and targets of the same length is one sample (a sequence with a target for
    each entry) or a minibatch. It is a minibatch if the loss can be evaluated for it alone, and the
    loss of items that are collated fails or is another number.
    """
    items = _first_items(function, data)
    if not items:
        return
    alone = [_loss(function, item) for item in items]
    if any(value is None for value in alone):
        return
    try:
        together = _loss(function, default_collate(items))
    except RuntimeError:  # of different shapes
        together = None
    mean = sum(value for value in alone if value is not None) / len(alone)
    if together is not None and close(together, torch.as_tensor(mean), function.rounding):
        return
    x, y = items[0]
    raise InputError(
        f"each item of the data is a minibatch, it seems (inputs of shape {tuple(x.shape)}, "
        f"targets of shape {tuple(y.shape)}), where single samples are expected; pass the samples "
        "in two tensors, (torch.cat(inputs), torch.cat(targets)), or "
        "DataLoader(data, batch_size=None)"
    )


def _first_items(function: LossFunction, data: Any) -> list[tuple[Tensor, Tensor]]:
    """Two items, if they may be minibatches; none otherwise."""
    if isinstance(data, DataLoader):
        data = data.dataset if data.batch_size is not None else None
    is_set = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if not function.is_pair or not is_set or isinstance(data, (TensorDataset, IterableDataset)):
        return []
    if isinstance(data, dict) or not len(data) or not _may_be_minibatch(first := data[0]):
        return []
    items = [first, *(data[i] for i in range(1, min(2, len(data))))]
    return items if all(map(_may_be_minibatch, items)) else []


def _may_be_minibatch(item: Any) -> bool:
    if not (isinstance(item, (tuple, list)) and len(item) == 2):
        return False
    x, y = item
    are_tensors = isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim and y.ndim
    return bool(are_tensors) and len(x) == len(y) > 1


def _loss(function: LossFunction, batch: Any) -> Tensor | None:
    """The batch's loss, divided by its weight; None if it cannot be evaluated."""
    try:
        x, y = cast(batch, function.dtype)
        batch = (x.to(function.device), y.to(function.device))
        with function.noting_casts():
            value = function.loss(function.theta, batch, function.constants()).detach().double()
        weight = function.weight(batch)
        return value * function.scale(batch) / weight if weight else None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None
