"""Hessian products needed for the k extreme eigenpairs at both ends, compared with SciPy's eigsh.

On a small network with known exact eigenvalues (``exact.py``), with ``--stand-in`` on the diagonal
matrix of these eigenvalues, and with ``--synthetic`` on spectra that are hard for Krylov methods::

    python benchmarks/eigen_products.py --model mlp-784-20-10 --activation tanh --dataset mnist \
        --data-root DATA --checkpoint nets/epoch-0020.pt --dtype float64

PRIMME is a third one where it is installed. All solvers get the same tolerance; SciPy's is relative
to each eigenvalue, ours to |lambda|max. A row has the number of products, the largest error of the
eigenvalues and the largest |A v - lambda v|, which is recomputed; both errors are relative to
|lambda|max.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from exact import eigenvalues
from scipy.sparse.linalg import LinearOperator, eigsh
from spectra import Diagonal

import hessian_spectrum as hs
from hessian_spectrum.config import ProblemConfig
from hessian_spectrum.krylov.ritz import wanted
from hessian_spectrum.planning import product_planner
from hessian_spectrum.zoo import problem_loader

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Config(ProblemConfig):
    k: int = 10
    """Eigenpairs at each end."""
    tol: float = 1e-8
    basis_size: int = 60
    """Vectors in memory for the rows with bounded memory."""
    scipy_basis: tuple[int, ...] = (0, 60)
    """Vectors in memory for SciPy (ncv); 0: its default."""
    stand_in: bool = False
    """Use diag(exact eigenvalues) in float64 in place of the Hessian."""
    synthetic: bool = False
    """Use hard synthetic spectra in place of a network's."""
    seeds: int = 3
    cache: Path = Path(__file__).parent / "cache"


class Counted(hs.SymmetricOperator):
    """An operator that counts its products."""

    def __init__(self, base: hs.SymmetricOperator):
        self.base, self.layout, self.dtype, self.count = base, base.layout, base.dtype, 0

    def products(self, vectors: torch.Tensor) -> torch.Tensor:
        self.count += len(vectors)
        return self.base.products(vectors)


def main(config: Config) -> None:
    print("| spectrum | solver | products | eigenvalues off by | residual | seconds |")
    print("|---|---|---|---|---|---|")
    for name, exact, operator in cases(config):
        for solver, solve in solvers(config).items():
            rows = [one(solve, Counted(operator), exact, config, seed) for seed in seeds(config)]
            counts, off, residual, seconds = (np.array(column) for column in zip(*rows))
            print(
                f"| {name} | {solver} | {np.median(counts):.0f} [{counts.min()}, {counts.max()}] | "
                f"{off.max():.0e} | {residual.max():.0e} | {np.median(seconds):.1f} |",
                flush=True,
            )


def seeds(config: Config) -> range:
    return range(config.seeds)


def one(
    solve: Callable, operator: Counted, exact: Array, config: Config, seed: int
) -> tuple[int, float, float, float]:
    """(products, error of the eigenvalues, largest residual, seconds)."""
    clock = time.perf_counter()
    values, vectors = solve(operator, seed)
    seconds, count = time.perf_counter() - clock, operator.count
    expected = exact[wanted("both", config.k, exact)]
    scale = np.abs(exact).max() or 1.0
    columns = vectors.T.astype(str(operator.dtype).removeprefix("torch."))
    misfit = np.linalg.norm(operator @ columns - columns * values, axis=0)
    off = np.abs(np.sort(values) - expected).max() if len(values) == len(expected) else np.inf
    return count, off / scale, misfit.max() / scale, seconds


def solvers(config: Config) -> dict[str, Callable]:
    k, tol = config.k, config.tol

    def ours(**options) -> Callable:
        def solve(operator, seed):
            pairs = hs.eigenpairs(operator, k, tol=tol, seed=seed, **options)
            return pairs.values, pairs.vectors

        return solve

    def scipy(ncv: int, *forms: tuple[str, int]) -> Callable:
        def solve(operator, seed):
            v0 = np.random.default_rng(seed).standard_normal(operator.n)
            linear = LinearOperator(
                operator.shape, lambda v: operator @ v.reshape(-1), dtype=v0.dtype
            )
            found = [
                eigsh(linear, k=count, which=which, tol=tol, ncv=ncv or None, v0=v0)
                for which, count in forms
            ]
            values = np.concatenate([values for values, _ in found])
            order = np.argsort(values)
            return values[order], np.concatenate([v for _, v in found], axis=1).T[order]

        return solve

    rows = {
        "ours": ours(),
        f"ours, {config.basis_size} vectors": ours(basis_size=config.basis_size),
    }
    rows["ours, copies not looked for"] = ours(copies=False)
    rows[f"ours, neither, {config.basis_size} vectors"] = ours(
        copies=False, basis_size=config.basis_size
    )
    for ncv in config.scipy_basis:
        held = f", {ncv} vectors" if ncv else ""
        rows[f"eigsh, both ends at once{held}"] = scipy(ncv, ("BE", 2 * k))
        rows[f"eigsh, largest then smallest{held}"] = scipy(ncv, ("LA", k), ("SA", k))
    if importlib.util.find_spec("primme"):
        rows["primme, largest then smallest"] = primme_rows(k, tol)
    return rows


def primme_rows(k: int, tol: float) -> Callable:
    """PRIMME's default method, in its default memory; it finds one end at a time."""
    from primme import eigsh as primme_eigsh

    def solve(operator, seed):
        v0 = np.random.default_rng(seed).standard_normal((operator.n, 1))
        linear = LinearOperator(operator.shape, lambda v: operator @ v.reshape(-1), dtype=v0.dtype)
        found = [primme_eigsh(linear, k=k, which=which, tol=tol, v0=v0) for which in ("LA", "SA")]
        values = np.concatenate([values for values, _ in found])
        order = np.argsort(values)
        return values[order], np.concatenate([v for _, v in found], axis=1).T[order]

    return solve


def cases(config: Config) -> Iterator[tuple[str, Array, hs.SymmetricOperator]]:
    """(name, exact eigenvalues, operator)."""
    if config.synthetic:
        for name, exact in hard().items():
            yield name, np.sort(exact), Diagonal(np.sort(exact))
        return
    config.check()
    problem = replace(problem_loader.load(config), dtype=torch.float64)
    exact = eigenvalues(problem.evaluator(), config.cache)
    name = f"{config.problem or f'{config.model} {config.activation}'}, n = {len(exact):,}"
    if config.stand_in:
        yield name, exact, Diagonal(exact)
        return
    hessian = hs.Hessian(problem.evaluator())
    plan = product_planner.plan(hessian.evaluator, hessian.theta, 2, 100).plan
    yield name, exact, hessian.planned(plan)


def hard() -> dict[str, Array]:
    """2,000 eigenvalues each: a bulk, and eigenvalues that are hard to find at an end."""
    bulk = np.random.default_rng(0).uniform(-1, 1, 2000)

    def with_(*outside: float) -> Array:
        return np.concatenate([outside, bulk[len(outside) :]])

    return {
        "multiplicity 3 at the lower end": with_(-1.5, -1.5, -1.5, 2.0),
        "a cluster of 5, 1e-6 apart": with_(*(-1.5 + 1e-6 * np.arange(5)), 2.0),
        "one isolated pair": with_(5.0),
        "k near n (30 eigenvalues)": bulk[:30],
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
