"""SHA-256 digests of model, loss and samples, which ranks and a resumed run must have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from hessian_spectrum.distributed.agreement import DATA, MODELS, Digest
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.batching import leading_size, raw_bytes, tensors_of
from hessian_spectrum.loss.functional import LossFunction
from hessian_spectrum.loss.loaders import Minibatches, leaves

PROBED = 16  # samples of a Dataset that every rank reads, beside those of its share
MOST_BYTES = 2**30  # of each tensor in memory; of a larger one evenly spaced rows


def of_state(function: LossFunction) -> str:
    """SHA-256 of theta, of the constants (buffers and other parameters), and of all names."""
    sha = hashlib.sha256(repr((function.layout.names, function.layout.shapes)).encode())
    for name, t in {"theta": function.theta, **function.constants()}.items():
        sha.update(name.encode())
        sha.update(raw_bytes(t))
    return sha.hexdigest()


def of_architecture(function: LossFunction) -> str:
    """SHA-256 of the types of all modules of model and loss, and of the options of torch's own.

    What other modules hold beside their parameters may differ between ranks, as a device does.
    """
    parts: list[Any] = [_name(function.loss_fn)]
    for name, module in function.modules():
        options = ""
        if type(module).__module__.startswith("torch.nn."):
            known = {k: v for k, v in vars(module).items() if not k.startswith("_")}
            plain = {k: v for k, v in known.items() if isinstance(v, (int, float, str, tuple))}
            plain.pop("training", None)
            options = repr(sorted((k, repr(v)) for k, v in plain.items()))
        parts.append((name, _name(type(module)), options))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def of_function(function: LossFunction) -> dict[str, Digest]:
    """What the function's model and loss must have in common on all ranks, for ``agreed``."""
    return {
        MODELS: Digest(of_state(function)),
        "architectures (types or options of modules, or the loss)": Digest(
            of_architecture(function)
        ),
    }


def of_source(data: Any) -> dict[str, Any]:
    """What ranks that are given the same whole data have in common, by name, for ``agreed``.

    Tensors in memory are compared by all their entries, ``Subset`` by its indices; other data sets
    by their length and a few samples, streams by their first item. Cost: one reading of tensors in
    memory, up to a GiB each; otherwise ``PROBED`` samples. No collectives.
    """
    facts: dict[str, Any] = {}
    if isinstance(data, DataLoader):
        facts["batch size of the data"] = data.batch_size
        data = data.dataset
    sized = data[0] if isinstance(data, (tuple, list)) and len(data) else data
    if not isinstance(data, IterableDataset) and hasattr(sized, "__len__"):
        facts["number of samples"] = len(sized)
    sha = hashlib.sha256()
    with torch.random.fork_rng([]):
        _add_source(sha, data)
    return {**facts, DATA: Digest(sha.hexdigest())}


def _add_source(sha: Any, data: Any) -> None:
    sha.update(_name(type(data)).encode())
    if type(data) is TensorDataset:
        data = data.tensors
    if isinstance(data, (tuple, list)) and any(hasattr(t, "__array__") for t in data):
        for t in data:
            _add_leaf(sha, t)
    elif type(data) is Subset:
        _add_leaf(sha, np.asarray(data.indices))
        _add_source(sha, data.dataset)
    else:
        for leaf in leaves(_probes(data)):
            _add_leaf(sha, leaf)


def _probes(data: Any) -> list[Any]:
    if isinstance(data, IterableDataset):
        return list(islice(data, 1))
    return [data[i] for i in np.unique(np.linspace(0, len(data) - 1, PROBED).astype(int)).tolist()]


def _add_leaf(sha: Any, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        array = np.asarray(leaf)
        if array.dtype.kind not in "biufc":  # a text, or an object that only its type tells of
            sha.update(leaf.encode() if isinstance(leaf, str) else _name(type(leaf)).encode())
            return
        leaf = torch.from_numpy(np.array(array))
    sha.update(repr((leaf.dtype, leaf.shape)).encode())
    if leaf.layout is not torch.strided:
        leaf = leaf.to_dense()
    rows = -(-leaf.numel() * leaf.element_size() // MOST_BYTES)
    sha.update(raw_bytes(leaf[::rows] if rows > 1 and leaf.ndim else leaf))


def _name(thing: Any) -> str:
    made = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{made.__module__}.{made.__qualname__}"


def of_data(batches: Minibatches, world: World, whole: bool = False) -> str | None:
    """A digest of all samples that depends neither on their order nor on the ranks that hold them.

    The sum, modulo 2^256, of each sample's SHA-256. None if the data is not kept on the device,
    since reading it would cost a pass. Called by every rank.

    Args:
        whole: sum over batches instead of samples, so that the composition of a batch counts.
    """
    if not all(world.gather_objects(batches.kept)):
        return None
    total = 0
    for batch in batches:
        samples = list(sample_digests(batch))
        if whole:
            samples = [hashlib.sha256(b"".join(samples)).digest()]
        total += sum(int.from_bytes(sample, "big") for sample in samples)
    return f"{sum(world.gather_objects(total)) % 2**256:064x}"


def sample_digests(batch: Any) -> Iterator[bytes]:
    """SHA-256 of each sample's tensors."""
    leaves = [t.detach().cpu().contiguous() for t in tensors_of(batch)]
    size = leading_size(batch)
    for i in range(size):
        sample = hashlib.sha256()
        for t in leaves:
            row = t[i] if t.ndim and len(t) == size else t
            sample.update(raw_bytes(row))
        yield sample.digest()
