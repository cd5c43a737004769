"""Half the squared distance of a sample's outputs: its value, its samples and its matrices."""

import pytest
import torch
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss.squared_error import SquaredError


def batch(size=7, inputs=4, classes=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, inputs, generator=generator, dtype=torch.float64)
    return x, torch.arange(size) % classes


def linear(inputs=4, classes=3):
    torch.manual_seed(1)
    return nn.Linear(inputs, classes).double()


def test_it_is_half_the_squared_distance_summed_over_outputs_and_averaged_over_samples():
    outputs, labels = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 3.0]]), torch.tensor([1, 2])
    by_hand = torch.tensor([(1 + 1 + 16) / 2, (0 + 0 + 4) / 2])
    assert torch.equal(SquaredError("none")(outputs, labels), by_hand)
    assert SquaredError()(outputs, labels) == by_hand.mean()
    assert SquaredError("sum")(outputs, labels) == by_hand.sum()
    floats = nn.functional.one_hot(labels, 3).float()
    assert torch.equal(SquaredError("none")(outputs, floats), by_hand)
    assert SquaredError()(outputs, floats) == 3 / 2 * nn.MSELoss()(outputs, floats)


def test_pictures_count_as_one_sample_each():
    x = torch.rand(2, 3, 4, 4)
    assert SquaredError("none")(x, torch.zeros_like(x)).shape == (2,)


@pytest.mark.parametrize("targets", [torch.zeros(2), torch.zeros(2, 4), torch.zeros(3, 3)])
def test_targets_that_would_be_broadcast_are_refused(targets):
    with pytest.raises(InputError, match="expected the same shape"):
        SquaredError()(torch.zeros(2, 3), targets)


def test_the_hessian_of_a_linear_model_is_the_second_moment_of_its_inputs():
    x, y = batch()
    ev = hs.Evaluator(linear(), SquaredError(), (x, y), batch_size=3)
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    moment = ones.T @ ones / len(x)
    weights = torch.kron(torch.eye(3, dtype=x.dtype), moment[:4, :4])
    hessian = torch.as_tensor(hs.Hessian(ev) @ torch.eye(ev.n, dtype=x.dtype))
    assert torch.allclose(hessian[:12, :12], weights, rtol=1e-12, atol=1e-14)
    for matrix in (hs.GaussNewton(ev), hs.Fisher(ev)):  # of a Gaussian of unit variance
        product = torch.as_tensor(matrix @ torch.eye(ev.n, dtype=x.dtype))
        assert torch.allclose(product, hessian, rtol=1e-12, atol=1e-14)


def test_gradients_of_samples_are_known():
    x, y = batch()
    model = linear()
    ev = hs.Evaluator(model, SquaredError(), (x, y), batch_size=3)
    moment = hs.GradientCovariance(ev, centered=False)
    rows = []
    for i in range(len(x)):
        model.zero_grad()
        loss = (model(x[i]) - nn.functional.one_hot(y[i], 3)).square().sum() / 2
        loss.backward()
        rows.append(torch.cat([model.weight.grad.flatten(), model.bias.grad]))
    gradients = torch.stack(rows)
    product = torch.as_tensor(moment @ torch.eye(ev.n, dtype=x.dtype))
    assert torch.allclose(product, gradients.T @ gradients / len(x), rtol=1e-12, atol=1e-14)


def test_labels_without_an_output_are_refused():
    x, y = batch()
    with pytest.raises(InputError, match="label 3, but the model has 3 outputs"):
        hs.Evaluator(linear(), SquaredError(), (x, y + 1))
