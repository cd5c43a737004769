"""Cost model of a block Lanczos step on P ranks, from a few measured numbers.

A step of b vectors against r basis vectors of n entries takes

    t = product / P_eff                                  all b vectors on this rank's data
      + 2 (latency log2 P + (P - 1) / P b n s / bandwidth)      all-gather, reduce-scatter
      + 2 (latency log2 P + b (r + b) 8 / bandwidth)            the small reductions
      + 8 b r n / (P flops)                                     projections, twice
      + checkpoint / every                                      r b n s / P bytes to the disk

seconds, with s bytes an entry. A rank sends about as many bytes in ring and in tree algorithms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Measured properties of a machine."""

    latency: float  # seconds of a small collective, divided by log2 P (for P = 1, by 1)
    bandwidth: float  # bytes a second that a rank sends in a large one
    flops: float  # flops a second of one rank in projections


@dataclass(frozen=True, kw_only=True)
class Problem:
    n: int  # parameters
    product: float  # seconds of a product with one vector on one rank, with all the data
    samples: int  # the units that can be divided among ranks
    itemsize: int = 4
    block: int = 12
    steps: int = 15


@dataclass(frozen=True)
class Cost:
    """Seconds of one step, averaged over a run."""

    product: float
    exchange: float  # the two large collectives
    reductions: float  # the two small ones
    orthogonalization: float

    @property
    def total(self) -> float:
        return self.product + self.exchange + self.reductions + self.orthogonalization


def step(problem: Problem, machine: Machine, ranks: int) -> Cost:
    """The cost of a step on that many ranks."""
    b, n, r = problem.block, problem.n, problem.block * (problem.steps + 1) / 2
    share = math.ceil(problem.samples / ranks) / problem.samples
    hops = math.log2(ranks) * machine.latency
    large = 2 * (hops + (ranks - 1) / ranks * b * n * problem.itemsize / machine.bandwidth)
    small = 2 * (hops + (ranks > 1) * 8 * b * (r + b) / machine.bandwidth)
    return Cost(
        product=b * problem.product * share,
        exchange=large,
        reductions=small,
        orthogonalization=8 * b * r * n / ranks / machine.flops,
    )


def basis_bytes(problem: Problem, ranks: int) -> float:
    """Bytes of the Krylov basis on each rank."""
    return problem.block * (problem.steps + 1) * problem.n * problem.itemsize / ranks


# Assumptions about an H100, not measurements: products at 40 % of 400 Tflop/s in bfloat16 for the
# transformer and at 60 Tflop/s in TF32 for the convolutional network; 25 GB/s a rank between nodes;
# 20 microseconds a hop; projections limited by memory, 3 TB/s at one flop for 2 bytes.
H100 = Machine(latency=2e-5, bandwidth=25e9, flops=1.5e12)


def resnet50() -> Problem:
    """ResNet-50 on ImageNet: 4.1 Gflop (multiply and add: 8.2) an image forward."""
    gradient = 3 * 8.2e9 * 1_281_167 / 60e12
    return Problem(n=25_557_032, product=2.2 * gradient, samples=1_281_167)


def transformer(tokens: int = 10_000_000, length: int = 2048) -> Problem:
    """A transformer of a billion parameters: 6 n flops a token for a gradient."""
    n = 1_000_000_000
    gradient = 6 * n * tokens / 160e12
    return Problem(n=n, product=2.2 * gradient, samples=tokens // length)


def extrapolated(
    problem: Problem, machine: Machine = H100, most: int = 1024
) -> list[tuple[int, Cost]]:
    """The cost of a step on 1, 2, 4, ... ranks."""
    counts = [2**k for k in range(int(math.log2(most)) + 1)]
    return [(ranks, step(problem, machine, ranks)) for ranks in counts]
