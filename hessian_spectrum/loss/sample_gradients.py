"""Gradients of random minibatches, drawn from the samples of all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.loss.batching import join, leading_size, size_in_bytes, take
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.gradient import gradient

Indices = NDArray[np.int64]


def draw(num_samples: int, size: int, seed: int, index: int) -> Indices:
    """Minibatch ``index``: ``size`` of the samples 0..num_samples-1, ascending, shape (size,).

    Without replacement: the samples with the smallest random keys from (seed, size, index), so that
    every set of that size is equally likely. NumPy guarantees the bits of the keys for all its
    versions, but not those of ``choice``.
    """
    keys = np.random.Philox(np.random.SeedSequence([seed, size, index])).random_raw(num_samples)
    return np.sort(np.argsort(keys, kind="stable")[:size])


def numbers(evaluator: Evaluator) -> list[Indices]:
    """The global numbers of this rank's samples, an array for each minibatch.

    A sample has the same number at every world size. Called by every rank; reads the data once.
    """
    sizes = [leading_size(batch) for batch in evaluator.batches]
    everyone = evaluator.world.gather_objects(sizes)
    places = [(rank, i) for rank, own in enumerate(everyone) for i in range(len(own))]
    if evaluator.batches.interleaved:
        places.sort(key=lambda place: place[::-1])  # batch i of each rank in turn
    starts = np.cumsum([0] + [everyone[rank][i] for rank, i in places])
    start = dict(zip(places, starts.tolist()))
    rank = evaluator.world.rank
    return [np.arange(start[rank, i], start[rank, i] + size) for i, size in enumerate(sizes)]


def minibatch_gradients(
    evaluator: Evaluator,
    theta: Tensor,
    minibatches: Sequence[Indices],
    own: Sequence[Indices],
    memory: int = 1 << 28,
) -> Tensor:
    """Each minibatch's gradient of the mean loss over it, weight decay included: (k, n_local).

    Weighted as the loss is: a mean over samples, or over targets that are not ignored. A minibatch
    without any has the gradient NaN.

    Args:
        minibatches: numbers of samples, ascending, the same on every rank.
        own: ``numbers(evaluator)``.
        memory: bytes of copied samples at most, beyond those of one minibatch of the evaluator.

    Raises:
        InputError: samples cannot be told apart, or their losses are no functions of them alone.

    Cost: the gradients of those samples, each on the rank that holds it; one reading of the data;
    (k, n) numbers on each rank, and one reduce-scatter of them.
    """
    if evaluator.is_whole:
        raise InputError(
            "batch_norm='train': samples are normalized with their minibatch, so that other "
            "minibatches are another loss; use batch_norm='eval' or 'recalibrate'"
        )
    layout, world = evaluator.layout, evaluator.world
    total = theta.new_zeros(len(minibatches), evaluator.n)
    weights = torch.zeros(len(minibatches), dtype=torch.float64, device=world.device)
    statistics = evaluator.statistics(theta)

    def add_gradients() -> None:
        with evaluator.evaluation_mode():
            constants = evaluator.function.constants(statistics=statistics)
            for index, batch in _samples(evaluator, minibatches, own, memory):
                weight = evaluator.function.weight(batch)
                if weight:  # all targets ignored: the mean over none is NaN
                    total[index] += gradient(evaluator.part(batch, constants), theta)
                    weights[index] += weight

    together(world, add_gradients)
    # A Part is divided by the weight of all samples. A minibatch of weight 0 gives NaN.
    shares = evaluator.total_weight / world.sum(weights)
    local = layout.reduce(total) * shares.to(theta)[:, None]
    return local.add_(theta[layout.start : layout.stop], alpha=evaluator.weight_decay)


def _samples(
    evaluator: Evaluator, minibatches: Sequence[Indices], own: Sequence[Indices], memory: int
) -> Iterator[tuple[int, Any]]:
    """(index of a minibatch, some of its samples on this rank), until all samples were yielded.

    The samples of a minibatch are scattered over the evaluator's minibatches; they are collected,
    since evaluating few at a time is slow.
    """
    waiting: list[list[Any]] = [[] for _ in minibatches]
    most = max((len(numbers) for numbers in own), default=0)
    used = 0
    for batch, here in zip(evaluator.batches, own):
        for index, chosen in enumerate(minibatches):
            rows = _among(here, chosen)
            if not len(rows):
                continue
            waiting[index].append(_taken(batch, rows))
            if sum(map(leading_size, waiting[index])) >= most:
                yield from _flushed(waiting, index)
        used = sum(size_in_bytes(batch) for batches in waiting for batch in batches)
        if used > memory:
            for index in range(len(waiting)):
                yield from _flushed(waiting, index)
    for index in range(len(waiting)):
        yield from _flushed(waiting, index)


def _among(here: Indices, chosen: Indices) -> list[int]:
    """Rows of a batch of consecutive numbers that were chosen."""
    if not len(here):
        return []
    first, last = np.searchsorted(chosen, [here[0], here[-1] + 1])
    return (chosen[first:last] - here[0]).tolist()


def _taken(batch: Any, rows: list[int]) -> Any:
    if len(rows) == leading_size(batch):
        return batch
    samples = take(batch, rows)
    if samples is None:
        raise InputError(
            "a batch cannot be divided into samples (a leaf whose first dimension is not that of "
            "the first one, as in graphs), so that no other minibatches can be drawn from it"
        )
    return samples


def _flushed(waiting: list[list[Any]], index: int) -> Iterator[tuple[int, Any]]:
    batches, waiting[index] = waiting[index], []
    if batches:
        yield from ((index, batch) for batch in join(batches))
