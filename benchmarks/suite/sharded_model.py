"""Cost model of a product of a sharded transformer: memory of a rank, bytes sent, seconds.

Of n parameters in L blocks and what is outside of them, on P ranks, with s bytes an entry of theta
and c bytes of a whole weight, a rank holds

    (6 + k) n s / P                 theta, its units, a product and its sums; k Krylov vectors
    + 2 c max(unit)                 whole weights of two units: one in use, one that is left
    + a product's activations       three times those of a gradient, per token kept

and gathers each block 4 times in a product with one vector, and 2 times more for each further one;
of each vector and of the gradient n entries are gathered and reduced once. A product takes 2 + 2
gradients' arithmetic: the gradient with its graph, and backward through it.

Assumptions about H100s, not measurements: 160 Tflop/s in bfloat16; 25 GB/s a rank between nodes;
80 GB of memory; 2 bytes for each of 34 * width activations of a token and block (Korthikanti et al.
2022, without attention's matrices), kept three times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOPS, BANDWIDTH, LATENCY, MEMORY = 160e12, 25e9, 2e-5, 80e9
ACTIVATIONS = 34 * 2  # bytes of a token, a block and a channel
COPIES = 3  # of activations: the forward pass, the gradient, its derivative


@dataclass(frozen=True)
class Language:
    """A transformer, and the tokens of its data."""

    n: float
    blocks: int
    width: int
    vocabulary: int
    tokens: float = 1e6
    length: int = 2048

    @property
    def largest_unit(self) -> float:
        outside = 2 * self.vocabulary * self.width
        return max(outside, (self.n - outside) / self.blocks)


MODELS = {
    "7B": Language(6.7e9, 32, 4096, 32_000),
    "70B": Language(69e9, 80, 8192, 32_000),
}


def gathers(blocks: int, vectors: int = 1) -> int:
    """Gathers of units in an exact product of a minibatch."""
    return 2 * blocks + 3 + 2 * blocks * vectors


@dataclass(frozen=True)
class Cost:
    memory: float  # bytes of a rank
    seconds: float  # of a product with one vector


def product(model: Language, ranks: int, krylov: int = 3, recompute: bool = True) -> Cost:
    """An exact product in bfloat16 on vectors in float32, one sequence a rank at a time.

    Args:
        krylov: vectors that are held.
        recompute: activations of a block are computed again: one block's are alive.
    """
    share = math.ceil(model.tokens / model.length / ranks)  # sequences of a rank, one by one
    alive = 2 if recompute else COPIES * model.blocks
    activations = alive * ACTIVATIONS * model.length * model.width
    memory = (6 + krylov) * model.n * 4 / ranks + 2 * 2 * model.largest_unit + activations
    arithmetic = (4 + recompute) * 6 * model.n * model.length / FLOPS
    sent = (4 * 2 + 2 * 4 + 4) * model.n * (ranks - 1) / ranks / BANDWIDTH
    hops = (gathers(model.blocks) + 4 * model.blocks) * math.log2(max(ranks, 1)) * LATENCY
    return Cost(memory, share * (arithmetic + sent + hops))
