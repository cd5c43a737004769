"""A small deterministic trainer for classifiers whose data set fits on one device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from hessian_spectrum._core.errors import InputError

_EVALUATION_BATCH = 1024  # samples; affects memory, not results


@dataclass(frozen=True)
class EpochResult:
    """Measurements of one epoch. Training values are running means: each sample before its step."""

    epoch: int  # from 1
    loss: float  # mean cross entropy per sample, without weight decay
    accuracy: float  # fraction of training samples, 0 to 1
    test_accuracy: float | None  # after the epoch, in eval mode; None without test data


OnEpoch = Callable[[EpochResult, nn.Module, torch.optim.Optimizer], None]


def train(
    model: nn.Module,
    dataset: TensorDataset,
    *,
    epochs: int,
    batch_size: int = 64,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    optimizer: str = "sgd",
    seed: int = 0,
    test: TensorDataset | None = None,
    on_epoch: OnEpoch | None = None,
    device: str | torch.device = "cpu",
) -> list[EpochResult]:
    """Minimize the mean cross entropy of ``model`` over ``dataset``, in place.

    Bitwise reproducible for the same model, seed, device and number of threads. The sample order
    has its own generator; torch's global generator is neither read nor advanced.

    Args:
        model: (N, C, H, W) -> (N, classes) logits; moved to ``device``, left in eval mode.
        dataset: inputs (N, C, H, W) and int64 labels (N,), all kept on ``device``.
        epochs: passes over the data.
        batch_size: samples per step; the last step of an epoch takes the remaining ones.
        lr: learning rate.
        momentum: for "sgd"; "adam" ignores it.
        weight_decay: the optimizer's.
        optimizer: "sgd" or "adam".
        seed: of the sample order.
        test: held-out data of the same form, for ``test_accuracy``.
        on_epoch: called with (result, model, optimizer) after every epoch.

    Raises:
        InputError: a setting out of its range, or an empty data set.
        FloatingPointError: the loss or a parameter is not finite; raised before ``on_epoch``, so
            that no checkpoint of that state is written.
    """
    _require_valid(dataset, epochs, batch_size, lr, momentum, weight_decay)
    model.to(device)
    stepper = _optimizer(optimizer, model, lr, momentum, weight_decay)
    shuffle = torch.Generator().manual_seed(seed)
    train_data = _on_device(dataset, device)
    test_data = _on_device(test, device) if test is not None else None
    results = []
    for epoch in range(1, epochs + 1):
        loss, accuracy = _one_epoch(model, stepper, _batches(*train_data, batch_size, shuffle))
        _require_finite(loss, model, epoch, lr)
        test_accuracy = _accuracy(model, *test_data) if test_data else None
        results.append(EpochResult(epoch, loss, accuracy, test_accuracy))
        if on_epoch is not None:
            on_epoch(results[-1], model, stepper)
    return results


def _one_epoch(
    model: nn.Module, stepper: torch.optim.Optimizer, batches: Iterator[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """One step per batch. Returns the running mean loss and accuracy over all samples."""
    model.train()
    # Sums stay on the device: reading them at each step would synchronize.
    loss_sum: float | Tensor = 0.0
    correct: float | Tensor = 0.0
    num_samples = 0
    for x, y in batches:
        outputs = model(x)
        loss = cross_entropy(outputs, y)
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        loss_sum = loss_sum + loss.detach().double() * len(y)
        correct = correct + (outputs.detach().argmax(1) == y).sum()
        num_samples += len(y)
    model.eval()
    return float(loss_sum) / num_samples, int(correct) / num_samples


def _batches(
    inputs: Tensor, labels: Tensor, batch_size: int, shuffle: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(labels), generator=shuffle).to(labels.device)
    for index in order.split(batch_size):
        yield inputs[index], labels[index]


@torch.no_grad()
def _accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    batches = zip(inputs.split(_EVALUATION_BATCH), labels.split(_EVALUATION_BATCH))
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def _optimizer(
    name: str, model: nn.Module, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
        )
    if name == "adam":
        return torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    raise InputError(f"unknown optimizer {name!r}; use one of: sgd, adam")


def _on_device(dataset: TensorDataset, device: str | torch.device) -> tuple[Tensor, Tensor]:
    inputs, labels = dataset.tensors
    return inputs.to(device), labels.to(device)


def _require_valid(
    dataset: TensorDataset,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    if len(dataset) == 0:
        raise InputError("the data set to train on has no samples; expected at least one")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} is {value}; expected a whole number >= 1")
    if not 0 < lr < math.inf:
        raise InputError(f"lr is {lr}; expected a finite learning rate > 0")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum is {momentum}; expected a number >= 0 and < 1")
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"weight_decay is {weight_decay}; expected a finite number >= 0")


def _require_finite(loss: float, model: nn.Module, epoch: int, lr: float) -> None:
    # The last step of an epoch can overflow the parameters after a finite loss.
    if math.isfinite(loss) and all(p.isfinite().all() for p in model.parameters()):
        return
    raise FloatingPointError(
        f"training diverged in epoch {epoch} with lr={lr}: mean loss {loss}, and the loss or a "
        f"parameter is not finite; use a smaller lr, or check that the inputs are finite"
    )
