"""SHA-256 digests of a model's state and of the samples, which a resumed run must match."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.batching import leading_size, raw_bytes, tensors_of
from hessian_spectrum.loss.functional import LossFunction
from hessian_spectrum.loss.loaders import Minibatches


def of_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's entries."""
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


def of_state(function: LossFunction) -> str:
    """SHA-256 of theta, of the constants (buffers and other parameters), and of all names."""
    sha = hashlib.sha256(repr((function.layout.names, function.layout.shapes)).encode())
    for name, t in {"theta": function.theta, **function.constants()}.items():
        sha.update(name.encode())
        sha.update(raw_bytes(t))
    return sha.hexdigest()


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
