"""Optimizers by name, and the order of accuracy of the Runge-Kutta forms."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.optimizers import OPTIMIZERS, optimizer_named
from hessian_spectrum.zoo.runge_kutta import RungeKuttaAdam, RungeKuttaSGD

METHODS = {
    "midpoint": (1 / 2, 0.0, 1.0),
    "heun": (1.0, 1 / 2, 1 / 2),
    "ralston": (2 / 3, 1 / 4, 3 / 4),
}
H = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]], dtype=torch.float64)
START = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def quadratic(name, lr, **options):
    """A parameter at START, its optimizer, and a closure of 1/2 theta^T H theta."""
    theta = nn.Parameter(START.clone())
    optimizer = optimizer_named(name, [theta], lr, **options)

    def closure():
        optimizer.zero_grad()
        loss = theta @ H @ theta / 2
        loss.backward()
        return loss

    return theta, optimizer, closure


def error_at_time_one(name, num_steps):
    theta, optimizer, closure = quadratic(name, 1 / num_steps)
    for _ in range(num_steps):
        optimizer.step(closure)
    exact = torch.linalg.matrix_exp(-H) @ START
    return (theta.detach() - exact).norm().item()


@pytest.mark.parametrize(
    "name, order", [("plain-sgd", 1), ("rk2-midpoint", 2), ("rk2-heun", 2), ("rk2-ralston", 2)]
)
def test_order_of_accuracy_on_a_linear_gradient_flow(name, order):
    errors = [error_at_time_one(name, n) for n in (64, 128, 256)]
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    # Measured 1.005, 1.002 and, for all three methods, 2.011, 2.005.
    assert measured == pytest.approx([order, order], abs=0.02)
    assert measured[1] == pytest.approx(order, abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_runge_kutta_step_is_the_tableaus(method):
    lr, decay, (c, b1, b2) = 0.1, 0.05, METHODS[method]
    theta, optimizer, closure = quadratic(f"rk2-{method}", lr, weight_decay=decay)
    loss = optimizer.step(closure)
    k1 = H @ START + decay * START
    stage = START - c * lr * k1
    k2 = H @ stage + decay * stage
    assert torch.allclose(theta, START - lr * (b1 * k1 + b2 * k2), rtol=0, atol=1e-15)
    assert loss.item() == pytest.approx((START @ H @ START / 2).item(), rel=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_a_runge_kutta_step_of_a_cubic_differs_between_methods(method):
    # On a quadratic all methods of second order make the same step.
    lr, (c, b1, b2) = 0.1, METHODS[method]
    theta = nn.Parameter(START.clone())
    optimizer = RungeKuttaSGD([theta], lr, method)

    def closure():
        optimizer.zero_grad()
        (theta**3).sum().backward()

    optimizer.step(closure)
    k1 = 3 * START**2
    k2 = 3 * (START - c * lr * k1) ** 2
    assert torch.allclose(theta, START - lr * (b1 * k1 + b2 * k2), rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_two_runge_kutta_steps_of_adam_are_those_by_hand(method):
    lr, (beta1, beta2), eps, (c, b1, b2) = 0.1, (0.8, 0.95), 1e-8, METHODS[method]
    theta = nn.Parameter(START.clone())
    optimizer = RungeKuttaAdam([theta], lr, method, betas=(beta1, beta2), eps=eps)

    def closure():
        optimizer.zero_grad()
        (theta @ H @ theta / 2).backward()

    x, m, v = START.clone(), torch.zeros_like(START), torch.zeros_like(START)
    for t in (1, 2):
        optimizer.step(closure)
        stages = []
        for point in range(2):
            at = x if point == 0 else x - c * lr * stages[0][0]
            g = H @ at
            mi, vi = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
            k = mi / (1 - beta1**t) / ((vi / (1 - beta2**t)).sqrt() + eps)
            stages.append((k, mi, vi))
        (k1, m1, v1), (k2, m2, v2) = stages
        x, m, v = x - lr * (b1 * k1 + b2 * k2), b1 * m1 + b2 * m2, b1 * v1 + b2 * v2
        assert torch.allclose(theta, x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_the_runge_kutta_form_of_adam_is_adam_where_the_gradient_is_constant(method):
    slopes = torch.tensor([0.3, -2.0, 1e-3], dtype=torch.float64)
    a, b = nn.Parameter(START.clone()), nn.Parameter(START.clone())
    ours, torchs = RungeKuttaAdam([a], 0.01, method), torch.optim.Adam([b], 0.01)

    def closure():
        ours.zero_grad()
        (a @ slopes).backward()

    for _ in range(5):
        ours.step(closure)
        b.grad = slopes.clone()
        torchs.step()
    assert torch.allclose(a, b, rtol=0, atol=1e-14)


def by_hand(name, x, state, g, lr, t, momentum, decay):
    """One step of each of torch's optimizers with its defaults, from its paper."""
    if name == "adamw":
        x = x * (1 - lr * decay)
    else:
        g = g + decay * x
    if name == "plain-sgd":
        return x - lr * g
    if name in ("sgd", "momentum", "nesterov"):
        state["b"] = momentum * state.get("b", 0) + g
        return x - lr * (g + momentum * state["b"] if name == "nesterov" else state["b"])
    if name == "adagrad":
        state["s"] = state.get("s", 0) + g**2
        return x - lr * g / (state["s"].sqrt() + 1e-10)
    if name == "rmsprop":
        state["v"] = 0.99 * state.get("v", 0) + 0.01 * g**2
        return x - lr * g / (state["v"].sqrt() + 1e-8)
    if name == "adadelta":
        state["v"] = 0.9 * state.get("v", 0) + 0.1 * g**2
        d = state.get("u", torch.zeros_like(g)).add(1e-6).sqrt() / (state["v"] + 1e-6).sqrt() * g
        state["u"] = 0.9 * state.get("u", 0) + 0.1 * d**2
        return x - lr * d
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g**2
    return x - lr * state["m"] / (1 - 0.9**t) / ((state["v"] / (1 - 0.999**t)).sqrt() + 1e-8)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not name.startswith("rk2")])
def test_three_steps_of_each_optimizer_are_those_by_hand(name):
    lr, momentum, decay = 0.05, 0.7, 0.1
    theta, optimizer, closure = quadratic(name, lr, momentum=momentum, weight_decay=decay)
    x, state = START.clone(), {}
    for t in (1, 2, 3):
        optimizer.step(closure)
        x = by_hand(name, x, state, H @ x, lr, t, momentum, decay)
        assert torch.allclose(theta, x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_bit_for_bit(name):
    theta, optimizer, closure = quadratic(name, 0.01)
    for _ in range(2):
        optimizer.step(closure)
    other, restored, closure_of_other = quadratic(name, 0.01)
    other.data.copy_(theta.data)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as a file would
    for _ in range(3):
        optimizer.step(closure)
        restored.step(closure_of_other)
    assert torch.equal(theta, other)


def test_what_cannot_be_an_optimizer_is_refused():
    with pytest.raises(InputError, match="'lbfgs'; use one of: sgd, momentum"):
        quadratic("lbfgs", 0.1)
    with pytest.raises(InputError, match="nesterov with momentum 0"):
        quadratic("nesterov", 0.1, momentum=0.0)
    with pytest.raises(InputError, match="unknown method 'euler'; use one of: midpoint"):
        RungeKuttaSGD([nn.Parameter(START)], 0.1, "euler")
    _, optimizer, _ = quadratic("rk2-heun", 0.1)
    with pytest.raises(InputError, match="needs a closure"):
        optimizer.step()
