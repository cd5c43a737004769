"""Operators of every kind of model against dense matrices; minutes of products in all."""

import pytest
import torch
from model_kinds import kind_and_oracle
from small_networks import relative
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from benchmarks.suite.kinds import KINDS
from hessian_spectrum.operators.product_modes import MODES
from hessian_spectrum.zoo import build_model

# An LSTM is a GRU with more gates, and test_language_models has GPT-2's Hessian in every run.
SLOW = ("GRU", "Hugging Face GPT-2")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in KINDS]
)
def test_every_operator_is_its_dense_matrix_for_every_kind_of_model(name, mode):
    kind, expected = kind_and_oracle(name)
    ev = hs.Evaluator(**kind.arguments())
    assert relative(ev.gradient(), expected.gradient) < 1e-9  # measured: 8e-16
    v = torch.randn(ev.n, 3, dtype=torch.float64)
    for operator, matrix in dense_operators(ev, expected, hs.ProductPlan(mode, keep=True)):
        case = (name, type(operator).__name__, mode)
        if case in UNAVAILABLE:
            with pytest.raises(RuntimeError):
                operator @ v
            continue
        assert relative(operator @ v, matrix @ v) < 1e-9, case  # measured: 2e-15
        assert relative(operator @ v, matrix @ v) < 1e-9, case  # again, from what is kept


def test_spectra_of_twenty_layers_of_a_resnet_take_one_pass_a_step_and_are_those_of_the_blocks():
    model = build_model("resnet20", num_classes=3, input_shape=(1, 8, 8)).double()
    x, y = torch.rand(4, 1, 8, 8).double(), torch.tensor([0, 1, 2, 0])
    ev = hs.Evaluator(model, nn.CrossEntropyLoss(), (x, y), batch_size=3)
    hessian = hs.Hessian(ev)
    blocks = hs.layer_blocks(hessian)
    layers = {k: v for k, v in blocks.items() if any(len(s) > 1 for s in shapes(hessian, v))}
    assert len(layers) == 20  # the convolutions and the last layer; the others are norms
    before, steps = (ev.counts.passes, ev.counts.products), []
    measures = hs.spectral_densities(hessian, layers, 2, 3, seed=1, on_step=steps.append)
    assert steps == [1, 2, 3]
    assert ev.counts.passes - before[0] == 3
    assert ev.counts.products - before[1] == 3 * 2 * 20
    for name in list(layers)[::9]:
        alone = hs.spectral_density(
            hs.Restricted(hessian, layers[name]), 2, 3, seed=1, estimator="slq"
        )
        assert relative(*map(torch.from_numpy, (measures[name].nodes, alone.nodes))) < 1e-10


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_have_products_in_every_mode_in_float32(kind):
    """oneDNN's fused LSTM has no jvp; it would be chosen in float32."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrence = kind(3, 4, bidirectional=True, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.recurrence(x)[0][:, -1])

    model, x, y = Last(), torch.randn(5, 4, 3), torch.arange(5) % 3
    exact = hs.Hessian(hs.Evaluator(model, F.cross_entropy, (x, y), dtype=torch.float64))
    ev = hs.Evaluator(model, F.cross_entropy, (x, y), batch_size=3)
    v = torch.randn(ev.n, 3)
    for mode in MODES:
        product = hs.Hessian(ev, plan=hs.ProductPlan(mode)) @ v
        assert relative(product.double(), exact @ v.double()) < 1e-5, mode  # measured: 4e-7
    assert "forward" not in vars(model.recurrence)


# A torch limitation, loud in each case; every other pair of kind and mode is exact.
UNAVAILABLE = {
    ("GroupNorm", "Hessian", "reverse-batched"),  # vmap of its double backward
    ("GroupNorm", "GaussNewtonResidual", "reverse-batched"),
    ("GroupNorm", "LikelihoodCurvature", "reverse-batched"),
    ("physics-informed", "Hessian", "forward"),  # vmap of mse_loss's jvp
    ("physics-informed", "GaussNewton", "forward"),
}


def dense_operators(ev, expected, plan=None):
    """Pairs (operator, its dense matrix)."""
    yield hs.Hessian(ev, plan=plan), expected.hessian
    yield hs.GaussNewton(ev, plan=plan), expected.gauss_newton
    yield hs.GaussNewtonResidual(ev, plan=plan), expected.hessian - expected.gauss_newton
    if ev.batch_norm != "train":
        moment, g = expected.second_moment, expected.gradient
        yield hs.GradientCovariance(ev, plan=plan, centered=False), moment
        yield hs.GradientCovariance(ev, plan=plan), moment - torch.outer(g, g)
        yield hs.GradientOuterProduct(ev), torch.outer(g, g)
        weight = ev.total_weight / ev.num_samples
        yield hs.LikelihoodCurvature(ev, plan=plan), expected.hessian - weight * moment


def shapes(operator, names):
    return [s for n, s in zip(operator.layout.names, operator.layout.shapes) if n in names]


def test_a_restriction_is_the_diagonal_block_wherever_its_parameters_lie():
    kind, expected = kind_and_oracle("GroupNorm")
    hessian = hs.Hessian(hs.Evaluator(**kind.arguments()))
    sizes = hessian.layout.sizes
    starts = torch.tensor([0, *sizes]).cumsum(0)
    for patterns in ("3.*", ["*.bias"], ["0.weight", "6.weight"]):
        block = hs.Restricted(hessian, patterns)
        kept = [i for i, name in enumerate(hessian.layout.names) if name in block.layout.names]
        index = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in kept])
        matrix = expected.hessian[index][:, index]
        assert relative(block @ torch.eye(block.n, dtype=torch.float64), matrix) < 1e-13
