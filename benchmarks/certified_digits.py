"""Do the eigenpairs of a float32 run hold in float64? Their residuals by products in float64.

For some pairs one by one, and for all of them by products with random combinations, whose misfit
has the same mean square as the root of the sum of all squared residuals::

    python benchmarks/certified_digits.py --pairs-file pairs.h5 --pairs 0 5 24 \
        --model resnet20 --dataset arrays --data-root cifar.npz --limit 2048 --checkpoint net.pt

A float64 eigenvalue lies within the float64 residual of the float64 Rayleigh quotient: that is
compared with the float32 run's value and residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

import hessian_spectrum as hs
from hessian_spectrum import problems
from hessian_spectrum.config import ProblemConfig

COMBINATIONS = 2


@dataclass(frozen=True, kw_only=True)
class Config(ProblemConfig):
    pairs_file: Path
    """Result of the float32 run, with its eigenvectors."""
    pairs: tuple[int, ...] = ()
    """Those that get a product of their own, 0 being the smallest eigenvalue. Default: all."""
    threads: int = 1


def main(config: Config) -> None:
    config.check()
    torch.set_num_threads(config.threads)
    arguments = problems.load(config)
    arguments.pop("dtype", None)
    hessian = hs.Hessian(
        hs.Evaluator(**arguments, dtype=torch.float64), plan=hs.ProductPlan("linearize")
    )
    found = hs.open(config.pairs_file)["eigenpairs"]
    vectors = np.asarray(found.vectors, np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = list(config.pairs or range(len(vectors)))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (COMBINATIONS, len(vectors)))
    rows = torch.from_numpy(np.concatenate([vectors[chosen], signs @ vectors]))
    products = hessian.products(rows).numpy()

    print("| float32 | its residual | float64 Rayleigh quotient | its residual | difference |")
    print("|---|---|---|---|---|")
    for i, v, product in zip(chosen, vectors[chosen], products):
        value = v @ product
        residual = np.linalg.norm(product - value * v)
        print(
            f"| {found.values[i]:.9g} | {found.residuals[i]:.1e} | {value:.9g} | {residual:.1e} | "
            f"{abs(value - found.values[i]):.1e} |"
        )
    misfits = products[len(chosen) :] - (signs * found.values) @ vectors
    said = np.linalg.norm(found.residuals)
    print(f"\nall {len(vectors)} together: residuals of combinations in float64", end=" ")
    print(", ".join(f"{x:.2e}" for x in np.linalg.norm(misfits, axis=1)), end="; ")
    print(f"the root of the sum of squares that the float32 run states is {said:.2e}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
