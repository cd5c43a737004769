"""This rank's minibatches of a data set: the same ones, in the same order, in every pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)
from torch.utils.data._utils.collate import default_collate

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.memory import available
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss import collation, containers
from hessian_spectrum.loss.batching import size_in_bytes

READ_TWICE = 32  # samples; random flips of each pass unnoticed with probability 2^-32
LOOKED_AT = 4  # batches of a stream that are read twice
KEEP_SHARE = 0.25  # of the free memory of the device: data that fits into it stays there


@dataclass(frozen=True)
class Minibatches:
    """This rank's minibatches, on the device. ``read`` makes one pass over them."""

    read: Callable[[], Iterator[Any]]
    kept: bool  # on the device between passes; otherwise read again in each
    interleaved: bool = False  # of P ranks each has every P-th of all; else a contiguous share

    def __iter__(self) -> Iterator[Any]:
        return self.read()


def deal(
    data: Any,
    batch_size: int,
    world: World,
    dtype: torch.dtype,
    data_is_local: bool = False,
    memory: int | None = None,
    whole: bool = False,
) -> Minibatches:
    """This rank's share of ``data``, cut into minibatches.

    Every rank is given the same whole data; rank r takes samples [N r / P, N (r + 1) / P),
    or, of an iterable or a custom batch sampler, every P-th batch. Of a DataLoader,
    data set, batch size and collation are used; its shuffling is ignored, since the order of the
    samples does not change a sum over all of them.

    Args:
        data: a pair of tensors (inputs, targets), a Dataset or a DataLoader.
        dtype: what floating-point leaves of a batch are cast to.
        data_is_local: ``data`` already is this rank's share.
        memory: bytes of batches that may stay on the device. Default: a quarter of what is
            free now.
        whole: batches, not samples, are dealt: every rank takes every P-th of the batches that one
            rank would have.

    Raises:
        InputError: empty, random or duplicated data; data of an unknown kind.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r}: expected a whole number, 1 or more")
    _refuse_samplers(data, data_is_local)
    share = World() if data_is_local else world
    read = _reader(data, batch_size, _Dealer(share.rank, share.size, whole))
    place = _placer(dtype, world.device)
    interleaved = (whole or _comes_in_batches(data)) and not data_is_local
    budget = available(world) * KEEP_SHARE if memory is None else memory

    kept, used = [], 0
    for batch in read():
        kept.append(place(batch))
        used += size_in_bytes(kept[-1])
        if used > budget:
            return Minibatches(lambda: map(place, read()), False, interleaved)
    return Minibatches(lambda: iter(kept), True, interleaved)


# -- readers: one for each kind of data ------------------------------------------------------


@dataclass(frozen=True)
class _Dealer:
    """Assigns samples, in batches, to this rank."""

    rank: int
    size: int
    whole: bool  # deal whole batches instead of samples

    def ranges(self, length: int, batch_size: int) -> list[range]:
        """This rank's batches as ranges of samples."""
        if length == 0:
            raise InputError("the data set is empty: 0 samples; expected at least one")
        first, last, step = 0, length, batch_size
        if self.whole:
            first, step = self.rank * batch_size, self.size * batch_size
        else:
            first, last = (length * r // self.size for r in (self.rank, self.rank + 1))
        return [range(i, min(i + batch_size, last)) for i in range(first, last, step)]


def _reader(data: Any, batch_size: int, dealer: _Dealer) -> Callable[[], Iterator[Any]]:
    if isinstance(data, (tuple, list)) and any(hasattr(t, "__array__") for t in data):
        return _tensor_reader(tuple(map(_as_tensor, data)), batch_size, dealer)
    if type(data) is TensorDataset:  # not a subclass, which may transform its samples
        return _tensor_reader(data.tensors, batch_size, dealer)
    if isinstance(data, DataLoader):
        if _is_plain(data) and data.batch_size is not None:
            if type(data.dataset) is TensorDataset and data.collate_fn is default_collate:
                return _tensor_reader(data.dataset.tensors, data.batch_size, dealer)
            collate, workers = data.collate_fn, data.num_workers
            return _dataset_reader(data.dataset, data.batch_size, collate, dealer, workers)
        return _stream_reader(data, dealer)
    if isinstance(data, IterableDataset):
        return _stream_reader(DataLoader(data, batch_size), dealer)
    if isinstance(data, Dataset) or (
        hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping)
    ):
        return _dataset_reader(data, batch_size, default_collate, dealer)
    raise InputError(
        f"data is a {type(data).__name__}; expected a pair of tensors (inputs, targets), a "
        "Dataset or a DataLoader"
    )


def _comes_in_batches(data: Any) -> bool:
    """Are batches distributed over the ranks, and not samples?"""
    return isinstance(data, IterableDataset) or (
        isinstance(data, DataLoader) and not _is_plain(data)
    )


def _as_tensor(array: Any) -> Tensor:
    """A tensor, or the tensor of a NumPy array; a copy where the array is read-only."""
    if isinstance(array, Tensor):
        return array
    try:
        return torch.as_tensor(np.array(array, copy=True))
    except TypeError as error:
        raise InputError(
            f"data holds a {type(array).__name__} that is no tensor: {error}"
        ) from None


def _tensor_reader(tensors: Sequence[Tensor], batch_size: int, dealer: _Dealer):
    if any(t.ndim == 0 for t in tensors):
        raise InputError("data holds a single number; expected tensors with one row a sample")
    lengths = {len(t) for t in tensors}
    if len(lengths) > 1:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise InputError(f"tensors of different lengths: {shapes}; expected one row a sample")
    ranges = dealer.ranges(lengths.pop(), batch_size)
    return lambda: (tuple(t[r.start : r.stop] for t in tensors) for r in ranges)


def _dataset_reader(
    dataset: Any, batch_size: int, collate: Callable, dealer: _Dealer, workers: int = 0
):
    collation.require_length(dataset)
    ranges = dealer.ranges(len(dataset), batch_size)
    _refuse_random_samples(dataset)
    collate = collation.Collated(collate)
    batches = _Lists(ranges)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers)
    return lambda: _iterate(loader) if ranges else iter(())


class _Lists(Sampler):
    """Ranges of samples as lists of indices, which some data sets require."""

    def __init__(self, ranges: list[range]):
        self._ranges = ranges

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)


def _stream_reader(loader: DataLoader, dealer: _Dealer):
    if loader.collate_fn is default_collate:
        loader = copy.copy(loader)
        loader.collate_fn = collation.Collated(default_collate)
    first = [leaves(_first_batches(loader, seed)) for seed in (0, 1)]
    if not first[0]:
        raise InputError("the data is empty: 0 batches; expected at least one sample")
    if not _same(*first):
        raise InputError(
            f"two passes over the {type(loader.dataset).__name__} begin with different batches; "
            "use a fixed order and no random augmentation, or pass tensors"
        )
    return lambda: islice(_iterate(loader), dealer.rank, None, dealer.size)


def _first_batches(loader: DataLoader, seed: int) -> list[Any]:
    """The first batches, read under the given seed: random data differs between seeds."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return list(islice(loader, LOOKED_AT))


def _iterate(loader: DataLoader) -> Iterator[Any]:
    """Iterate and restore torch's global random state, from which a loader draws a seed."""
    state = torch.get_rng_state()
    batches = iter(loader)
    torch.set_rng_state(state)
    return batches


# -- refusals --------------------------------------------------------------------------------


def _is_plain(loader: DataLoader) -> bool:
    """Does it visit each sample once, in batches of one size? Then its order does not matter."""
    return (
        not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
        and isinstance(loader.sampler, (RandomSampler, SequentialSampler))
        and type(loader.sampler) in (RandomSampler, SequentialSampler)  # not their subclasses
        and loader.sampler.data_source is loader.dataset
        and not getattr(loader.sampler, "replacement", False)
        and getattr(loader.sampler, "_num_samples", None) is None
    )


def _refuse_samplers(data: Any, data_is_local: bool) -> None:
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return
    name = type(data.sampler).__name__
    if isinstance(data.sampler, DistributedSampler):
        if not data_is_local:
            raise InputError(
                "the DataLoader has a DistributedSampler, which pads with duplicate samples; pass "
                "the whole data set (each rank is dealt its share), or data_is_local=True"
            )
    elif data.batch_size is None and getattr(data.batch_sampler, "drop_last", False):
        raise InputError(
            "the DataLoader's batch_sampler drops the last samples (drop_last=True), so that the "
            "loss would not be the mean over the data set; pass drop_last=False"
        )
    elif data.batch_size is not None and not _is_plain(data):
        raise InputError(
            f"the DataLoader's {name} does not visit each sample once; the loss would not be the "
            "mean over the data set: pass the data set itself, or a Subset of it"
        )


def refuse_shuffled(data: Any, layers: Any) -> None:
    """InputError if a DataLoader shuffles: for losses that depend on the minibatches."""
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return
    sampler = data.sampler if data.batch_size is not None else data.batch_sampler
    if isinstance(getattr(sampler, "sampler", sampler), RandomSampler):
        name, module = next(iter(layers.items()))
        raise InputError(
            f"batch_norm='train': the layer {name} ({type(module).__name__}) normalizes by the "
            "minibatch, and the DataLoader shuffles, so that minibatches change from pass to pass; "
            "pass the data set or a DataLoader with shuffle=False, or use batch_norm='eval' or "
            "'recalibrate'"
        )


def _refuse_random_samples(dataset: Any) -> None:
    for i in np.unique(np.linspace(0, len(dataset) - 1, READ_TWICE).astype(int)).tolist():
        if not _same(leaves(dataset[i]), leaves(dataset[i])):
            raise InputError(
                f"sample {i} of the {type(dataset).__name__} differs when it is read again (random "
                "augmentation?); remove the random transform, or read the data once into tensors "
                "and pass those"
            )


def leaves(batch: Any) -> list[Any]:
    """The leaves of a batch or of a sample: tensors, arrays, numbers, texts."""
    containers.register(batch)
    return tree_leaves(batch)


def _same(a: list, b: list) -> bool:
    def equal(x, y):
        if not isinstance(x, Tensor):
            return np.array_equal(np.asarray(x), np.asarray(y))  # numbers, strings, pictures
        return x.shape == y.shape and torch.equal(torch.nan_to_num(x), torch.nan_to_num(y))

    return len(a) == len(b) and all(map(equal, a, b))


# -- placing ---------------------------------------------------------------------------------


def _placer(dtype: torch.dtype, device: torch.device) -> Callable[[Any], Any]:
    def place(leaf):
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device, dtype if leaf.is_floating_point() else None)

    def placed(batch: Any) -> Any:
        containers.register(batch)
        return tree_map(place, batch)

    return placed
