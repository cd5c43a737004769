"""What a run takes beside its products: orthogonalization, exchange, and dense algebra at the end.

Measured on vectors of the run's own size, as the run forms them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.krylov.block_gram_schmidt import extension
from hessian_spectrum.krylov.dense_eigen import eigh

SAMPLE_BYTES = 64 << 20  # of basis vectors that are timed
REPEATS = 3  # a timing is the least of so many
DENSE_ORDER = 256  # of the matrix that dense algebra is timed on,
DENSE_POWER = 2.7  # and how its time grows with the order: larger ones use the caches better
DECOMPOSITIONS = 14
NODES_OF_ONE = 6  # so many nodes are drawn in the time of one decomposition of DENSE_ORDER


@dataclass(frozen=True)
class StepCost:
    """Seconds of a block step, beside its products."""

    fixed: float  # exchange of the block, and orthogonalization within it
    per_vector: float  # more, for each vector of the basis

    def of(self, ranks: Iterable[int]) -> float:
        """Of steps whose bases hold so many vectors."""
        return sum(self.fixed + self.per_vector * rank for rank in ranks)


def step_cost(
    layout: Layout, dtype: torch.dtype, device: torch.device, block: int, gathers: bool = True
) -> StepCost:
    """Measured; called by every rank. The basis is taken to lie on the device.

    Args:
        gathers: products exchange whole vectors, which is not part of their own time.
    """
    size = max(1, layout.n_local) * dtype.itemsize
    held = int(max(block, min(SAMPLE_BYTES // size, 8 * block)))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(block, layout.n_local, generator=generator).to(device, dtype)
    # Zeros take as long as other numbers, and leave nothing that rounding could make short.
    basis = torch.zeros(held, layout.n_local, device=device, dtype=dtype)

    def orthogonalized(rank: int) -> None:
        extension(rows, basis[:rank], layout.world, 0.0, 0.0, layout.n)

    def exchanged() -> None:
        layout.reduce(layout.gather(rows))

    alone, beside = (_seconds(partial(orthogonalized, rank), device) for rank in (0, held))
    exchange = _seconds(exchanged, device) if gathers and layout.world.size > 1 else 0.0
    found = exchange + alone, max(0.0, beside - alone) / held
    return StepCost(*layout.world.from_first(found))


def answers_seconds(order: int) -> float:
    """Of a density's curve and report with their intervals, T having this order.

    From the time of one eigendecomposition: T's own, those of five shorter recurrences and of two
    bounds at each of three thresholds, beside which the other probes' spaces take as long as two;
    and the curve on its grid.
    """
    matrix = np.random.default_rng(0).normal(size=(DENSE_ORDER, DENSE_ORDER))
    one = _seconds(lambda: eigh(matrix + matrix.T), torch.device("cpu"))
    return one * (DECOMPOSITIONS * (order / DENSE_ORDER) ** DENSE_POWER + order / NODES_OF_ONE)


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    action()
    times = []
    for _ in range(REPEATS):
        clock = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - clock)
    return min(times)
