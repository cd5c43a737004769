"""The multi-prediction Boltzmann machine: masks, mean-field inference and its loss, by hand."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config import ProblemConfig
from hessian_spectrum.zoo import build_model, load_dataset, model_for, problem_loader, samples_for
from hessian_spectrum.zoo.networks import boltzmann
from hessian_spectrum.zoo.networks.boltzmann import STEPS
from hessian_spectrum.zoo.objectives import objective_for

NAME = "mpdbm-64-5-4-10"


def machine(name=NAME):
    return model_for(load_dataset("digits", limit=3), name, "tanh", 0).double()


def test_the_machine_for_mnist_has_its_weights_and_biases():
    with torch.device("meta"):
        model = build_model("mpdbm-784-500-1000-10")
    weights, biases = 784 * 500 + 500 * 1000 + 1000 * 10, 784 + 500 + 1000 + 10
    assert sum(p.numel() for p in model.parameters()) == weights + biases == 904_294


def test_masks_show_half_of_the_variables_and_are_the_same_for_fewer_samples():
    data = load_dataset("digits", limit=200)
    inputs, targets = samples_for(NAME, data).tensors
    values, mask = targets.unbind(1)
    assert torch.equal(values[:, :64], data.tensors[0].flatten(1))
    assert torch.equal(values[:, 64:].argmax(1), data.tensors[1])
    assert torch.equal(inputs, torch.stack([values * mask, mask], 1))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert abs(mask[:, :64].mean() - 0.5) < 5 * 0.5 / math.sqrt(200 * 64)
    assert torch.equal(mask[:, 64:], mask[:, 64:65].expand(-1, 10))  # the class is one variable
    assert 0.3 < mask[:, 64].mean() < 0.7
    few = samples_for(NAME, load_dataset("digits", limit=7)).tensors
    assert all(torch.equal(a[:7], b) for a, b in zip((inputs, targets), few))


def test_inference_ends_where_the_mean_field_equations_hold():
    # Each update minimizes the free energy over one half of the variables: it converges.
    model = machine()
    inputs = samples_for(NAME, load_dataset("digits", limit=6)).tensors[0].double()
    values, mask = inputs.unbind(1)
    logits = model(inputs)
    q = values + (1 - mask) * torch.cat([logits[:, :64].sigmoid(), logits[:, 64:].softmax(1)], 1)
    v, y = q[:, :64], q[:, 64:]
    w1, w2, w3 = (m.weight for m in (model.first, model.second, model.classes))
    h2 = torch.full((6, 4), 0.5, dtype=torch.float64)
    for _ in range(20 * STEPS):  # with v and y held
        h1 = (v @ w1.T + model.first.bias + h2 @ w2).sigmoid()
        h2 = (h1 @ w2.T + model.second.bias + y @ w3).sigmoid()
    again_v = h1 @ w1 + model.visible_bias
    again_y = h2 @ w3.T + model.classes.bias
    assert torch.allclose(logits, torch.cat([again_v, again_y], 1), atol=1e-6)


def test_the_first_step_starts_from_units_of_which_nothing_is_known(monkeypatch):
    monkeypatch.setattr(boltzmann, "STEPS", 1)
    model = machine()
    inputs = samples_for(NAME, load_dataset("digits", limit=6)).tensors[0].double()
    values, mask = inputs[:, :, :64].unbind(1)
    v = torch.where(mask == 1, values, 0.5)
    half = torch.full((6, 4), 0.5, dtype=torch.float64)
    h1 = (model.first(v) + half @ model.second.weight).sigmoid()
    logits = torch.cat([h1 @ model.first.weight + model.visible_bias, model.classes(half)], 1)
    assert torch.allclose(model(inputs), logits, atol=1e-12)


def test_observed_variables_alone_decide_the_predictions():
    model = machine()
    inputs = samples_for(NAME, load_dataset("digits", limit=6)).tensors[0].double()
    mask = inputs[:, 1]
    seen = mask[:, 10] == 1
    moved = inputs.clone()
    moved[seen, 0, 10] += 0.5
    assert not torch.equal(model(moved)[seen], model(inputs)[seen])
    assert torch.equal(model(moved)[~seen], model(inputs)[~seen])


def test_the_loss_counts_hidden_variables_alone():
    config = ProblemConfig(
        **{"model": NAME, "dataset": "digits", "limit": 9, "loss": "multi-prediction"},
        **{"dtype": "float64", "device": "cpu", "batch_size": 4},
    )
    problem = problem_loader.load(config)
    inputs, targets = (t.double() for t in problem.data)
    ev = problem.evaluator()
    logits = ev.model.double()(inputs)
    by_hand = 0.0
    for i in range(9):
        values, mask = targets[i]
        p = logits[i, :64].sigmoid()
        for d in range(64):
            if not mask[d]:
                by_hand -= values[d] * p[d].log() + (1 - values[d]) * (1 - p[d]).log()
        if not mask[64]:
            by_hand += F.cross_entropy(logits[i, 64:], values[64:].argmax())
    assert math.isclose(ev.loss().item(), by_hand.item() / 9, rel_tol=1e-12)
    v, h = torch.randn(ev.n, generator=torch.Generator().manual_seed(0)).double(), 1e-6
    difference = (ev.gradient(ev.theta + h * v) - ev.gradient(ev.theta - h * v)) / (2 * h)
    product = torch.as_tensor(hs.Hessian(ev) @ v)
    assert (product - difference).norm() <= 1e-6 * product.norm()
    assert math.isfinite(hs.spectral_density(hs.Hessian(ev), num_probes=2, num_steps=3).trace)
    moment = hs.GradientCovariance(ev, centered=False)  # of samples' own gradients
    assert torch.as_tensor(moment @ v).isfinite().all()


def test_hits_are_those_of_hidden_classes():
    data = load_dataset("digits", limit=20)
    inputs, targets = samples_for(NAME, data).tensors
    objective = objective_for(NAME, "multi-prediction")
    hidden = targets[:, 1, 64] == 0
    right = torch.cat([torch.zeros(20, 64), targets[:, 0, 64:]], 1)
    assert objective.hits(right, targets).tolist() == [True] * int(hidden.sum())
    assert not objective.hits(-right, targets).any()
    loss = objective(machine().float(), (inputs, targets))
    assert torch.equal(loss, objective.loss(machine().float()(inputs), targets))


def test_inputs_that_are_no_probabilities_are_refused():
    data = TensorDataset(torch.full((2, 64), 1.5), torch.tensor([0, 9]))
    with pytest.raises(InputError, match=r"inputs reach from 1\.5 to 1\.5"):
        samples_for(NAME, data)


def test_another_loss_is_refused():
    with pytest.raises(InputError, match="cannot be trained with the loss 'mse'; use multi-predic"):
        objective_for(NAME, "mse")
