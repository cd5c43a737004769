"""The data error against the scatter between data sets that are drawn anew."""

import numpy as np
import pytest
import torch
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum import SpectralMeasure


@pytest.mark.parametrize("estimator, probes, steps", [("block", 6, 3), ("slq", 16, 6)])
def test_its_size_is_the_scatter_between_data_sets(estimator, probes, steps):
    population = Population()
    sets = [population.inputs(seed) for seed in range(400)]
    truth = np.std([population.answers(x) for x in sets], axis=0, ddof=1)
    found = [population.error(sets[i], i, estimator, probes, steps) for i in range(population.sets)]
    ratio = np.sqrt(np.mean(np.square(found), axis=0)) / truth
    assert (ratio > 0.75).all() and (ratio < 1.6).all(), ratio


def ask(measure, name, args):
    value = getattr(measure, name)
    return value(*args) if callable(value) else value


class Population:
    """Linear regression: H = 2 X^T X / N, and every answer follows from its eigenvalues."""

    n, count, sets = 20, 200, 20
    queries = (
        ("trace", ()),
        ("frobenius_norm", ()),
        ("effective_dimension", (1.0,)),
        ("density", (1.0, 0.1)),
        ("moment", (3,)),
    )

    def inputs(self, seed):
        generator = torch.Generator().manual_seed(1000 + seed)
        scales = torch.linspace(0.3, 1.5, self.n, dtype=torch.float64)
        return scales * torch.randn(self.count, self.n, generator=generator, dtype=torch.float64)

    def answers(self, x):
        values = torch.linalg.eigvalsh(2 * x.T @ x / len(x)).numpy()
        weights, exact = np.full((1, self.n), 1 / self.n), np.ones(self.n, dtype=bool)
        measure = SpectralMeasure(values, weights, self.n, 0 * values, exact)
        return [ask(measure, *query) for query in self.queries]

    def error(self, x, seed, estimator, probes, steps):
        model = nn.Linear(self.n, 1, bias=False).double()
        ev = hs.Evaluator(model, nn.MSELoss(), (x, torch.zeros(len(x), 1)), batch_size=len(x))
        measure = hs.spectral_density(
            hs.Hessian(ev), probes, steps, seed, estimator=estimator, data_groups=8
        )
        return [measure.data_error(name, *args) for name, args in self.queries]
