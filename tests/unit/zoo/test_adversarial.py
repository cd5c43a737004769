"""The fast-gradient-sign objective: its examples, its value and its derivatives."""

import math

import pytest
import torch
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config import ProblemConfig
from hessian_spectrum.zoo import build_model, problem_loader
from hessian_spectrum.zoo.adversarial import EPSILON, FastGradientSign, outputs_of_both
from hessian_spectrum.zoo.objectives import objective_for


def problem(**options):
    fields = {
        **{"model": "mlp-64-6-10", "activation": "maxout", "dataset": "digits", "limit": 12},
        **{"loss": "fast-gradient-sign", "dtype": "float64", "device": "cpu", "batch_size": 5},
    }
    return problem_loader.load(ProblemConfig(**{**fields, **options}))


def test_the_loss_is_half_that_of_the_samples_and_half_that_of_the_worst_steps():
    given = problem()
    model = given.model.double()
    x, y = given.data[0].double().requires_grad_(), given.data[1]
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    worse = x.detach() + 0.25 * gradient.sign()
    by_hand = (F.cross_entropy(model(x), y) + F.cross_entropy(model(worse), y)) / 2
    ev = given.evaluator()
    assert math.isclose(ev.loss().item(), by_hand.item(), rel_tol=1e-12)
    assert F.cross_entropy(model(worse), y) > F.cross_entropy(model(x), y) + 0.1


def test_for_a_linear_model_of_two_classes_no_other_step_of_that_size_is_worse():
    # Goodfellow, Shlens and Szegedy (2015), section 5: the worst step has a closed form there.
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2).double()
    x, y = torch.randn(6, 4).double(), torch.tensor([0, 1, 0, 1, 1, 0])
    clean, adversarial = outputs_of_both(model, (x, y)).unbind(1)
    assert torch.equal(clean, model(x))
    toward = model.weight[1] - model.weight[0]
    sign = 1 - 2.0 * y
    worst = (clean[:, 1] - clean[:, 0]) * sign + EPSILON * toward.abs().sum()
    assert torch.allclose((adversarial[:, 1] - adversarial[:, 0]) * sign, worst)


@pytest.mark.parametrize("activation", ["maxout", "tanh"])
def test_its_hessian_is_the_derivative_of_its_gradient(activation):
    ev = problem(activation=activation).evaluator()
    v, h = torch.randn(ev.n, generator=torch.Generator().manual_seed(1)).double(), 1e-8
    difference = (ev.gradient(ev.theta + h * v) - ev.gradient(ev.theta - h * v)) / (2 * h)
    product = torch.as_tensor(hs.Hessian(ev) @ v)
    assert (product - difference).norm() <= 1e-5 * product.norm()
    assert math.isfinite(hs.spectral_density(hs.Hessian(ev), num_probes=2, num_steps=3).trace)


def test_in_training_running_statistics_learn_from_both_and_not_from_the_search():
    torch.manual_seed(0)
    model = build_model("cnn", input_shape=(1, 8, 8))
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    objective = objective_for("cnn", "fast-gradient-sign")
    outputs = objective.outputs(model, (x, y))
    alone = build_model("cnn", input_shape=(1, 8, 8))
    alone.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "running" not in k}, False
    )
    for module in alone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(alone(x), y), x)  # the batch's own statistics
    assert torch.equal(outputs[:, 0], alone(x))
    for module in alone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    both = torch.stack([alone(x), alone(x + EPSILON * gradient.sign())], 1)
    assert torch.equal(outputs, both)
    assert model[1].num_batches_tracked == alone[1].num_batches_tracked == 2
    assert torch.equal(model[1].running_mean, alone[1].running_mean)
    objective.loss(outputs, y).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_minibatches_do_not_change_it():
    losses = [problem(batch_size=size).evaluator().loss().item() for size in (1, 5, 12)]
    assert max(losses) - min(losses) <= 1e-12 * max(losses)


def test_its_hits_are_those_of_the_samples_themselves():
    labels = torch.tensor([1, 0])
    outputs = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    objective = objective_for("mlp-64-6-10", "fast-gradient-sign")
    assert objective.hits(outputs, labels).tolist() == [True, False]
    values = FastGradientSign("none")(outputs, labels)
    assert torch.allclose(values, torch.full((2,), (math.log(1 + math.e) * 2 - 1) / 2))


def test_a_language_model_has_no_adversarial_examples():
    with pytest.raises(InputError, match="lstm cannot be trained with the loss 'fast-gradient"):
        objective_for("lstm", "fast-gradient-sign")
