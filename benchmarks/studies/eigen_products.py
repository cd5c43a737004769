"""Hessian products needed for the k extreme eigenpairs at both ends, beside SciPy's eigsh.

On the diagonal matrices of all eigenvalues of small trained networks, which for a random first
vector are equivalent to the networks' Hessians; at scale "gpu" on the Hessians themselves; and on
synthetic spectra that are hard for Krylov methods: copies of an eigenvalue, a cluster, one isolated
pair, nearly as many pairs as there are eigenvalues.

PRIMME is a third solver where it is installed. All get the same tolerance; SciPy's is relative to
each eigenvalue, ours to |lambda|max. Products are counted, eigenvalues are compared with the exact
ones, and residuals |A v - lambda v| are computed anew; both errors are relative to |lambda|max.
eigsh finds no copies of an eigenvalue reliably, so that its errors are values and no findings.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.exact_networks import DIGITS, MNIST, TINY, Network
from benchmarks.suite.spectra import Diagonal
from hessian_spectrum.krylov.ritz import wanted
from hessian_spectrum.planning import product_planner

Array = np.ndarray
Solve = Callable[["Counted", int], tuple[Array, Array]]  # operator, seed -> values, rows of vectors
OURS, EIGSH = "ours", "eigsh, both ends at once"


@dataclass(frozen=True)
class Options:
    """
    Args:
        of_networks: multiply by the networks' Hessians, not by diagonal matrices.
        hard: also synthetic spectra of so many eigenvalues; 0: none.
        k: eigenpairs at each end.
        basis_size: vectors in memory, for the solvers with bounded memory.
    """

    networks: tuple[Network, ...] = DIGITS
    of_networks: bool = False
    hard: int = 2000
    k: int = 10
    tol: float = 1e-8
    basis_size: int = 60
    seeds: int = 2


class Counted(hs.SymmetricOperator):
    """An operator that counts its products."""

    def __init__(self, base: hs.SymmetricOperator):
        self.base, self.layout, self.dtype, self.count = base, base.layout, base.dtype, 0

    def products(self, vectors: torch.Tensor) -> torch.Tensor:
        self.count += len(vectors)
        return self.base.products(vectors)


@dataclass(frozen=True)
class Rows:
    """All seeds of one solver on one spectrum."""

    products: Array
    off: Array  # of the eigenvalues, over |lambda|max; infinite where some are missing
    residual: Array  # largest, over |lambda|max


def measured(solve: Solve, operator: hs.SymmetricOperator, exact: Array, options: Options) -> Rows:
    return Rows(
        *(
            np.array(column)
            for column in zip(
                *(one(solve, Counted(operator), exact, options.k, s) for s in range(options.seeds))
            )
        )
    )


def one(
    solve: Solve, operator: Counted, exact: Array, k: int, seed: int
) -> tuple[int, float, float]:
    """(products, error of the eigenvalues, largest residual)."""
    try:
        values, vectors = solve(operator, seed)
    except ArpackError:
        return operator.count, np.inf, np.inf
    count = operator.count
    expected = exact[wanted("both", k, exact)]
    scale = np.abs(exact).max() or 1.0
    columns = vectors.T.astype(str(operator.dtype).removeprefix("torch."))
    misfit = np.linalg.norm(operator @ columns - columns * values, axis=0)
    off = np.abs(np.sort(values) - expected).max() if len(values) == len(expected) else np.inf
    return count, off / scale, misfit.max() / scale


def solvers(options: Options) -> dict[str, Solve]:
    k, tol, held = options.k, options.tol, f", {options.basis_size} vectors"

    def ours(**more: Any) -> Solve:
        def solve(operator: Counted, seed: int) -> tuple[Array, Array]:
            pairs = hs.eigenpairs(operator, k, tol=tol, seed=seed, **more)
            return pairs.values, pairs.vectors

        return solve

    def scipy(ncv: int | None, *forms: tuple[str, int]) -> Solve:
        def solve(operator: Counted, seed: int) -> tuple[Array, Array]:
            v0 = np.random.default_rng(seed).standard_normal(operator.n)
            room = None if ncv is None else min(ncv, operator.n)
            return joined(
                [
                    eigsh(linear(operator), k=count, which=which, tol=tol, ncv=room, v0=v0)
                    for which, count in forms
                ]
            )

        return solve

    found = {
        OURS: ours(),
        f"ours{held}": ours(basis_size=options.basis_size),
        "ours, copies not looked for": ours(copies=False),
    }
    for ncv, room in ((None, ""), (options.basis_size, held)):
        found[f"{EIGSH}{room}"] = scipy(ncv, ("BE", 2 * k))
        found[f"eigsh, largest then smallest{room}"] = scipy(ncv, ("LA", k), ("SA", k))
    if importlib.util.find_spec("primme"):
        found["primme, largest then smallest"] = primme(k, tol)
    return found


def primme(k: int, tol: float) -> Solve:
    """PRIMME's default method, in its default memory; it finds one end at a time."""
    from primme import eigsh as primme_eigsh

    def solve(operator: Counted, seed: int) -> tuple[Array, Array]:
        v0 = np.random.default_rng(seed).standard_normal((operator.n, 1))
        return joined(
            [
                primme_eigsh(linear(operator), k=k, which=which, tol=tol, v0=v0)
                for which in ("LA", "SA")
            ]
        )

    return solve


def linear(operator: Counted) -> LinearOperator:
    return LinearOperator(
        operator.shape, lambda v: operator @ v.reshape(-1), dtype=np.dtype(np.float64)
    )


def joined(found: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    values = np.concatenate([values for values, _ in found])
    order = np.argsort(values)
    return values[order], np.concatenate([v for _, v in found], axis=1).T[order]


def cases(
    context: Context, options: Options
) -> Iterator[tuple[str, Array, hs.SymmetricOperator, bool]]:
    """(name, exact eigenvalues, operator, is it a network's)."""
    for network in options.networks:
        exact = network.exact(context)
        operator: hs.SymmetricOperator = Diagonal(exact)
        if options.of_networks:
            hessian = hs.Hessian(network.problem(context).evaluator())
            plan = product_planner.plan(hessian.evaluator, hessian.theta, 2, 100).plan
            operator = hessian.planned(plan)
        yield f"{network.name}, n = {len(exact)}", exact, operator, True
    if options.hard:
        for name, exact in hard(options.hard).items():
            yield name, np.sort(exact), Diagonal(np.sort(exact)), False


def hard(n: int) -> dict[str, Array]:
    """A bulk, and eigenvalues that are hard to find at an end."""
    bulk = np.random.default_rng(0).uniform(-1, 1, n)

    def with_(*outside: float) -> Array:
        return np.concatenate([outside, bulk[len(outside) :]])

    return {
        "multiplicity 3 at the lower end": with_(-1.5, -1.5, -1.5, 2.0),
        "a cluster of 5, 1e-6 apart": with_(*(-1.5 + 1e-6 * np.arange(5)), 2.0),
        "one isolated pair": with_(5.0),
        "30 eigenvalues": bulk[:30],
    }


def judged(
    context: Context, name: str, found: dict[str, Rows], options: Options, is_network: bool
) -> Iterator[Finding]:
    exact = {"source": "all eigenvalues", "judged_from": "test"}
    high = options.tol * (1 + 1e-4)  # products that are formed anew are rounded anew
    for solver, rows in found.items():
        if solver.startswith("ours") and ("copies" not in solver or is_network):
            claim = f"{name}, {solver}: largest error of an eigenvalue, over |lambda|max"
            yield context.check(claim, rows.off.max(), 0.0, options.tol, **exact)
            claim = f"{name}, {solver}: largest residual, over |lambda|max"
            yield context.check(claim, rows.residual.max(), 0.0, high, **exact)
    if is_network:
        ratio = found[OURS].products / found[EIGSH].products
        yield context.check(
            f"{name}: products of ours over those of eigsh",
            *(np.median(ratio), 0.0, 1.0),
            source="SciPy",
            uncertainty=ratio.std(ddof=1) if len(ratio) > 1 else None,
        )


def run(context: Context, options: Options) -> Outcome:
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    for name, exact, operator, is_network in cases(context, options):
        found = {}
        for solver, solve in solvers(options).items():
            rows = found[solver] = measured(solve, operator, exact, options)
            print(f"{name}, {solver}: {rows.products} products, off by {rows.off}", flush=True)
            for quantity, column in vars(rows).items():
                values[f"{name}/{solver}/{quantity}"] = column
        findings += judged(context, name, found, options, is_network)
    notes = "" if importlib.util.find_spec("primme") else "PRIMME is not installed here"
    return Outcome(findings, values, notes=notes)


STUDY = Study(
    title="How many products do eigenpairs take?",
    source="the package's own claims",
    run=run,
    scales={
        "test": Options((TINY,), hard=0, k=2, basis_size=20, seeds=1),
        "cpu": Options(),
        "gpu": Options(MNIST, of_networks=True),
    },
    group="accuracy",
    data=("mnist",),
)
