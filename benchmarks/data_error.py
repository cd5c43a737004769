"""Does the data error estimated from one data set match the scatter between data sets?

Data sets are samples of a synthetic population; the network's parameters are fixed. The truth is
the standard deviation over many data sets of exact answers (all eigenvalues of the dense Hessian).
The estimate is the root mean square of ``measure.data_error`` over some data sets, each from its
own samples alone::

    python benchmarks/data_error.py --samples 400 1600

A ratio of 1 means calibrated. The last column is the jackknife with exact answers; what the
estimate has in addition comes from the probes and the Krylov space.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

import hessian_spectrum as hs
from hessian_spectrum.loss.data_groups import random_groups
from hessian_spectrum.spectral import jackknife
from hessian_spectrum.spectral.quadrature import Array

INPUTS, HIDDEN, CLASSES = 8, 16, 4


@dataclass(frozen=True, kw_only=True)
class Config:
    samples: tuple[int, ...] = (400, 1600)
    """Samples of a data set."""
    groups: int = 8
    num_probes: int = 12
    num_steps: int = 15
    sets: int = 30
    """Data sets for which the error is estimated."""
    truth: int = 300
    """Data sets whose exact answers give the truth."""


def main(config: Config) -> None:
    warnings.filterwarnings("ignore", message="effective_dimension")
    model = trained()
    print("| samples | query | answer | sd over data sets | stated / sd | exact jackknife / sd |")
    print("|---|---|---|---|---|---|")
    for count in config.samples:
        asked = queries(exact(model, population(20_000, -1)))
        truth = [answers(exact(model, population(count, s)), asked) for s in range(config.truth)]
        deviation = np.std(truth, axis=0, ddof=1)
        rows = [stated(config, model, count, s, asked) for s in trange(config.sets, disable=None)]
        ratios = np.sqrt(np.mean(np.square(rows), axis=0)) / deviation
        for (name, args), mean, sd, own, ideal in zip(
            asked, np.mean(truth, axis=0), deviation, *ratios
        ):
            words = f"{name}({', '.join(f'{x:.3g}' for x in args)})"
            print(f"| {count} | {words} | {mean:.4g} | {sd:.2g} | {own:.2f} | {ideal:.2f} |")


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


def trained() -> nn.Module:
    model, (x, y) = network(HIDDEN, 1), population(4000, -2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.double()


def queries(measure: hs.SpectralMeasure) -> list[tuple[str, tuple[Any, ...]]]:
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


def answers(measure: hs.SpectralMeasure, asked: list) -> Array:
    found = [(getattr(measure, name), args) for name, args in asked]
    return np.array([value(*args) if callable(value) else value for value, args in found])


def stated(config: Config, model: nn.Module, count: int, seed: int, asked: list) -> Array:
    """(2, queries): the estimate, and the jackknife of exact answers with the same groups."""
    ev = hs.Evaluator(model, nn.CrossEntropyLoss(), population(count, seed), batch_size=count)
    size = config.num_probes, config.num_steps
    measure = hs.spectral_density(hs.Hessian(ev), *size, seed, data_groups=config.groups)
    own = [measure.data_error(name, *args) for name, args in asked]
    groups = [next(iter(group.batches)) for group in random_groups(ev, config.groups, seed)]
    without = [
        answers(exact(model, tuple(map(torch.cat, zip(*(groups[:i] + groups[i + 1 :]))))), asked)
        for i in range(len(groups))
    ]
    shares = np.array([len(y) for _, y in groups]) / count
    whole = answers(exact(model, population(count, seed)), asked)
    ideal = jackknife.standard_error(whole[None], np.array(without)[:, None], shares)
    return np.array([own, ideal])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
