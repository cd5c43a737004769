"""The table of models: each family's size, its options, and a density of its Hessian."""

import math
import re

import pytest
import torch
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config import ProblemConfig, TrainConfig
from hessian_spectrum.loss.squared_error import SquaredError
from hessian_spectrum.zoo import build_model, problem_loader
from hessian_spectrum.zoo.losses import loss_named
from hessian_spectrum.zoo.networks.layers import Maxout
from hessian_spectrum.zoo.torchvision_compat import import_torchvision

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


# Trainable numbers in the network that the source describes, and where that number is from.
PUBLISHED = {
    # (3, 3) convolutions of table 1, column A and D, and a linear layer 512 -> 10.
    "vgg11": (9_220_480 + 5_130, {"batchnorm": False}),
    "vgg16": (14_714_688 + 5_130, {"batchnorm": False}),
    # The layers of the authors' configuration for CIFAR-10, each weights and biases.
    "nin": (966_986, {"batchnorm": False}),
    # "0.27M, 0.46M, 0.66M, 0.85M, 1.7M" of He et al., table 6.
    "resnet20": (269_722, {}),
    "resnet32": (464_154, {}),
    "resnet44": (658_586, {}),
    "resnet56": (853_018, {}),
    "resnet110": (1_727_962, {}),
    # "36.5M" of Zagoruyko and Komodakis, table 4.
    "wrn-28-10": (36_479_194, {}),
    "wrn-16-4": (2_748_890, {}),
    # "1.0M" of Huang et al., table 2.
    "densenet-40-12": (1_019_722, {}),
    # Stage by stage: pieces * channels * (inputs * size^2 + 1), and the linear layers.
    "convmaxout-mnist": (
        96 * (64 + 1) + 96 * (48 * 64 + 1) + 96 * (48 * 25 + 1) + 10 * (24 * 3 * 3 + 1),
        {"input_shape": (1, 28, 28)},
    ),
    "convmaxout-cifar10": (
        192 * (3 * 64 + 1)
        + 384 * (96 * 64 + 1)
        + 384 * (192 * 25 + 1)
        + 2500 * (192 * 5 * 5 + 1)
        + 10 * (500 + 1),
        {},
    ),
    "mlp-784-240-240-10": (
        1200 * 785 + 1200 * 241 + 10 * 241,
        {"input_shape": (1, 28, 28), "activation": "maxout"},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_at_full_width_a_network_has_the_published_number_of_parameters(name):
    expected, options = PUBLISHED[name]
    with torch.device("meta"):  # sizes alone
        model = build_model(name, **{"input_shape": CIFAR, **options})
    assert num_parameters(model) == expected


SLIM = {
    "resnet8": {"width": 0.25},
    "vgg11": {"width": 1 / 64},
    "vgg16": {"width": 1 / 64},
    "nin": {"width": 1 / 48},
    "wrn-10-1": {"width": 0.25},
    "densenet-10-2": {"width": 0.5},
    "convmaxout-mnist": {"width": 1 / 24},
    "convmaxout-cifar10": {"width": 1 / 96},
}
HAVE_BATCH_NORM = {"resnet8", "vgg11", "vgg16", "nin", "wrn-10-1", "densenet-10-2"}
HAVE_SHORTCUTS = {"resnet8", "wrn-10-1", "densenet-10-2"}
HAVE_DROPOUT = set(SLIM) - {"resnet8"}


def pictures(size=6, shape=CIFAR):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, *shape, generator=generator), torch.arange(size) % 10


def evaluator(model, data, loss="cross-entropy", **options):
    return hs.Evaluator(model, loss_named(loss), data, dtype=torch.float64, **options)


def has_a_density(ev, seed=0):
    """Is a measure of few products finite, and its density?"""
    measure = hs.spectral_density(hs.Hessian(ev), num_probes=2, num_steps=3, seed=seed)
    nodes = torch.as_tensor(measure.density(torch.linspace(-1, 1, 9).numpy(), sigma2=1e-2))
    return bool(nodes.isfinite().all()) and math.isfinite(measure.trace)


@pytest.mark.parametrize("name", SLIM)
def test_a_slim_form_has_a_finite_density(name):
    torch.manual_seed(0)
    model = build_model(name, input_shape=CIFAR, **SLIM[name])
    assert num_parameters(model) < 10_000
    x, y = pictures()
    assert model(x).shape == (6, 10)
    ev = evaluator(model, (x, y), batch_size=4)
    v = torch.randn(ev.n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert has_a_density(ev)
    # H v is the derivative of the gradient, which autograd forms without second derivatives.
    v, h = v / v.norm(), 1e-7  # so short that none of the 10^5 units crosses its kink
    difference = (ev.gradient(ev.theta + h * v) - ev.gradient(ev.theta - h * v)) / (2 * h)
    product = torch.as_tensor(hs.Hessian(ev) @ v)
    assert product.norm() > 0
    assert (product - difference).norm() <= 1e-5 * product.norm()


@pytest.mark.parametrize("name", SLIM)
def test_parts_that_a_family_has_can_be_left_out(name):
    def built(**options):
        return build_model(name, input_shape=CIFAR, **SLIM[name], **options)

    norms = (nn.BatchNorm2d,)
    assert any(isinstance(m, norms) for m in built().modules()) == (name in HAVE_BATCH_NORM)
    plain = built(batchnorm=False)
    assert not any(isinstance(m, norms) for m in plain.modules())
    assert all(m.bias is not None for m in plain.modules() if isinstance(m, nn.Conv2d))
    if name in HAVE_DROPOUT:
        rates = [
            {m.p for m in built(dropout_rate=r).modules() if isinstance(m, nn.Dropout)}
            for r in (0.25, 0.0)
        ]
        assert 0.25 in rates[0] and rates[1] <= {0.0}
    x, torch_seed = pictures()[0], 3
    outputs = []
    for shortcut in (True, False):
        torch.manual_seed(torch_seed)
        outputs.append(built(shortcut=shortcut).eval()(x))
    assert torch.equal(*outputs) == (name not in HAVE_SHORTCUTS)


@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("name", ["vgg11", "vgg16"])
def test_the_convolutions_of_vgg_are_those_of_torchvision(name, batchnorm):
    torch.manual_seed(0)
    model = build_model(name, input_shape=CIFAR, batchnorm=batchnorm).eval()
    models = import_torchvision().models
    theirs = models.get_model(name + ("_bn" if batchnorm else ""), weights=None).features.eval()
    ours = model[: len(theirs)]
    for mine, other in zip(ours, theirs):
        if isinstance(other, nn.Conv2d) and batchnorm:  # ours has no biases there
            nn.init.zeros_(other.bias)
        other.load_state_dict(mine.state_dict(), strict=not batchnorm)
    x = pictures(2)[0]
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(model(x), model[-1](theirs(x).flatten(1)))


LETTERS = {
    **{nn.Conv2d: "C", nn.BatchNorm2d: "B", nn.ReLU: "R", Maxout: "X", nn.Linear: "L"},
    **{nn.MaxPool2d: "M", nn.AvgPool2d: "A", nn.AdaptiveAvgPool2d: "a", nn.Dropout: "d"},
}


def layers_of(model) -> str:
    return "".join(LETTERS.get(type(module), "") for module in model.modules())


def test_layers_follow_each_other_as_in_the_sources():
    def built(name, **options):
        return build_model(name, input_shape=CIFAR, width=1 / 16, **options)

    nin = built("nin", batchnorm=False)
    assert layers_of(nin) == "CRCRCRMd" + "CRCRCRAd" + "CRCRCRa"
    assert layers_of(built("nin")) == "CBRCBRCBRMd" + "CBRCBRCBRAd" + "CBRCBRCRa"
    maxout = built("convmaxout-cifar10")
    assert layers_of(maxout) == "d" + "CXMd" * 3 + "LXdL"
    assert layers_of(built("convmaxout-mnist")) == "d" + "CXMd" * 3 + "L"
    rates = [[m.p for m in model if isinstance(m, nn.Dropout)] for model in (nin, maxout)]
    assert rates == [[0.5, 0.5], [0.2, 0.5, 0.5, 0.5, 0.5]]
    wide = built("wrn-16-4")
    assert [layers_of(block) for block in wide[1:7]] == ["BRCBRdCC", "BRCBRdC"] * 3
    assert layers_of(wide)[-4:] == "BRaL"
    dense = built("densenet-10-12", dropout_rate=0.2)
    assert layers_of(dense) == "C" + "BRCd" * 2 + ("BRCdA" + "BRCd" * 2) * 2 + "BRaL"


def test_a_wide_block_with_a_zero_body_is_its_shortcut():
    model = build_model("wrn-10-1", input_shape=CIFAR).eval()
    first, second = model[1], model[2]  # the same shape, and twice the channels at half the size
    x = torch.rand(2, 16, 8, 8)
    for block in (first, second):
        torch.nn.init.zeros_(block.body[-1].weight)
    assert torch.equal(first(x), x)
    assert torch.equal(second(x), second.projection(second.activated(x)))


def test_dense_layers_keep_what_came_in():
    model = build_model("densenet-10-2", input_shape=CIFAR).eval()
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(model[1](x)[:, :16], x) and model[1](x).shape[1] == 18


@pytest.mark.parametrize(
    "name, words",
    [
        ("wrn-17-4", "wrn-17-4: expected a depth of 6 b + 4"),
        ("densenet-41-12", "densenet-41-12: expected a depth of 3 b + 4"),
        ("vgg11", "images of at least 32 x 32"),
        ("convmaxout-mnist", "too small"),
        ("vgg13", "unknown model 'vgg13'"),
    ],
)
def test_sizes_that_do_not_exist_or_fit_are_refused(name, words):
    with pytest.raises(InputError, match=re.escape(words)):
        build_model(name, input_shape=(3, 9, 9))
