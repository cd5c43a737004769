"""Checks of theta, of the model's tensors, of the data, and of the values of the loss."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hessian_spectrum._core.errors import InputError, in_one_line, is_out_of_memory
from hessian_spectrum.distributed.arrays import as_tensor
from hessian_spectrum.loss import criteria, fallbacks
from hessian_spectrum.loss.additivity import require_mean, require_mean_of_two
from hessian_spectrum.loss.batching import leading_size, split, tensors_of
from hessian_spectrum.loss.determinism import require_determinism, with_unchanged_inputs
from hessian_spectrum.loss.functional import LossFunction
from hessian_spectrum.loss.loaders import Minibatches
from hessian_spectrum.loss.samples import Piece, Samples


def vector_of(theta: Any) -> Tensor:
    """A tensor as it is; arrays and lists of numbers as a tensor, a copy."""
    try:
        vector = as_tensor(theta)
    except InputError:
        raise InputError(
            f"theta is a {type(theta).__name__}; expected a parameter vector, such as "
            "Evaluator.theta after zoo.load_checkpoint"
        ) from None
    return vector if vector.is_floating_point() or isinstance(theta, Tensor) else vector.double()


def checked_vector(theta: Any, n: int, many: bool = False) -> Tensor:
    """``theta`` as a detached tensor of shape (n,), or, with ``many``, (p, n)."""
    theta = vector_of(theta)
    if theta.shape[-1:] != (n,) or theta.ndim > 1 + many:
        raise InputError(
            f"theta has shape {tuple(theta.shape)}; expected ({n},)"
            + (f" or (points, {n})" if many else "")
        )
    return theta.detach()


def finite_parameters(model: nn.Module) -> None:
    """InputError if a parameter or buffer is not finite, or a parameter is complex."""
    for kind, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, t in tensors:
            if t.is_complex() and kind == "parameter":
                raise InputError(
                    f"the parameter {name} is complex; give the model its real and imaginary parts "
                    "as real parameters"
                )
            if t.is_floating_point() and not t.isfinite().all():
                bad = (~t.isfinite()).sum().item()
                raise InputError(
                    f"the model's {kind} {name} has {bad} entries that are NaN or infinite (of "
                    f"{t.numel()}); did the training diverge? Use an earlier checkpoint"
                )


class Found(NamedTuple):
    """What a pass over this rank's share of the data has found."""

    weight: float = 0.0
    samples: int = 0
    minibatches: int = 0
    undivided: int = 0  # minibatches that cannot be divided, weighed by their first leaf
    attention: bool = False  # torch's own attention is called
    large_softmax: bool = False  # cross entropy has so many classes that ours takes less memory
    weight_norm: bool = False  # torch's own weight normalization is called
    embeddings: bool = False  # lookups have options that change gradients only
    chosen: tuple[Piece, ...] = ()  # a few samples of the whole share


def check(function: LossFunction, batches: Minibatches) -> Found:
    """One pass over this rank's minibatches, inside ``evaluation_mode``.

    First the data are checked, then the loss: is it a pure function, and a mean over samples?

    Raises:
        InputError: what is wrong, with the number of the minibatch, and what to do.
    """
    found, shape, deterministic, first = Found(), None, False, None
    samples = Samples(function)
    for index, batch in enumerate(batches):
        require_usable(function, batch, index)
        if function.is_pair and shape is None:
            with fallbacks.Watch():  # which refuses, with the cause, what fails elsewhere
                outputs = with_unchanged_inputs(batch, partial(_outputs, function))
            shape = getattr(outputs, "shape", ())
            criteria.check_shapes(function.loss_fn, outputs, batch)
        if shape:
            criteria.check_labels(function.loss_fn, shape, batch, index)
        weight = weight_of(function, batch, index)
        found = found._replace(
            weight=found.weight + weight,
            samples=found.samples + leading_size(batch),
            minibatches=found.minibatches + 1,
            undivided=found.undivided + (function.counts_samples and split(batch, 1) is None),
        )
        if not weight:  # every target is ignored: there is no mean
            continue
        with fallbacks.Watch() as watch, function.noting_casts():
            value = with_unchanged_inputs(batch, partial(_value, function, index))
        found = found._replace(
            attention=found.attention or watch.attention,
            large_softmax=found.large_softmax or watch.large_softmax,
            weight_norm=found.weight_norm or watch.weight_norm,
            embeddings=found.embeddings or watch.embeddings,
        )
        require_value(function, value, index)
        if not deterministic:
            require_determinism(function, batch)
            deterministic = True
        if not function.is_whole:  # else the loss depends on the minibatches
            require_mean(function, batch, value, index)
            if first is not None and function.counts_samples:
                require_mean_of_two(function, first, batch, index)
            first = batch if first is None else first
        samples.offer(index, batch)
    return found._replace(chosen=tuple(samples.pieces()))


def require_usable(function: LossFunction, batch: Any, index: int) -> None:
    """InputError unless the batch has the structure that is expected, and finite tensors."""
    _structure(batch, function.is_pair)
    _has_tensors(batch)
    _finite_leaves(batch, index)


def weight_of(function: LossFunction, batch: Any, index: int) -> float:
    """The batch's weight; InputError if it has none."""
    try:
        weight = function.weight(batch)
    except Exception as error:
        raise InputError(
            f"the weight of minibatch {index} cannot be found: {in_one_line(error)}"
        ) from error
    if not 0 <= weight < math.inf:
        raise InputError(f"count gave minibatch {index} the weight {weight}; expected 0 or more")
    return weight


def _structure(batch: Any, is_pair: bool) -> None:
    if is_pair and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list, dict)) else ""
        raise InputError(
            f"a batch is a {type(batch).__name__}{size}; without forward= it must be a pair "
            "(inputs, targets); pass forward(model, batch), and loss_fn(outputs, batch)"
        )


def _has_tensors(batch: Any) -> None:
    if not tensors_of(batch):
        raise InputError(
            f"a batch is a {type(batch).__name__} in which no tensor can be found; batches are "
            "tensors in tuples, lists, dicts, UserDicts or dataclasses: let the data set or "
            "collate_fn return one of these"
        )


def _finite_leaves(batch: Any, index: int) -> None:
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.isfinite().all():
            raise InputError(
                f"minibatch {index} of the data has NaN or infinite values in a tensor of shape "
                f"{tuple(leaf.shape)}; remove or mend those samples"
            )


def _outputs(function: LossFunction, batch: Any) -> Any:
    """The model's outputs; if it fails on this data, an InputError."""
    try:
        return function.outputs(function.theta, batch, function.constants())
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, InputError):
            raise
        shape = tuple(getattr(batch[0], "shape", ()))
        raise InputError(
            f"the model cannot evaluate inputs of shape {shape}: {in_one_line(error)}"
        ) from error


def _value(function: LossFunction, index: int, batch: Any) -> Any:
    """The value of loss_fn; if it fails on this data, an InputError."""
    try:
        return function.value(function.theta, batch, function.constants())
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, InputError):
            raise
        raise InputError(
            f"the loss of minibatch {index} cannot be evaluated: {in_one_line(error)}"
        ) from error


def require_value(function: LossFunction, value: Any, index: int) -> None:
    """InputError unless loss_fn has returned what ``reduction`` says, and it is finite."""
    if not isinstance(value, Tensor):
        raise InputError(f"loss_fn returned a {type(value).__name__}; expected a tensor")
    if function.reduction == "none" and value.ndim == 0:
        raise InputError(
            "reduction='none', but loss_fn returned one number for the batch; pass "
            "reduction='mean' or 'sum', whichever it computes"
        )
    if function.reduction != "none" and value.numel() != 1:
        raise InputError(
            f"reduction={function.reduction!r}, but loss_fn returned shape {tuple(value.shape)}; "
            "pass reduction='none' for losses of single samples"
        )
    if not value.isfinite().all():
        raise InputError(
            f"the loss of minibatch {index} is not finite, though parameters and data are: does "
            f"the model overflow in {function.dtype}? Try dtype=torch.float64"
        )
