"""Time to a density as accurate as a peer's: wall-clock time with set-up and tracing.

On one network, in turn: ours with several budgets of products, and PyHessian, curvlinops and
hessian-eigenthings with 900 products (10 probes, 90 steps), each by its own Lanczos quadrature on
all the data in one batch. All densities are smoothed in the same way from nodes and weights, and
compared with the exact eigenvalues by their L1 error, as in ``exact_density.py``::

    python benchmarks/density_peers.py --model mlp-784-20-10 --activation tanh --dataset mnist \
        --data-root ../shared/data --checkpoint nets/tanh/epoch-0020.pt --peers peers

The measured time starts with model and data in memory and ends with nodes and weights. Ours
includes the evaluator, its checks and the plan, chosen as by the command ``density``. Every method
runs once on a few samples first, so that imports are not timed. A ratio is the peer's time divided
by that of our smallest budget whose median error is at most the peer's, repeat by repeat.
"""

from __future__ import annotations

import copy
import importlib
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn

import hessian_spectrum as hs
from benchmarks.suite import peers
from benchmarks.suite.exact import eigenvalues, l1_distance
from hessian_spectrum.algorithms import budget
from hessian_spectrum.config import ProblemConfig
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.planning import product_planner
from hessian_spectrum.zoo import problem_loader

WARM_UP_SAMPLES = 100
FORMATS = {"time": "{:.2f}", "error": "{:.5f}", "ratio": "{:.1f}"}


@dataclass(frozen=True, kw_only=True)
class Config(ProblemConfig):
    num_products: tuple[int, ...] = (90, 120, 180, 360)
    """Our budgets; the package chooses probes and steps."""
    num_probes: int = 10
    """Of the peers."""
    num_steps: int = 90
    """Of the peers."""
    methods: tuple[str, ...] = ("pyhessian", "curvlinops", "hessian-eigenthings")
    repeats: int = 5
    """Repeats, each with its own seed."""
    threads: int = 1
    sigma2: float = 1e-5
    peers: Path | None = None
    """Folder of peers, filled by ``pip install --no-deps --target``."""
    cache: Path = Path(__file__).parent / "cache"


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


def main(config: Config) -> None:
    config.check()
    torch.set_num_threads(config.threads)
    peers.find(config.peers)
    warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
    problem = replace(problem_loader.load(config), dtype=getattr(torch, config.dtype or "float32"))
    exact = eigenvalues(replace(problem, dtype=torch.float64).evaluator(), config.cache)
    methods = _methods(config)
    for method, probes, steps in methods.values():
        method(_work(problem, WARM_UP_SAMPLES), probes, min(steps, 12), 0)

    found = {name: Runs([], []) for name in methods}
    for repeat in range(config.repeats):
        for name, (method, probes, steps) in methods.items():
            work = _work(problem)
            clock = time.perf_counter()
            measure = method(work, probes, steps, repeat)
            found[name].seconds.append(time.perf_counter() - clock)
            found[name].errors.append(l1_distance(measure, exact, config.sigma2))
            words = f"{found[name].seconds[-1]:.2f} s, L1 {found[name].errors[-1]:.5f}"
            print(f"{repeat}  {name:32s} {words}", file=sys.stderr, flush=True)
    print("\n".join(report(config, len(exact), found)))


# -- methods ---------------------------------------------------------------------------------


def _methods(config: Config) -> dict[str, tuple[Method, int, int]]:
    """By name: the method, and its probes and steps."""
    ours_first = {}
    for products in config.num_products:
        probes, steps = budget.choose(1 << 62, num_products=products)
        ours_first[_name("ours", probes, steps)] = (ours, probes, steps)
    size = config.num_probes, config.num_steps
    return ours_first | {_name(name, *size): (PEERS[name], *size) for name in config.methods}


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
    """From each run's nodes and weights, which sum to 1 up to the rounding of float32."""
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


# -- the report ------------------------------------------------------------------------------


def report(config: Config, n: int, found: dict[str, Runs]) -> list[str]:
    """Markdown: times and errors of each method, then the ratio of each peer."""
    installed = ", ".join(f"{name} {version}" for name, version in peers.versions().items())
    lines = [
        f"{config.model} {config.activation}: n = {n:,}, sigma2 {config.sigma2:g}, "
        f"{config.dtype or 'float32'}, {config.threads} of {torch.multiprocessing.cpu_count()} "
        f"cores; torch {torch.__version__}, {installed}",
        "",
        f"median [min, max] of {config.repeats}",
        "",
        "| method | seconds | L1 | as good: ours with | times ours |",
        "|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        cells = [_cell("time", runs.seconds), _cell("error", runs.errors)]
        cells += [] if name.startswith("ours") else _compared(found, runs)
        lines.append(f"| {name} | " + " | ".join([*cells, "", ""][:4]) + " |")
    return lines


def _compared(found: dict[str, Runs], peer: Runs) -> list[str]:
    """Our smallest budget that is as accurate as the peer, and the ratio of times."""
    for name, runs in found.items():
        if name.startswith("ours") and np.median(runs.errors) <= np.median(peer.errors):
            ratios = [theirs / own for theirs, own in zip(peer.seconds, runs.seconds)]
            return [name.removeprefix("ours, "), _cell("ratio", ratios)]
    return ["none of these", ""]


def _name(method: str, probes: int, steps: int) -> str:
    return f"{method}, {probes} x {steps}"


def _cell(kind: str, values: list[float]) -> str:
    number = FORMATS[kind].format
    return f"{number(np.median(values))} [{number(min(values))}, {number(max(values))}]"


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
