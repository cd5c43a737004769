"""Deep linear networks: trained losses, critical points, lines and flows have closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import minimize
from torch.utils.data import TensorDataset

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo import model_for
from hessian_spectrum.zoo.objectives import problem_for

SPREAD = (3.0, 2.0, 1.2, 0.7, 0.4, 0.2)  # standard deviations of the inputs' components


def components(size=40, seed=0):
    """Inputs (N, F), float64, with spread-out second moments."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, len(SPREAD), generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    return (x * torch.tensor(SPREAD, dtype=torch.float64)) @ rotation


def problem(name, data, seed=0):
    return problem_for(name, "mse", model_for(data, name, "tanh", seed).double(), data)


def least(ev):
    """The parameters at which L-BFGS, with exact gradients, ends."""

    def value(theta):
        theta = torch.as_tensor(theta)
        return ev.loss(theta).item(), ev.gradient(theta).numpy()

    options = {"maxiter": 5000, "ftol": 1e-18, "gtol": 1e-11, "maxcor": 50}
    found = minimize(value, ev.theta.numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.as_tensor(found.x)


@pytest.mark.parametrize("name, p", [("autoencoder-6-2-6", 2), ("autoencoder-6-5-3-4-6", 3)])
def test_a_trained_autoencoder_keeps_the_principal_components(name, p):
    x = components()
    data = TensorDataset(x, torch.zeros(len(x), dtype=torch.int64))
    ev = problem(name, data).evaluator()
    theta = least(ev)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    left_out = values[:-p].sum() / 2
    assert abs(ev.loss(theta) - left_out) <= 1e-9 * left_out
    # The product of its matrices is the projection on the p largest components.
    product = torch.eye(6, dtype=torch.float64)
    for matrix in ev.layout.unflatten(theta).values():
        product = matrix @ product
    largest = vectors[:, -p:]
    assert torch.allclose(product, largest @ largest.T, atol=1e-4)


def test_a_deep_regression_leaves_out_the_least_of_what_its_targets_have_of_the_inputs():
    # Baldi and Hornik's general case: Sigma = Sigma_yx Sigma_xx^-1 Sigma_xy.
    x = components()
    labels = (x @ torch.arange(18, dtype=torch.float64).view(6, 3).sin()).argmax(1)
    data = TensorDataset(x, labels)
    ev = problem("dlinear-6-4-2-3", data).evaluator()
    y = torch.nn.functional.one_hot(labels, 3).double()
    fitted = x @ torch.linalg.lstsq(x, y).solution
    values = torch.linalg.eigvalsh(fitted.T @ y / len(x))
    closed_form = (y.square().sum() / len(x) - values[-2:].sum()) / 2
    assert abs(ev.loss(least(ev)) - closed_form) <= 1e-9 * closed_form


@pytest.mark.parametrize("chosen", [(5, 4), (5, 3), (4, 0), (2, 1)])
def test_other_choices_of_components_are_saddles(chosen):
    # Baldi and Hornik, fact 4: critical points project on eigenvectors; all but one are saddles.
    x = components()
    data = TensorDataset(x, torch.zeros(len(x), dtype=torch.int64))
    given = problem("autoencoder-6-2-6", data)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    kept = vectors[:, list(chosen)]
    with torch.no_grad():
        given.model[1].weight.copy_(kept.T)
        given.model[2].weight.copy_(kept)
    ev = given.evaluator()
    loss = (values.sum() - values[list(chosen)].sum()) / 2
    assert abs(ev.loss() - loss) <= 1e-12 * loss
    assert ev.gradient().norm() <= 1e-12 * values.sum()
    hessian = torch.as_tensor(hs.Hessian(ev) @ torch.eye(ev.n, dtype=torch.float64))
    smallest = torch.linalg.eigvalsh(hessian)[0]
    rounding = 1e-12 * values.sum()
    assert (smallest >= -rounding) if chosen == (5, 4) else (smallest < -1e-3)


# (1 - w1 w2)^2, the network of two weights of Goodfellow, Vinyals and Saxe (2015): twice our loss.


def two_weights(w1, w2):
    one = torch.ones(1, 1, dtype=torch.float64)
    data = TensorDataset(one, torch.zeros(1, dtype=torch.int64))  # the one class: the target 1
    given = problem("dlinear-1-1-1", data)
    with torch.no_grad():
        given.model[1].weight.fill_(w1)
        given.model[2].weight.fill_(w2)
    return given.evaluator()


@pytest.mark.parametrize(
    "start, end", [((0.0, 0.0), (1.0, 1.0)), ((0.1, -0.2), (4.0, 0.25)), ((1.0, 1.0), (-1.0, -1.0))]
)
def test_the_loss_along_a_line_is_the_polynomial_of_fourth_order(start, end):
    start, end = np.array(start), np.array(end)
    ev = two_weights(*start)
    line = hs.interpolate(ev, torch.as_tensor(start), torch.as_tensor(end), 200, window=(-0.5, 1.5))
    weights = start + np.asarray(line.t)[:, None] * (end - start)
    curve = (1 - weights.prod(1)) ** 2
    assert np.abs(2 * line.values["loss"] - curve).max() <= 1e-12 * curve.max()


def test_its_hessian_is_the_polynomial_of_second_order():
    for w1, w2 in ((0.0, 0.0), (0.3, -2.0), (1.5, 1 / 1.5)):
        hessian = torch.as_tensor(hs.Hessian(two_weights(w1, w2)) @ torch.eye(2).double())
        mixed = 2 * w1 * w2 - 1
        by_hand = torch.tensor([[w2 * w2, mixed], [mixed, w1 * w1]], dtype=torch.float64)
        assert torch.allclose(hessian, by_hand, rtol=0, atol=1e-12)


def test_its_gradient_flow_is_the_logistic_curve():
    # Saxe, McClelland and Ganguli (2014): from equal weights, u = w1 w2 obeys du/dt = 2 u (1 - u).
    ev, u0 = two_weights(0.1, 0.1), 0.01
    times = np.linspace(0, 6, 13)
    flow = solve_ivp(
        lambda _, w: -ev.gradient(torch.as_tensor(w)).numpy(),
        *((0.0, 6.0), [0.1, 0.1]),
        **{"method": "DOP853", "t_eval": times, "rtol": 1e-12, "atol": 1e-14},
    )
    exact = 1 / (1 + (1 / u0 - 1) * np.exp(-2 * times))
    assert np.abs(flow.y.prod(0) - exact).max() <= 1e-10


@pytest.mark.parametrize(
    "name, loss, words",
    [
        ("autoencoder-6-2-5", "mse", "use autoencoder-6-2-6"),
        ("dlinear-5-2-1", "mse", "use dlinear-6-2-1"),
        ("autoencoder-6-2-6", "cross-entropy", "cannot be trained with the loss 'cross-entropy'"),
    ],
)
def test_sizes_and_losses_that_do_not_fit_are_refused(name, loss, words):
    x = components()
    data = TensorDataset(x, torch.zeros(len(x), dtype=torch.int64))
    with pytest.raises(InputError, match=words):
        problem_for(name, loss, model_for(data, name, "tanh", 0), data)


def test_any_depth_is_a_product_of_matrices_of_the_named_sizes():
    data = TensorDataset(components(), torch.zeros(40, dtype=torch.int64))
    model = model_for(data, "dlinear-6-4-4-4-4-4-1", "tanh", 0, width=0.5)
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert shapes == [(2, 6), (2, 2), (2, 2), (2, 2), (2, 2), (1, 2)]
    assert sum(map(math.prod, shapes)) == 30
