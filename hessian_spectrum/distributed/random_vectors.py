"""Random vector i from (seed, i): the same entries at every world size and sharding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum.distributed.sharding import Layout

CHUNK = 65_536  # entries that share one counter of the generator


def gaussian_probes(
    layout: Layout,
    indices: Sequence[int],
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Tensor:
    """This rank's entries of standard Gaussian vectors, shape (k, n_local).

    Chunk j of vector i comes from Philox-4x64 with key (seed, i) and its counter's third
    word at j (Salmon et al. 2011), so each rank draws only what it owns. Drawn in float64,
    then rounded: the same numbers in every dtype.

    Args:
        indices: i for each of the k vectors, non-negative.
        seed: non-negative, below 2^64.
    """
    rows = np.empty((len(indices), layout.n_local))
    for row, index in zip(rows, indices):
        for chunk in range(layout.start // CHUNK, -(-layout.stop // CHUNK)):
            first = chunk * CHUNK
            low, high = max(first, layout.start), min(first + CHUNK, layout.stop)
            bits = np.random.Philox(key=[seed, index], counter=[0, 0, chunk, 0])
            numbers = np.random.Generator(bits).standard_normal(high - first)
            row[low - layout.start : high - layout.start] = numbers[low - first :]
    return torch.from_numpy(rows).to(device=device, dtype=dtype)
