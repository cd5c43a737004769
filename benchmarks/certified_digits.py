"""Do the error bounds of a float32 run's eigenpairs hold in float64?

Compares float64 residuals, from a float64 product for each pair, with the bounds that the float32
run states: its residual and the rounding error of float32, which is measured on random
combinations of all pairs (``residual_check.arithmetic_error``; old files have only the residual)::

    python benchmarks/certified_digits.py --pairs-file pairs.h5 --pairs 0 5 24 \
        --model resnet20 --dataset arrays --data-root cifar.npz --limit 2048 --checkpoint net.pt

A float64 eigenvalue lies within the float64 residual of the float64 Rayleigh quotient. A stated
bound holds if it is at least the float64 residual of the float32 pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

import hessian_spectrum as hs
from hessian_spectrum.algorithms import residual_check
from hessian_spectrum.config import ProblemConfig
from hessian_spectrum.zoo import problem_loader


@dataclass(frozen=True, kw_only=True)
class Config(ProblemConfig):
    pairs_file: Path
    """Result file of the float32 run, with eigenvectors."""
    pairs: tuple[int, ...] = ()
    """Indices of the pairs to check, 0 being the smallest eigenvalue. Default: all."""
    threads: int = 1


def main(config: Config) -> None:
    config.check()
    torch.set_num_threads(config.threads)
    hessian = hs.Hessian(problem_loader.load(config).evaluator())
    with hs.open(config.pairs_file) as run:
        found, values = run["eigenpairs"], run["values"]
        vectors = np.asarray(found.vectors, np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stated, added = found.residuals, values.get("arithmetic_error")
    if added is None:
        added = residual_check.arithmetic_error(hessian, torch.from_numpy(vectors).float(), seed=0)
        stated = np.hypot(stated, added)
    print(f"float32 adds {added:.2e} to each residual\n", flush=True)

    print("| float32 | stated | float64 Rayleigh quotient | residual in float64 | difference |")
    print("|---|---|---|---|---|")
    exact = hessian.in_float64()
    for i in config.pairs or range(len(vectors)):
        v = vectors[i]
        product = exact.products(torch.from_numpy(v[None]))[0].numpy()
        value = v @ product
        true = np.linalg.norm(product - found.values[i] * v)
        print(
            f"| {found.values[i]:.9g} | {stated[i]:.1e} | {value:.9g} | {true:.1e} | "
            f"{abs(value - found.values[i]):.1e} |" + " not held" * bool(true > stated[i]),
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
