"""Read, check and weigh this rank's share of the data, when an evaluator is constructed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import agreed
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss import batch_norm as normalization
from hessian_spectrum.loss import (
    criteria,
    digests,
    fallbacks,
    gradient_check,
    loaders,
    ready_batches,
    validation,
)
from hessian_spectrum.loss.difference_arithmetic import DifferenceArithmetic, arithmetic_of
from hessian_spectrum.loss.functional import LossFunction
from hessian_spectrum.loss.loaders import Minibatches
from hessian_spectrum.loss.samples import Piece


@dataclass(frozen=True)
class Share:
    """This rank's minibatches, and the results of a first pass over them."""

    batches: Minibatches
    weight: float
    num_samples: int
    num_minibatches: int
    num_undivided: (
        int  # minibatches that cannot be divided; their weight is the length of the first leaf
    )
    fallbacks: tuple[str, ...]  # replaced kernels, in words
    samples: tuple[Piece, ...]  # a few, on which derivatives are checked
    arithmetic: DifferenceArithmetic  # in which they are
    gradient_unverified: str | None  # why the check of the gradient concluded nothing


def read(
    function: LossFunction, data: Any, batch_size: int, world: World, data_is_local: bool
) -> Share:
    """This rank's share of the data, after the checks of ``validation``; sets the function's
    ``large_softmax``. Called by every rank. One exchange of small objects.

    Raises:
        InputError: on every rank, if the model, the data or the loss is refused on one, or if ranks
            were given different data, unless each was given its share.
    """

    return agreed(
        world,
        lambda: _read(function, data, batch_size, world, data_is_local),
        lambda _: {} if data_is_local else digests.of_source(data),
    )


def _read(
    function: LossFunction, data: Any, batch_size: int, world: World, data_is_local: bool
) -> Share:
    devices = [function.device] if function.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # a model that is refused may have drawn numbers
        validation.finite_parameters(function.model)
        if function.is_whole:
            loaders.refuse_shuffled(data, normalization.layers(function.model))
        with function.evaluation_mode():
            ready_batches.refuse(function, data)
        batches = loaders.deal(
            data, batch_size, world, function.dtype, data_is_local, whole=function.is_whole
        )
        if function.is_pair:
            batches = criteria.with_int64_labels(batches, function.loss_fn)
        with function.evaluation_mode():  # not no_grad: losses may hold derivatives
            found = validation.check(function, batches)
        function.large_softmax, function.weight_norm = found.large_softmax, found.weight_norm
        function.embeddings |= found.embeddings
        with function.evaluation_mode():
            arithmetic = arithmetic_of(function, found.chosen)
            unverified = gradient_check.check_gradient(function, found.chosen, arithmetic)
    return Share(
        batches,
        found.weight,
        found.samples,
        found.minibatches,
        found.undivided,
        fallbacks.found(function.model, found.attention, found.weight_norm),
        found.chosen,
        arithmetic,
        unverified,
    )


def totals(share: Share, world: World, is_counted: bool) -> tuple[float, float]:
    """(W, N): weight and number of the samples of all ranks. One small reduction.

    Args:
        is_counted: the user's ``count`` gives the weight of a batch.

    Raises:
        InputError: there are no samples, or their weight is unknown.
    """
    own = [share.weight, share.num_samples, share.num_minibatches, share.num_undivided]
    sums = world.sum(torch.tensor(own, dtype=torch.float64, device=world.device))
    weight, samples, number, undivided = sums.tolist()
    if number > 1 and undivided and not is_counted:
        raise InputError(
            "the batches cannot be divided into samples, so that their weights are unknown (a "
            "leaf whose first dimension is not that of the first one, as in graphs); pass "
            "count=, the number of samples or targets in a batch"
        )
    if not weight > 0:
        raise InputError("the data set is empty: the samples' weights add up to 0")
    return weight, samples
