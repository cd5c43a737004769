"""Thresholds of optimizers, against what they do on a quadratic."""

import pytest
import torch
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

import hessian_spectrum as hs
from hessian_spectrum.tracking.stability import stability

WARM_UP, STEPS = 400, 3000


def at_rest(make, freeze):
    """A parameter and its optimizer, once the bias of the first moment is gone."""
    theta = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = make([theta])
    for step in range(WARM_UP):
        theta.grad = torch.zeros_like(theta)
        optimizer.step()
        freeze(optimizer.state[theta], step)
    return theta, optimizer


def grows(make, freeze, curvature):
    """Does |theta| grow on curvature theta^2 / 2 while the preconditioner does not move?"""
    theta, optimizer = at_rest(make, freeze)
    theta.data.fill_(1e-3)
    for step in range(WARM_UP, WARM_UP + STEPS):
        theta.grad = curvature * theta.detach()
        optimizer.step()
        freeze(optimizer.state[theta], step)
        if abs(theta.item()) > 1.0:
            return True
    return abs(theta.item()) > 1e-3


def frozen(**tensors):
    """Puts the state's second moments back after each step."""

    def freeze(state, step):
        for name, value in tensors.items():
            state[name].fill_(value)

    return freeze


SECOND = 0.04
CASES = {
    "sgd": (lambda p: SGD(p, lr=0.1), frozen()),
    "momentum": (lambda p: SGD(p, lr=0.1, momentum=0.9), frozen()),
    "dampening": (lambda p: SGD(p, lr=0.1, momentum=0.8, dampening=0.5), frozen()),
    "nesterov": (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True), frozen()),
    "weight decay": (lambda p: SGD(p, lr=0.1, weight_decay=1.5), frozen()),
    "adam": (
        lambda p: Adam(p, lr=0.1, betas=(0.9, 1.0 - 1e-12), eps=1e-3),
        lambda state, step: state["exp_avg_sq"].fill_(SECOND * 1e-12 * (step + 1)),
    ),
    "adam without a first moment": (
        lambda p: Adam(p, lr=0.1, betas=(0.0, 1.0 - 1e-12), eps=0.0),
        lambda state, step: state["exp_avg_sq"].fill_(SECOND * 1e-12 * (step + 1)),
    ),
    "adamw": (
        lambda p: AdamW(p, lr=0.1, betas=(0.9, 1.0 - 1e-12), eps=1e-3, weight_decay=2.0),
        lambda state, step: state["exp_avg_sq"].fill_(SECOND * 1e-12 * (step + 1)),
    ),
    "rmsprop": (lambda p: RMSprop(p, lr=0.1, alpha=1.0, eps=1e-2), frozen(square_avg=SECOND)),
    "rmsprop with momentum": (
        lambda p: RMSprop(p, lr=0.1, alpha=1.0, momentum=0.7),
        frozen(square_avg=SECOND),
    ),
    "adagrad": (lambda p: Adagrad(p, lr=0.1, eps=0.1), frozen(sum=SECOND)),
}


@pytest.mark.parametrize("name", CASES)
def test_an_optimizer_diverges_above_its_threshold_and_not_below(name):
    make, freeze = CASES[name]
    theta, optimizer = at_rest(make, freeze)
    found = stability(optimizer, {"theta": theta})
    p = 1.0 if found.preconditioner is None else found.preconditioner.item()
    # An eigenvalue of P^-1 (H + shift) at the threshold, as the curvature of the loss.
    critical = found.threshold * p - found.shift

    assert not grows(make, freeze, 0.98 * critical)
    assert grows(make, freeze, 1.02 * critical)


def test_learning_rates_of_groups_go_into_the_preconditioner():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.4}])
    found = stability(optimizer, {"first": first, "second": second})
    assert found.threshold == pytest.approx(20.0)
    assert found.preconditioner.tolist() == pytest.approx([1.0, 1.0, 0.25, 0.25])
    # The order of parameters is the evaluator's.
    turned = stability(optimizer, {"second": second, "first": first})
    assert turned.lr == pytest.approx(0.1) and turned.preconditioner[0].item() == pytest.approx(
        0.25
    )


def after_a_step(optimizer):
    optimizer.step()
    return optimizer


def test_what_has_no_known_threshold_says_why():
    theta, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    theta.grad, second.grad = torch.tensor([0.0, 1.0]), torch.ones(2)
    named = {"theta": theta}
    for optimizer, why in (
        (torch.optim.Adadelta([theta]), "none is known for Adadelta"),
        (torch.optim.LBFGS([theta]), "none is known for LBFGS"),
        (Adam([theta]), "has not made a step"),
        (SGD([theta], lr=0.1, maximize=True), "maximizes"),
        (SGD([theta], lr=0.0), "a learning rate is 0"),
        (RMSprop([theta], lr=torch.tensor(0.0)), "a learning rate is 0"),
        (SGD([{"params": [theta]}, {"params": [second], "lr": 0.0}], lr=0.1), "rate is 0"),
        (SGD([{"params": [theta], "lr": 0.0}, {"params": [second]}], lr=0.1), "rate is 0"),
        (SGD([theta], lr=0.1, momentum=0.9, dampening=1.0), "dampening of 1"),
        (after_a_step(Adam([theta], eps=0.0)), "its preconditioner is not positive"),
        (
            after_a_step(AdamW([{"params": [theta]}, {"params": [second], "lr": 0.1}])),
            "decoupled weight decay at several learning rates",
        ),
    ):
        several = {**named, "second": second} if len(optimizer.param_groups) > 1 else named
        found = stability(optimizer, several)
        assert found.threshold is None and why in found.why_not
    other = torch.nn.Parameter(torch.ones(1))
    groups = [{"params": [theta], "momentum": 0.9}, {"params": [other], "momentum": 0.5}]
    found = stability(SGD(groups, lr=0.1), {**named, "other": other})
    assert "groups of parameters differ in momentum" in found.why_not


def test_an_optimizer_of_other_parameters_is_refused():
    theta, other = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    with pytest.raises(hs.InputError, match=r"does not step head\.weight"):
        stability(SGD([theta], lr=0.1), {"theta": theta, "head.weight": other})
    with pytest.raises(hs.InputError, match=r"expected a torch\.optim one"):
        stability("sgd", {"theta": theta})


def test_weight_decay_that_the_loss_has_already_is_not_counted_twice():
    theta = torch.nn.Parameter(torch.ones(1))
    optimizer = SGD([theta], lr=0.1, weight_decay=0.3)
    assert stability(optimizer, {"theta": theta}, 0.3).shift == 0.0
    assert stability(optimizer, {"theta": theta}).shift == pytest.approx(0.3)
