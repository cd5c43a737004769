"""Construction of an evaluator's data: this rank's share, dealt, checked and weighed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss import batch_norm as normalization
from hessian_spectrum.loss import criteria, fallbacks, loaders, validation
from hessian_spectrum.loss.functional import LossFunction
from hessian_spectrum.loss.loaders import Minibatches


@dataclass(frozen=True)
class Share:
    """This rank's minibatches, and what a first pass over them has found."""

    batches: Minibatches
    weight: float
    num_samples: int
    num_minibatches: int
    num_undivided: int  # minibatches that cannot be cut, and are weighed by their first leaf
    fallbacks: tuple[str, ...]  # kernels that are replaced, in words


def read(
    function: LossFunction, data: Any, batch_size: int, world: World, data_is_local: bool
) -> Share:
    """This rank's share of the data, after the checks of ``validation``; sets the function's
    ``large_softmax``. Called by every rank.

    Raises:
        InputError: on every rank, where one refuses its model, data or loss.
    """
    return together(world, lambda: _read(function, data, batch_size, world, data_is_local))


def _read(
    function: LossFunction, data: Any, batch_size: int, world: World, data_is_local: bool
) -> Share:
    devices = [function.device] if function.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # what is refused may have drawn numbers
        validation.finite_parameters(function.model)
        if function.is_whole:
            loaders.refuse_shuffled(data, normalization.layers(function.model))
        batches = loaders.deal(
            data, batch_size, world, function.dtype, data_is_local, whole=function.is_whole
        )
        if function.is_pair:
            batches = criteria.with_int64_labels(batches, function.loss_fn)
        with function.evaluation_mode():  # not no_grad: losses may hold derivatives
            found = validation.check(function, batches)
    function.large_softmax = found.large_softmax
    return Share(
        batches,
        found.weight,
        found.samples,
        found.minibatches,
        found.undivided,
        fallbacks.found(function.model, found.attention),
    )


def totals(share: Share, world: World, is_counted: bool) -> tuple[float, float]:
    """(W, N): weight and number of the samples of all ranks. One small reduction.

    Args:
        is_counted: the user says what a batch weighs.

    Raises:
        InputError: there are no samples, or what they weigh cannot be known.
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
