"""What is known about loss functions: how they weigh a batch, and which labels they accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss.batching import leading_size
from hessian_spectrum.loss.loaders import Minibatches
from hessian_spectrum.loss.squared_error import SquaredError

LABELLED = (nn.CrossEntropyLoss, nn.NLLLoss, SquaredError)  # targets can be class indices
LABELLED_FUNCTIONS = (F.cross_entropy, F.nll_loss)
# Whose mean is that of the entries of reduction="none", but for labels' own weights.
REDUCIBLE = (
    *LABELLED,
    *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.SoftMarginLoss),
    *(nn.BCELoss, nn.BCEWithLogitsLoss, nn.PoissonNLLLoss),
)
REDUCIBLE_FUNCTIONS = (
    *LABELLED_FUNCTIONS,
    *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.soft_margin_loss),
    *(F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.poisson_nll_loss),
)


def takes_labels(loss_fn: Callable) -> bool:
    return isinstance(loss_fn, LABELLED) or loss_fn in LABELLED_FUNCTIONS


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


def of_samples(loss_fn: Callable, outputs: Any, targets: Any, reduction: str, size: int) -> Tensor:
    """The losses of a batch's ``size`` samples, (size,); their sum is the batch's.

    That is: ``reduction="mean"`` times the batch's weight, or the sum.

    Raises:
        InputError: the loss is not known for single samples.
    """
    values = _unreduced(loss_fn, reduction)(outputs, targets)
    if values.ndim == 0 or values.numel() % size:
        raise InputError(
            f"loss_fn gives values of shape {tuple(values.shape)} for {size} samples; expected the "
            "same number for each sample, the samples first"
        )
    by_sample = values.reshape(size, -1).sum(1)
    if reduction == "mean" and not _counts_labels(loss_fn, targets):
        return by_sample * (size / values.numel())  # torch's mean is over all entries
    return by_sample


def _unreduced(loss_fn: Callable, reduction: str) -> Callable:
    if reduction == "none":
        return loss_fn
    if loss_fn in REDUCIBLE_FUNCTIONS:
        return partial(loss_fn, reduction="none")
    if isinstance(loss_fn, REDUCIBLE):

        def unreduced(*arguments):
            before, loss_fn.reduction = loss_fn.reduction, "none"
            try:
                return loss_fn(*arguments)
            finally:
                loss_fn.reduction = before

        return unreduced
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    raise InputError(
        f"the losses of single samples are needed, but {name} returns one number for a batch; let "
        "it return one for each sample and pass reduction='none', or use one of torch's losses "
        "such as nn.CrossEntropyLoss or nn.MSELoss"
    )


def _counts_labels(loss_fn: Callable, targets: Any) -> bool:
    return takes_labels(loss_fn) and not targets.is_floating_point()


def is_negative_log_likelihood(loss_fn: Callable) -> bool:
    """Is the loss, up to a constant, -log p(target | outputs) of a distribution whose natural
    parameters are the outputs: categorical, Bernoulli, Poisson or Gaussian of fixed variance?

    Then the Gauss-Newton matrix is the Fisher matrix (Martens 2020, section 9.2).
    """
    # Not their subclasses, which may compute something else.
    if type(loss_fn) is nn.PoissonNLLLoss:
        return loss_fn.log_input
    if type(loss_fn) in (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss):
        weights = (getattr(loss_fn, name, None) for name in ("weight", "pos_weight"))
        return all(weight is None for weight in weights)
    natural = (F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss)
    return type(loss_fn) in (nn.MSELoss, SquaredError) or loss_fn in natural


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
        return replace(batches, read=lambda: iter(kept))
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


def pairing(outputs: Any, targets: Any) -> str | None:
    """In words, shapes of which an elementwise loss would pair each sample with every other.

    Broadcasting aligns last dimensions: outputs (N, 1) and targets (N,) become (N, N).
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return None
    if outputs.ndim == targets.ndim or not (outputs.ndim and targets.ndim):
        return None
    if not len(outputs) == len(targets) > 1:
        return None
    try:
        both = torch.broadcast_shapes(outputs.shape, targets.shape)
    except RuntimeError:
        return None
    return (
        f"the model's outputs have the shape {tuple(outputs.shape)}, but the targets "
        f"{tuple(targets.shape)}: their difference pairs each sample with every other, "
        f"{tuple(both)}; pass targets of the shape {tuple(outputs.shape)}, as by "
        f"y.view({', '.join(map(str, (-1, *outputs.shape[1:])))}), or let the model return "
        f"{tuple(targets.shape)}"
    )


def check_shapes(loss_fn: Callable, outputs: Any, batch: Any) -> None:
    """Refuse outputs and targets that one of torch's elementwise losses would broadcast."""
    if isinstance(loss_fn, REDUCIBLE) or loss_fn in REDUCIBLE_FUNCTIONS:
        if not takes_labels(loss_fn) and (found := pairing(outputs, batch[1])):
            raise InputError(found)


def is_sample_by_sample(loss_fn: Callable) -> bool:
    """One of torch's own losses that ``of_samples`` knows, whatever the batch."""
    return type(loss_fn) in REDUCIBLE or loss_fn in REDUCIBLE_FUNCTIONS


def labels(loss_fn: Callable, batch: Any) -> Tensor | None:
    """The class indices of a batch that is a pair; None where targets are something else."""
    return batch[1] if takes_labels(loss_fn) and _is_labelled(batch) else None


def _is_labelled(batch: Any) -> bool:
    return (
        isinstance(batch, (tuple, list))
        and len(batch) == 2
        and isinstance(batch[1], Tensor)
        and not batch[1].is_floating_point()
    )
