"""The studies of classical results on small networks: their descents and batches of networks."""

import numpy as np
import pytest
import torch
from hand import bowl
from torch import nn

import hessian_spectrum as hs
from benchmarks.studies.asymmetric_valleys import RISE, distances, larger_side
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


def test_a_distance_is_where_the_loss_has_risen():
    ev = bowl(
        torch.diag(torch.tensor([1.0, 25.0, 0.04], dtype=torch.float64)), theta=(0.0, 0.0, 0.0)
    )
    # Away from (3, 4, 0) the mean of both sides rises by h l^2 / 2 as at the minimum.
    found = distances(ev, torch.tensor([3.0, 4.0, 0.0]).double(), torch.eye(3).double())
    np.testing.assert_allclose(found, (2 * RISE / np.array([1.0, 25.0, 0.04])) ** 0.5, rtol=1e-9)


def test_the_ratio_of_slopes_does_not_depend_on_the_sign_of_a_direction():
    found = {
        "forward": np.array([[1.0, 2.0], [6.0, 8.0]]),
        "backward": np.array([[6.0, 8.0], [1.0, 2.0]]),
    }
    assert larger_side(found, {"r": 1.01, "zeta": 0.49}).tolist() == [3.0, 3.0]
    assert larger_side(found, {"r": 1.01, "zeta": 0.99}).tolist() == [4.0, 4.0]
