"""The table of models: each family's size, its options, and a density of its Hessian."""

import re

import pytest
import torch
from torch import nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config import ProblemConfig, TrainConfig
from hessian_spectrum.loss.squared_error import SquaredError
from hessian_spectrum.zoo import build_model, problem_loader
from hessian_spectrum.zoo.losses import loss_named

CIFAR = (3, 32, 32)


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def kinds(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules()}


# Options


@pytest.mark.parametrize("activation, kind", [("relu", nn.ReLU), ("sigmoid", nn.Sigmoid)])
@pytest.mark.parametrize("name", ["mlp-64-20-10", "cnn"])
def test_an_activation_is_the_only_one_of_its_model(name, activation, kind):
    model = build_model(name, input_shape=(1, 8, 8), activation=activation)
    assert kinds(model) & {nn.Tanh, nn.ReLU, nn.Sigmoid} == {kind}


def test_a_maxout_unit_is_the_largest_of_its_linear_functions():
    torch.manual_seed(0)
    model = build_model("mlp-64-6-10", input_shape=(1, 8, 8), activation="maxout")
    x = torch.rand(4, 1, 8, 8)
    pieces = model[1](model[0](x))
    assert pieces.shape == (4, 30)
    by_hand = torch.stack([pieces[:, 5 * unit : 5 * unit + 5].max(1).values for unit in range(6)])
    assert torch.equal(model[2](pieces), by_hand.T)


def test_width_multiplies_hidden_sizes_alone():
    model = build_model("mlp-64-20-6-10", input_shape=(1, 8, 8), width=0.25)
    sizes = [(m.in_features, m.out_features) for m in model if isinstance(m, nn.Linear)]
    assert sizes == [(64, 5), (5, 2), (2, 10)]
    thin = build_model("mlp-64-20-10", input_shape=(1, 8, 8), width=1e-9)
    assert thin[1].out_features == 1


def test_dropout_leaves_the_names_of_parameters():
    plain = build_model("mlp-64-20-10", input_shape=(1, 8, 8))
    dropped = build_model("mlp-64-20-10", input_shape=(1, 8, 8), dropout_rate=0.3)
    rates = [m.p for m in dropped.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.3]
    assert plain.state_dict().keys() == dropped.state_dict().keys()


def test_a_network_without_batch_norm_has_biases_instead():
    model = build_model("cnn", input_shape=CIFAR, batchnorm=False)
    assert nn.BatchNorm2d not in kinds(model)
    assert all(m.bias is not None for m in model if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("cnn", {"activation": "maxout"}, "cnn has no activation 'maxout'"),
        ("cnn", {"dropout_rate": 0.5}, "cnn has no dropout"),
        ("torchvision:resnet18", {"width": 0.5}, "torchvision:resnet18 has no width"),
    ],
)
def test_an_option_that_a_model_does_not_have_is_refused(name, options, words):
    with pytest.raises(InputError, match=re.escape(words)):
        build_model(name, input_shape=CIFAR, **options)


@pytest.mark.parametrize("kind", [ProblemConfig, TrainConfig])
@pytest.mark.parametrize(
    "field, value, words",
    [
        ("width", 0.0, "--width 0.0"),
        ("width", float("nan"), "--width nan"),
        ("dropout_rate", 1.0, "--dropout-rate 1.0"),
        ("dropout_rate", -0.1, "--dropout-rate -0.1"),
    ],
)
def test_options_that_no_model_can_have_are_refused(kind, field, value, words):
    with pytest.raises(InputError, match=re.escape(words)):
        kind(model="cnn", dataset="digits", **{field: value}).check()


def test_the_options_reach_the_model_of_a_problem():
    config = ProblemConfig(
        model="mlp-64-20-10", dataset="digits", limit=5, width=0.5, dropout_rate=0.3, loss="mse"
    )
    problem = problem_loader.load(config)
    assert num_parameters(problem.model) == 64 * 10 + 10 + 10 * 10 + 10
    assert any(isinstance(m, nn.Dropout) and m.p == 0.3 for m in problem.model.modules())
    assert isinstance(problem.loss_fn, SquaredError)


# Losses


def test_losses_have_names():
    outputs, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    expected = nn.functional.cross_entropy(outputs, labels)
    assert torch.equal(loss_named("cross-entropy")(outputs, labels), expected)
    one_hot = nn.functional.one_hot(labels, 3)
    by_hand = (outputs - one_hot).square().sum(1).mean() / 2
    assert torch.allclose(loss_named("mse")(outputs, labels), by_hand)
    with pytest.raises(InputError, match="unknown loss 'hinge'; use one of: cross-entropy, mse"):
        loss_named("hinge")


# Networks


def test_width_of_a_resnet_multiplies_every_stage():
    model = build_model("resnet20", input_shape=CIFAR, width=0.5)
    convolutions = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [8] * 7 + [16] * 6 + [32] * 6
    assert model(torch.rand(2, *CIFAR)).shape == (2, 10)
