"""The studies of classical results on small networks: their descents and batches of networks."""

import numpy as np
import pytest
import torch
from torch import nn

import hessian_spectrum as hs
from benchmarks.studies.small_data_success import hidden, outputs, starts
from benchmarks.studies.spurious_minima import descend, minima
from hessian_spectrum.zoo.student_teacher import expected_loss


def test_descents_end_at_the_minimum_of_seven_units_or_at_the_teacher():
    # The ninth start of seed 0 is one that ends in the minimum.
    normal = np.random.default_rng(0).standard_normal((12, 7, 7))[6:10]
    ends, has_ended, _ = descend(torch.from_numpy(normal / 7**0.5), 0.5, 10_000)
    assert has_ended.all()
    losses = expected_loss(ends, torch.eye(7, dtype=torch.float64))
    assert (losses > 1e-6).tolist() == [False, False, True, False]
    ((point, count, _),) = minima(7, ends[2:3], losses[2:3])
    assert (count, point.kind) == (1, "minimum")
    assert point.loss == pytest.approx(0.0232027149, abs=5e-11)


@pytest.mark.parametrize("activation, module", [("relu", nn.ReLU), ("sigmoid", nn.Sigmoid)])
def test_the_batch_of_networks_is_the_networks(activation, module):
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).double()
    parameters = [p.detach() for p in starts(5, 2, 6, 0)]
    with torch.no_grad():
        parameters[1] -= 0.4
    found = outputs(parameters, x, activation)
    alive = (hidden(parameters, x, activation) > 0).any(1).sum(1)
    for i, (w, b, v, c) in enumerate(zip(*parameters)):
        model = nn.Sequential(nn.Linear(2, 6), module(), nn.Linear(6, 1)).double()
        for own, given in zip(model.parameters(), (w, b, v[None], c[None])):
            own.data = given.clone()
        assert torch.allclose(model(x)[:, 0], found[i], rtol=0, atol=1e-15)
        ev = hs.Evaluator(model, nn.MSELoss(), (x, x[:, :1]))
        assert hs.dead_units(ev).count == (6 - alive[i] if activation == "relu" else 0)
