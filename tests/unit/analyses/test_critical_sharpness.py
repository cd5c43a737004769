"""Critical sharpness is curvature where the loss is quadratic, for whole and sharded models."""

import pytest
import torch
from torch import nn

import hessian_spectrum as hs


def evaluators():
    torch.manual_seed(0)
    data = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    model = nn.Linear(3, 2).double()
    return [kind(model, nn.MSELoss(), data) for kind in (hs.Evaluator, hs.ShardedEvaluator)]


@pytest.mark.parametrize("first_step", [1e-4, 1.0, 100.0])
def test_of_a_quadratic_loss_it_is_the_curvature_along_the_gradient(first_step):
    for ev in evaluators():
        g = ev.gradient()
        expected = (g @ (hs.Hessian(evaluators()[0]) @ g) / (g @ g)).item()
        found = hs.critical_sharpness(ev, first_step=first_step)
        assert found.sharpness == pytest.approx(expected, rel=1e-3)
        assert found.sharpness * found.step == pytest.approx(2)


def test_along_an_eigenvector_it_is_its_eigenvalue():
    ev = evaluators()[0]
    pairs = hs.eigenpairs(hs.Hessian(ev), 1, "largest")
    v = torch.from_numpy(pairs.vectors[0])
    v = v * (v @ ev.gradient()) / 1.0  # so that the critical step is 2 / lambda
    found = hs.critical_sharpness(ev, direction=v)
    assert found.sharpness == pytest.approx(pairs.values[0], rel=1e-3)


def test_a_loss_that_only_rises_or_never_does():
    ev = evaluators()[0]
    assert hs.critical_sharpness(ev, direction=-ev.gradient()).sharpness == float("inf")
    with pytest.raises(hs.InputError, match="the direction is zero"):
        hs.critical_sharpness(ev, direction=torch.zeros(ev.n))
    with pytest.raises(hs.InputError, match="first_step=0"):
        hs.critical_sharpness(ev, first_step=0)
