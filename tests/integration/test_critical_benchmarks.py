"""Networks with one hidden layer, as studies write them out: derivatives and Newton steps."""

import pytest
import torch
from torch import nn

import hessian_spectrum as hs
from benchmarks.suite.two_layer import TwoLayer, newton


def half_squares(outputs, targets):
    return (outputs - targets).square().sum(1).mean() / 2


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.parametrize("biases", [True, False])
def test_written_out_derivatives_are_those_of_the_package(activation, loss, biases):
    torch.manual_seed(0)
    x, y = torch.randn(20, 4).double(), torch.eye(3).double()[torch.arange(20) % 3]
    net = TwoLayer(x, y, 2, activation, loss, biases, 0.01)
    loss_fn = half_squares if loss == "mse" else nn.CrossEntropyLoss()
    ev = hs.Evaluator(net.module(), loss_fn, (x, y), weight_decay=0.01)
    theta = torch.randn(2, net.n).double()
    order = net.parameters(torch.arange(net.n)[None].double())[0].long()
    for point, value, gradient, matrix in zip(
        net.parameters(theta), net.losses(theta), net.gradients(theta), net.hessians(theta)
    ):
        assert ev.loss(point).item() == pytest.approx(value.item(), rel=1e-13)
        assert torch.allclose(ev.gradient(point), gradient[order], atol=1e-13)
        found = hs.Hessian(ev, point) @ torch.eye(net.n).double()
        assert torch.allclose(found, matrix[order][:, order], atol=1e-13)


def test_newton_steps_of_many_points_end_at_critical_points():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3).double(), torch.eye(2).double()[torch.arange(20) % 2]
    net = TwoLayer(x, y, 2, "tanh", "cross-entropy", True, 0.05)
    found, norms = newton(net, torch.randn(8, net.n).double(), 60, 1e-10)
    ended = norms <= 1e-10
    assert ended.sum() >= 4
    ev = hs.Evaluator(net.module(), nn.CrossEntropyLoss(), (x, y), weight_decay=0.05)
    for theta in net.parameters(found[ended]):
        assert ev.gradient(theta).norm() < 1e-9
