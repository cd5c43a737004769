"""Biases, norms and filters are told by what modules are, whatever their parameters are called."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import hessian_spectrum as hs
from hessian_spectrum.landscape import directions
from hessian_spectrum.landscape.parameter_kinds import kinds


class OwnDense(nn.Module):
    """A dense layer with names of its own."""

    def __init__(self, transposed=False):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn((4, 5) if transposed else (5, 4)))
        self.shift = nn.Parameter(torch.randn(5))


class Conv1D(nn.Module):
    """As in Hugging Face's transformers: weights are (inputs, outputs)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


class LlamaRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))


class NormedBlock(nn.Module):
    """No norm, though its name begins like one; the table of biases is a weight by its shape."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(0.5))
        self.layer_scale = nn.Parameter(torch.ones(3))
        self.relative_position_bias_table = nn.Parameter(torch.ones(7, 2))
        self.output_bias = nn.Parameter(torch.ones(6))


MODULES = {
    "dense": (nn.Linear(3, 2), {"weight": "weight", "bias": "bias"}),
    "bilinear": (nn.Bilinear(2, 3, 4), {"weight": "weight", "bias": "bias"}),
    "attention": (
        nn.MultiheadAttention(4, 2, add_bias_kv=True),
        {
            "in_proj_weight": "weight",
            "in_proj_bias": "bias",
            "bias_k": "bias",
            "bias_v": "bias",
            "out_proj.weight": "weight",
            "out_proj.bias": "bias",
        },
    ),
    "recurrent": (
        nn.LSTMCell(2, 3),
        {"weight_ih": "weight", "weight_hh": "weight", "bias_ih": "bias", "bias_hh": "bias"},
    ),
    "batch norm": (nn.BatchNorm2d(3), {"weight": "norm", "bias": "norm"}),
    "group norm": (nn.GroupNorm(1, 3), {"weight": "norm", "bias": "norm"}),
    "layer norm": (nn.LayerNorm((3, 4)), {"weight": "norm", "bias": "norm"}),
    "rms norm": (nn.RMSNorm(4), {"weight": "norm"}),
    "norm of another library": (LlamaRMSNorm(), {"gain": "norm"}),
    "slopes": (nn.PReLU(3), {"weight": "weight"}),
    "own names": (OwnDense(), {"matrix": "weight", "shift": "bias"}),
    "own names, transposed": (OwnDense(transposed=True), {"matrix": "weight", "shift": "bias"}),
    "hugging face": (Conv1D(5, 4), {"weight": "weight", "bias": "bias"}),
    "block": (
        NormedBlock(),
        {
            "gate": "weight",
            "layer_scale": "weight",
            "relative_position_bias_table": "weight",
            "output_bias": "bias",
        },
    ),
    "weight norm": (
        parametrizations.weight_norm(nn.Linear(3, 2)),
        {
            "bias": "bias",
            "parametrizations.weight.original0": "weight",
            "parametrizations.weight.original1": "weight",
        },
    ),
    "inside": (
        nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3)), nn.BatchNorm1d(3)),
        {
            "0.bias": "bias",
            "0.parametrizations.weight.original": "weight",
            "1.weight": "norm",
            "1.bias": "norm",
        },
    ),
}


@pytest.mark.parametrize("case", MODULES)
def test_the_kind_follows_from_the_module(case):
    module, expected = MODULES[case]
    assert {name: kind.name for name, kind in kinds(module).items()} == expected


def test_a_parametrized_bias_is_a_bias():
    layer = nn.Linear(3, 2)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
    assert kinds(layer)["parametrizations.bias.original"].name == "bias"


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("layer", [nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_filters_are_the_weights_that_one_output_depends_on(layer, groups):
    """Oracle: the gradient of an output channel is zero outside its filter."""
    module = layer(6, 6, 2, groups=groups, bias=False).double()
    x = torch.rand(1, 6, *[3] * (module.weight.ndim - 2), dtype=torch.float64)
    kind = kinds(module)["weight"]
    for channel in range(6):
        (found,) = torch.autograd.grad(module(x)[:, channel].sum(), module.weight)
        used = kind.filters(found[None])[0].abs().sum(1) > 0
        assert used.tolist() == [i == channel for i in range(6)]
    rows = torch.randn(2, *module.weight.shape)
    assert torch.equal(kind.back(kind.filters(rows), module.weight.shape), rows)


def test_columns_are_the_filters_of_a_hugging_face_layer():
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(5, 4), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    ev = hs.Evaluator(model, nn.CrossEntropyLoss(), (x, y))
    d = ev.layout.unflatten(directions.random(ev, count=1).vectors[0])
    assert torch.allclose(d["0.weight"].norm(dim=0), model[0].weight.norm(dim=0))
    assert not torch.allclose(d["0.weight"].norm(dim=1), model[0].weight.norm(dim=1))
    assert torch.allclose(d["2.weight"].norm(dim=1), model[2].weight.norm(dim=1))


def test_a_layer_norm_of_two_axes_is_one_tensor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 2)).double()
    with torch.no_grad():
        model[0].weight.normal_()
    x, y = torch.randn(6, 3, 4, dtype=torch.float64), torch.arange(6) % 2
    ev = hs.Evaluator(model, nn.CrossEntropyLoss(), (x, y))
    raw = ev.layout.unflatten(directions.random(ev, count=1, normalize="none", ignore=()).vectors)
    d = ev.layout.unflatten(directions.random(ev, count=1, ignore=()).vectors)
    ratio = d["0.weight"] / raw["0.weight"]
    assert torch.allclose(ratio, model[0].weight.norm() / raw["0.weight"].norm())


class ReZero(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.alpha = nn.Parameter(torch.full(shape, -0.5))

    def forward(self, x):
        h = self.a(x)
        return self.b(h + self.alpha * torch.tanh(h))


@pytest.mark.parametrize("normalize", directions.NORMALIZATIONS)
def test_scalar_parameters_have_directions(normalize):
    found = []
    for shape in ((1,), ()):
        torch.manual_seed(0)
        model, x, y = ReZero(shape).double(), torch.randn(20, 4).double(), torch.arange(20) % 3
        ev = hs.Evaluator(model, nn.CrossEntropyLoss(), (x, y))
        pair = directions.random(ev, count=2, normalize=normalize)
        alpha = ev.layout.unflatten(pair.vectors)["alpha"]
        assert alpha.shape == (2, *shape)
        assert (alpha != 0).all()
        if normalize != "none":
            assert torch.allclose(alpha.abs(), torch.tensor(0.5, dtype=torch.float64))
        found.append(hs.surface(ev, pair, 3).values["loss"])
    assert (found[0] == found[1]).all()
