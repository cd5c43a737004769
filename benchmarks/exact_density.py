"""How far is the estimated density from the exact one?

Diagonalizes the exact Hessian of a small network (float64, cached in benchmarks/cache) and reports
L1 = integral of |phi_sigma(t) - estimate(t)| dt over many seeds of the probes, for each budget of
products and each estimator, with the numbers of probes and steps that the package chooses::

    python benchmarks/exact_density.py --model mlp-784-20-10 --activation tanh --dataset mnist \
        --data-root ../shared/data --checkpoint nets/tanh/epoch-0020.pt

--stand-in replaces the Hessian by diag(exact eigenvalues), which is equivalent for Gaussian probes
and cheap enough for many seeds. --synthetic uses the spectra of spectra.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

import hessian_spectrum as hs
from benchmarks.suite.exact import eigenvalues, l1_distance
from benchmarks.suite.spectra import SPECTRA, Diagonal
from hessian_spectrum.algorithms.budget import Estimator, choose
from hessian_spectrum.config import ProblemConfig
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.planning import product_planner
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.zoo import problem_loader

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Config(ProblemConfig):
    num_products: tuple[int, ...] = (90, 180, 360, 900)
    """Budgets; the package chooses probes and steps, unless num_probes is given."""
    num_probes: int | None = None
    """Block size, for all budgets."""
    estimators: tuple[Estimator, ...] = ("block", "slq")
    plain: bool = False
    """Add the block estimator without the held-out probes: Gauss quadrature alone."""
    seeds: int = 16
    first_seed: int = 0
    sigma2: float | None = None
    """Default: (width of the spectrum / 500)^2."""
    stand_in: bool = False
    """Use diag(exact eigenvalues) in float64 in place of the Hessian."""
    synthetic: tuple[str, ...] = ()
    """Names of synthetic spectra of 2,000 eigenvalues, or "all", in place of a network's."""
    cache: Path = Path(__file__).parent / "cache"


def main(config: Config) -> None:
    print("| spectrum | products | estimator | L1 median [min, max] | 95 % of the median |")
    print("|---|---|---|---|---|")
    for name, exact, operator, dtype in cases(config):
        width = (exact[-1] - exact[0]) or 1.0
        sigma2 = config.sigma2 or (width / 500) ** 2
        for products in config.num_products:
            for estimator in config.estimators:
                b, m = choose(len(exact), estimator, config.num_probes, num_products=products)
                rows = runs(operator, exact, sigma2, estimator, b, m, config)
                for row, errors in rows.items():
                    label = f"{row} {b} x {m}, {dtype}, {len(errors)} seeds"
                    print(f"| {name} | {products} | {label} | {summary(errors)} |", flush=True)


def cases(config: Config) -> Iterator[tuple[str, Array, SymmetricOperator, str]]:
    """(name, exact eigenvalues, operator, arithmetic)."""
    if config.synthetic:
        names = SPECTRA if config.synthetic == ("all",) else config.synthetic
        for name in names:
            exact = np.sort(SPECTRA[name](2000))
            yield name, exact, Diagonal(exact), "float64"
        return
    config.check()
    problem = problem_loader.load(config)
    exact = eigenvalues(replace(problem, dtype=torch.float64).evaluator(), config.cache)
    network = config.problem or f"{config.model} {config.activation}"
    name = f"{Path(network).name}, n = {len(exact):,}"
    if config.stand_in:
        yield name, exact, Diagonal(exact), "stand-in"
        return
    dtype = config.dtype or "float32"
    evaluator = replace(problem, dtype=getattr(torch, dtype)).evaluator()
    hessian = hs.Hessian(evaluator)
    b, m = choose(hessian.n, num_products=max(config.num_products))
    plan = product_planner.plan(evaluator, hessian.theta, b, m).plan
    yield name, exact, hessian.planned(plan), dtype


def runs(
    operator: SymmetricOperator,
    exact: Array,
    sigma2: float,
    estimator: Estimator,
    b: int,
    m: int,
    config: Config,
) -> dict[str, Array]:
    """L1 errors of all seeds, by estimator."""
    found: dict[str, list[float]] = {}
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        measure = hs.spectral_density(operator, b, m, seed, estimator=estimator)
        found.setdefault(estimator, []).append(l1_distance(measure, exact, sigma2))
        if config.plain and estimator == "block":
            usual = SpectralMeasure.of_rules(measure.rules, measure.n)
            found.setdefault("block, plain", []).append(l1_distance(usual, exact, sigma2))
    return {name: np.array(errors) for name, errors in found.items()}


def summary(errors: Array) -> str:
    """Median [min, max] | the bootstrap interval of the median."""
    rng = np.random.default_rng(0)
    again = np.median(rng.choice(errors, (10_000, len(errors))), axis=1)
    low, high = np.quantile(again, [0.025, 0.975])
    return (
        f"{np.median(errors):.5f} [{errors.min():.5f}, {errors.max():.5f}] | "
        f"{low:.5f} to {high:.5f}"
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
