"""SHA-256 of a model's state and of the samples: what a resumed run must find again."""

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
    """Of a tensor's entries."""
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


def of_state(function: LossFunction) -> str:
    """Of theta, of the other parameters and the buffers, and of all names."""
    sha = hashlib.sha256(repr((function.layout.names, function.layout.shapes)).encode())
    for name, t in {"theta": function.theta, **function.constants()}.items():
        sha.update(name.encode())
        sha.update(raw_bytes(t))
    return sha.hexdigest()


def of_data(batches: Minibatches, world: World, whole: bool = False) -> str | None:
    """A fingerprint of all samples, whatever their order and the ranks they were dealt to.

    The sum, modulo 2^256, of each sample's SHA-256; ``whole``: of each batch's, so that what is
    in a batch counts. None where the data is not kept (it would cost a pass).
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
