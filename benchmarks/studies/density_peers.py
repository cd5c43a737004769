"""Time to a density as accurate as a peer's: with set-up and tracing.

On one network, in turn: ours with several budgets of products, and PyHessian, curvlinops and
hessian-eigenthings, as far as they are installed, with 900 products (10 probes, 90 steps), each by
its own Lanczos quadrature on all the data in one batch. All densities are smoothed in the same way
from nodes and weights, and compared with all eigenvalues by their L1 error.

The time starts with model and data in memory and ends with nodes and weights. Ours includes the
evaluator, its checks and the plan, chosen as by the command ``density``. Every method runs once on
a few samples first, so that imports are not timed. A ratio is the peer's time over that of our
smallest budget whose median error is at most the peer's, repeat by repeat.

The test has a tiny network; as many products as there are parameters make the density exact.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study, peers
from benchmarks.suite.exact import l1_distance
from benchmarks.suite.exact_networks import DIGITS, MNIST, TINY, Network
from benchmarks.suite.timing import Ratio, clock, seconds, spread
from hessian_spectrum.algorithms import budget
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.planning import product_planner

WARM_UP_SAMPLES = 100
PACKAGES = {
    "pyhessian": "pyhessian",
    "curvlinops": "curvlinops",
    "hessian-eigenthings": "hessian_eigenthings",
}


@dataclass(frozen=True)
class Options:
    """
    Args:
        num_products: our budgets; the package chooses probes and steps.
        num_probes, num_steps: of the peers.
        repeats: each with its own seed.
        sigma2: of the smoothing; None: (width of the spectrum / 500)^2.
    """

    network: Network = DIGITS[0]
    num_products: tuple[int, ...] = (90, 120, 180, 360)
    num_probes: int = 10
    num_steps: int = 90
    methods: tuple[str, ...] = tuple(PACKAGES)
    repeats: int = 3
    threads: int = 1
    dtype: str = "float32"
    sigma2: float | None = None


@dataclass(frozen=True)
class Work:
    """The problem, in memory, of which a density is computed."""

    problem: Problem
    model: nn.Module  # in eval mode, of the evaluator's dtype
    inputs: Tensor
    targets: Tensor

    @property
    def loss_fn(self) -> nn.Module:
        return self.problem.loss_fn

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """All the data as one batch, which is fastest for each peer if memory allows it."""
        return [(self.inputs, self.targets)]


@dataclass(frozen=True)
class Runs:
    """All repeats of one method, in their order."""

    seconds: list[float]
    errors: list[float]  # L1


Method = Callable[[Work, int, int, int], hs.SpectralMeasure]  # probes, steps, seed


def measured(
    context: Context, options: Options, methods: dict[str, tuple[Method, int, int]]
) -> tuple[dict[str, Runs], int]:
    """All repeats of each method, and the number of parameters."""
    problem = options.network.problem(context, getattr(torch, options.dtype))
    exact = options.network.exact(context)
    sigma2 = options.sigma2 or ((exact[-1] - exact[0]) / 500) ** 2
    for method, probes, steps in methods.values():
        method(_work(problem, WARM_UP_SAMPLES), probes, min(steps, 12), 0)
    now = clock(options.threads)
    found = {name: Runs([], []) for name in methods}
    for repeat in range(options.repeats):
        for name, (method, probes, steps) in methods.items():
            work, made = _work(problem), []

            def action(method=method, size=(probes, steps, repeat), work=work, made=made) -> None:
                made.append(method(work, *size))

            found[name].seconds.append(seconds(action, now))
            found[name].errors.append(l1_distance(made[0], exact, sigma2))
    return found, len(exact)


# -- methods ---------------------------------------------------------------------------------


def _methods(options: Options) -> dict[str, tuple[Method, int, int]]:
    """By name: the method, and its probes and steps."""
    found = {}
    for products in options.num_products:
        probes, steps = budget.choose(1 << 62, num_products=products)
        found[_name("ours", probes, steps)] = (ours, probes, steps)
    size = options.num_probes, options.num_steps
    for name in options.methods:
        if peers.is_installed(PACKAGES[name]):
            found[_name(name, *size)] = (PEERS[name], *size)
    return found


def ours(work: Work, num_probes: int, num_steps: int, seed: int) -> hs.SpectralMeasure:
    """Evaluator, plan as chosen by the command line, and block estimator."""
    evaluator = work.problem.evaluator()
    operator = hs.Hessian(evaluator)
    estimate = product_planner.plan(
        evaluator, operator.theta, num_probes, num_steps, form=operator.form
    )
    operator = operator.planned(estimate.plan, estimate.first)
    return hs.spectral_density(operator, num_probes, num_steps, seed)


def pyhessian(work: Work, num_probes: int, num_steps: int, seed: int) -> hs.SpectralMeasure:
    """``hessian.density`` with all the data as one batch, whose graph it keeps."""
    package = peers.imported("pyhessian")
    peers.replace_eig()
    torch.manual_seed(seed)
    data = work.inputs, work.targets
    hessian = package.hessian(work.model, work.loss_fn, data, cuda=work.inputs.is_cuda)
    nodes, weights = hessian.density(iter=num_steps, n_v=num_probes)
    return _measure(work, nodes, weights)


def curvlinops(work: Work, num_probes: int, num_steps: int, seed: int) -> hs.SpectralMeasure:
    """``fast_lanczos`` as ``lanczos_approximate_spectrum`` calls it, without spectral bounds."""
    package = peers.imported("curvlinops")
    spectrum = importlib.import_module("curvlinops.papyan2020traces.spectrum")
    torch.manual_seed(seed)
    parameters = list(work.model.parameters())
    operator = package.HessianLinearOperator(
        work.model, work.loss_fn, parameters, work.batches, check_deterministic=False
    )
    runs = [spectrum.fast_lanczos(operator, num_steps) for _ in range(num_probes)]
    return _measure(work, [nodes for nodes, _ in runs], [vectors[0] ** 2 for _, vectors in runs])


def eigenthings(work: Work, num_probes: int, num_steps: int, seed: int) -> hs.SpectralMeasure:
    """``spectral_density`` with 2 grid points in place of 10,000, since the grid is not used."""
    package = peers.imported("hessian_eigenthings")
    loss = package.supervised_loss(work.loss_fn)
    operator = package.HessianOperator(work.model, work.batches, loss)
    found = package.spectral_density(
        operator, num_runs=num_probes, lanczos_steps=num_steps, num_grid_points=2, seed=seed
    )
    rows = list(zip(found.raw_eigenvalues, found.raw_weights))
    kept = [~nodes.isnan() for nodes, _ in rows]  # padding of runs that ended early
    return _measure(
        work,
        [nodes[keep] for (nodes, _), keep in zip(rows, kept)],
        [weights[keep] for (_, weights), keep in zip(rows, kept)],
    )


PEERS: dict[str, Method] = {
    "pyhessian": pyhessian,
    "curvlinops": curvlinops,
    "hessian-eigenthings": eigenthings,
}


def _work(problem: Problem, samples: int | None = None) -> Work:
    """A problem with a copy of the model, since some methods leave gradients in it."""
    model = copy.deepcopy(problem.model).to(dtype=problem.dtype).eval()
    inputs, targets = (tensor[:samples] for tensor in problem.data)
    inputs = inputs.to(problem.dtype)
    return Work(replace(problem, model=model, data=(inputs, targets)), model, inputs, targets)


def _measure(work: Work, nodes: Sequence, weights: Sequence) -> hs.SpectralMeasure:
    """From each run's nodes and weights, which sum to 1 up to the up to rounding."""
    nodes = [np.asarray(run, dtype=np.float64) for run in nodes]
    weights = [np.asarray(run, dtype=np.float64) for run in weights]
    joined = np.concatenate(nodes)
    rows = np.zeros((len(nodes), len(joined)))
    start = 0
    for row, run in zip(rows, weights):
        row[start : start + len(run)] = run / run.sum()
        start += len(run)
    order = np.argsort(joined, kind="stable")
    return hs.SpectralMeasure(
        nodes=joined[order],
        weights=rows[:, order],
        n=sum(p.numel() for p in work.model.parameters()),
        residuals=np.full(len(joined), np.nan),
        certified=np.zeros(len(joined), dtype=bool),
    )


# -- findings --------------------------------------------------------------------------------


def judged(context: Context, options: Options, n: int, found: dict[str, Runs]) -> Iterator[Finding]:
    own = {name: runs for name, runs in found.items() if name.startswith("ours")}
    for name in options.methods:
        claim = f"time of {name} over ours with a density as good"
        runs = found.get(_name(name, options.num_probes, options.num_steps))
        if runs is None:
            yield peers.absent(PACKAGES[name], claim)
            continue
        good = [r for r in own.values() if np.median(r.errors) <= np.median(runs.errors)]
        ratio = Ratio.of(runs.seconds, good[0].seconds if good else float("nan"))
        yield context.check(
            claim,
            *(ratio.median, 2.0, np.inf),
            source="measured 2026-11-22: 11 to 25 on MNIST",
            uncertainty=ratio.spread,
        )
    whole = [runs for name, runs in own.items() if np.prod(_size(name)) >= n]
    for runs in whole:
        yield context.check(
            "L1 of a density from as many products as there are parameters, the largest",
            *(max(runs.errors), 0.0, 1e-6),
            source="the Krylov space is the whole space; up to rounding",
            judged_from="test",
        )


def run(context: Context, options: Options) -> Outcome:
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
    found, n = measured(context, options, _methods(options))
    values: dict[str, Any] = {}
    notes = []
    for name, runs in found.items():
        values[f"{name}/seconds"], values[f"{name}/L1"] = runs.seconds, runs.errors
        notes.append(f"{name}: {spread(runs.seconds)} s, L1 {spread(runs.errors)}")
    return Outcome(list(judged(context, options, n, found)), values, notes="; ".join(notes))


def _name(method: str, probes: int, steps: int) -> str:
    return f"{method}, {probes} x {steps}"


def _size(name: str) -> tuple[int, int]:
    probes, steps = name.rpartition(", ")[2].split(" x ")
    return int(probes), int(steps)


STUDY = Study(
    title="How long does a density take, compared with other packages?",
    source="PyHessian, curvlinops and hessian-eigenthings, as documented",
    run=run,
    scales={
        "test": Options(TINY, (360,), methods=(), repeats=1, dtype="float64"),
        "cpu": Options(),
        "gpu": Options(MNIST[0], repeats=5, sigma2=1e-5),
    },
    group="speed",
    data=("mnist",),
)
