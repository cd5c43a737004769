"""Does the data error estimated from one data set match the scatter between data sets?

Data sets are samples of a synthetic population; the network's parameters are fixed. The truth is
the standard deviation over many data sets of exact answers (all eigenvalues of the dense Hessian).
The estimate is the root mean square of ``measure.data_error`` over some data sets, each from its
own samples alone. Stated over true is 1 where the estimate is calibrated; "ideal" is the jackknife
with exact answers, and what the estimate has in addition comes from the probes and the Krylov
space.

Where the Krylov space is the whole space the estimate is the ideal one, which the test checks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from hessian_spectrum.loss.data_groups import random_groups
from hessian_spectrum.spectral import jackknife
from hessian_spectrum.spectral.quadrature import Array

INPUTS, HIDDEN, CLASSES = 8, 16, 4
N = (INPUTS + 1) * HIDDEN + (HIDDEN + 1) * CLASSES  # parameters
Query = tuple[str, tuple[Any, ...]]  # name, arguments


@dataclass(frozen=True)
class Options:
    """
    Args:
        samples: of a data set.
        groups: of the jackknife.
        sets: data sets for which the error is estimated.
        truth: data sets whose exact answers give the truth.
    """

    samples: tuple[int, ...] = (400, 1600)
    groups: int = 8
    num_probes: int = 12
    num_steps: int = 15
    sets: int = 12
    truth: int = 120
    training: int = 300  # steps


def population(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs of different variances, labels drawn from a network's own distribution."""
    generator = torch.Generator().manual_seed(seed + 1000)
    x = torch.randn(count, INPUTS, generator=generator) * torch.linspace(2, 0.3, INPUTS)
    y = torch.multinomial(torch.softmax(2 * network(10, 0)(x), 1), 1, generator=generator)
    return x, y[:, 0]


def network(width: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, CLASSES))


def trained(steps: int) -> nn.Module:
    model, (x, y) = network(HIDDEN, 1), population(4000, -2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.double()


def queries(measure: hs.SpectralMeasure) -> list[Query]:
    top = measure.support[1]
    sigma2 = (0.03 * top) ** 2
    return [
        *(("trace", ()), ("frobenius_norm", ()), ("effective_dimension", (0.01,))),
        *(("density", (t, sigma2)) for t in (0.0, 0.1 * top, top)),
        *(("count", (0.2 * top, np.inf)), ("count", (0.01 * top, np.inf))),
        ("negative_fraction", (0.001,)),
    ]


def exact(model: nn.Module, data: tuple[Tensor, Tensor]) -> hs.SpectralMeasure:
    """From all eigenvalues."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]
    x, y = data[0].double(), data[1]

    def loss(theta: Tensor) -> Tensor:
        parts = {k: t.view_as(p) for (k, p), t in zip(named.items(), theta.split(sizes))}
        return F.cross_entropy(torch.func.functional_call(model, parts, (x,)), y)

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    values = torch.linalg.eigvalsh(torch.func.hessian(loss)(theta)).numpy()
    n = len(values)
    return hs.SpectralMeasure(values, np.full((1, n), 1 / n), n, 0 * values, np.ones(n, dtype=bool))


def answers(measure: hs.SpectralMeasure, asked: list[Query]) -> Array:
    found = [(getattr(measure, name), args) for name, args in asked]
    return np.array([value(*args) if callable(value) else value for value, args in found])


def stated(options: Options, model: nn.Module, count: int, seed: int, asked: list[Query]) -> Array:
    """(2, queries): the estimate, and the jackknife of exact answers with the same groups."""
    ev = hs.Evaluator(model, nn.CrossEntropyLoss(), population(count, seed), batch_size=count)
    size = options.num_probes, options.num_steps
    measure = hs.spectral_density(hs.Hessian(ev), *size, seed, data_groups=options.groups)
    own = [measure.data_error(name, *args) for name, args in asked]
    groups = [next(iter(group.batches)) for group in random_groups(ev, options.groups, seed)]
    without = [
        answers(exact(model, tuple(map(torch.cat, zip(*(groups[:i] + groups[i + 1 :]))))), asked)
        for i in range(len(groups))
    ]
    shares = np.array([len(y) for _, y in groups]) / count
    whole = answers(exact(model, population(count, seed)), asked)
    ideal = jackknife.standard_error(whole[None], np.array(without)[:, None], shares)
    return np.array([own, ideal])


def judged(
    context: Context,
    options: Options,
    count: int,
    asked: list[Query],
    deviation: Array,
    rows: Array,
) -> Iterator[Finding]:
    """Of the answers at one size of data sets; rows, (set, 2, query), as ``stated`` has them."""
    own, ideal = np.sqrt(np.mean(np.square(rows), axis=0))
    # Of a standard deviation of normal numbers, relative.
    spread = (2 * (options.truth - 1)) ** -0.5
    for (name, args), true, mean in zip(asked, deviation, own):
        words = f"{name}({', '.join(f'{x:.3g}' for x in args)})"
        yield context.check(
            f"{count} samples, {words}: stated error over the true one",
            *(mean / true, 0.8, 1.7),
            source="measured 2026-11-22: 0.9 to 1.6",
            uncertainty=spread * mean / true,
        )
    whole = options.num_probes * options.num_steps >= N
    trace = [name for name, _ in asked].index("trace")
    if whole:
        yield context.check(
            f"{count} samples, trace: stated error over that of the jackknife with exact answers",
            *(own[trace] / ideal[trace], 1 - 1e-6, 1 + 1e-6),
            source="the Krylov space is the whole space",
            judged_from="test",
        )


def run(context: Context, options: Options) -> Outcome:
    warnings.filterwarnings("ignore", message="effective_dimension")
    model = trained(options.training)
    asked = queries(exact(model, population(20_000, -1)))
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    for count in options.samples:

        def make(count: int = count) -> dict[str, Any]:
            truth = [
                answers(exact(model, population(count, s)), asked) for s in range(options.truth)
            ]
            rows = [stated(options, model, count, s, asked) for s in range(options.sets)]
            return {"truth": truth, "rows": rows}

        found = context.kept(f"{count}", options, make)
        deviation = np.std(found["truth"], axis=0, ddof=1)
        findings += judged(context, options, count, asked, deviation, found["rows"])
        values[f"{count}/true"] = deviation
        values[f"{count}/stated and ideal"] = found["rows"]
    return Outcome(findings, values)


STUDY = Study(
    title="Is the stated error over data sets right?",
    source="the package's own claims",
    run=run,
    scales={
        "test": Options((60,), groups=2, num_steps=18, sets=1, truth=2, training=20),
        "cpu": Options(),
        "gpu": Options(sets=30, truth=300),
    },
    group="accuracy",
)
