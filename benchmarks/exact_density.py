"""How far is the estimated density from the exact one?

Diagonalizes a small network's exact Hessian (float64, once, cached in benchmarks/cache) and
reports L1 = integral of |phi_sigma(t) - estimate(t)| dt over many seeds of the probes::

    python benchmarks/exact_density.py --model mlp-784-20-10 --activation tanh --dataset mnist \
        --data-root ../shared/data --checkpoint nets/tanh/epoch-0020.pt
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from exact import eigenvalues, l1_distance

import hessian_spectrum as hs
from hessian_spectrum import problems
from hessian_spectrum.config import ProblemConfig


@dataclass(frozen=True, kw_only=True)
class Config(ProblemConfig):
    num_probes: int = 10
    num_steps: int = 90
    seeds: int = 16
    estimator: Literal["slq", "block"] = "slq"
    sigma2: float = 1e-5
    cache: Path = Path(__file__).parent / "cache"


def main(config: Config) -> None:
    config.check()
    arguments = problems.load(config)
    arguments.pop("dtype", None)
    exact = eigenvalues(hs.Evaluator(**arguments, dtype=torch.float64), config.cache)
    sigma = config.sigma2**0.5
    scale = max(abs(exact[0]), exact[-1])
    print(
        f"{config.model} {config.activation}: n = {len(exact)}, eigenvalues in "
        f"[{exact[0]:.4g}, {exact[-1]:.4g}], {np.mean(np.abs(exact) < 0.3 * sigma):.1%} within "
        f"0.3 sigma of 0, {np.sum(exact > sigma)} above sigma"
    )

    evaluator = hs.Evaluator(**arguments, dtype=getattr(torch, config.dtype or "float32"))
    hessian = hs.Hessian(evaluator)
    errors, ends, seconds = [], [], []
    for seed in range(config.seeds):
        clock = time.perf_counter()
        measure = hs.spectral_density(
            hessian,
            config.num_probes,
            config.num_steps,
            seed,
            estimator=config.estimator,
            sigma2=config.sigma2,
        )
        seconds.append(time.perf_counter() - clock)
        errors.append(l1_distance(measure, exact, config.sigma2))
        low, high = measure.support
        ends.append(max(abs(low - exact[0]), abs(high - exact[-1])) / scale)
    errors = np.array(errors)
    print(
        f"{config.num_probes} x {config.num_steps} = {config.num_probes * config.num_steps} "
        f"products, {config.estimator}, {evaluator.dtype}, {config.seeds} seeds: L1 median "
        f"{np.median(errors):.5f} [{errors.min():.5f}, {errors.max():.5f}]; lambda_min and "
        f"lambda_max within {max(ends):.1e} |lambda|max; {np.median(seconds):.1f} s a density"
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
