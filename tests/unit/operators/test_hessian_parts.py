"""H = G + R, and H = C + g g^T + (1/N) sum_i (dL_i/dp_i) d2p_i: each term, and the sums."""

import math

import pytest
import torch
from dense_oracles import dense_hessian
from small_networks import NETWORKS, data, mlp, relative
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs


def evaluator(samples=10, network="mlp", **options):
    torch.manual_seed(0)
    model = NETWORKS[network]()
    return hs.Evaluator(model, F.cross_entropy, data(samples), batch_size=4, **options)


def dense(operator):
    return operator @ torch.eye(operator.n, dtype=torch.float64)


@pytest.mark.parametrize("network", ["mlp", "layer norm", "tied", "batch norm, dropout"])
def test_the_terms_of_both_equations_add_up_to_the_dense_hessian(network):
    ev = evaluator(network=network)
    x, y = data()
    ev.model.eval()
    hessian = dense_hessian(ev.model, lambda m: F.cross_entropy(m(x), y))
    gauss_newton, residual = dense(hs.GaussNewton(ev)), dense(hs.GaussNewtonResidual(ev))
    assert relative(gauss_newton + residual, hessian) < 1e-9  # measured: 5e-16
    covariance, outer = dense(hs.GradientCovariance(ev)), dense(hs.GradientOuterProduct(ev))
    likelihood = dense(hs.LikelihoodCurvature(ev))
    assert relative(covariance + outer + likelihood, hessian) < 1e-9  # measured: 5e-16
    for term in (gauss_newton, residual, covariance, outer, likelihood):
        assert term.norm() > 1e-3 * hessian.norm()  # none is idle


def test_the_last_term_of_equation_2_is_that_of_the_models_own_probabilities():
    """From p_i itself, by torch.autograd: -(1/N) sum_i (1/p_i) d^2 p_i."""
    ev = evaluator()
    x, y = data()
    with torch.no_grad():
        frozen = F.softmax(ev.model(x), dim=1)[range(len(y)), y]

    def ratios(model):
        return -(F.softmax(model(x), dim=1)[range(len(y)), y] / frozen).mean()

    expected = dense_hessian(ev.model, ratios)
    assert relative(dense(hs.LikelihoodCurvature(ev)), expected) < 1e-9  # measured: 4e-16


def test_likelihoods_that_underflow_have_a_curvature():
    """-log p = 2,000 for each sample: p is zero in float64."""
    x, y = data()
    model = nn.Linear(6, 3).double()
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.0, 0.0, 2000.0]))
    ev = hs.Evaluator(model, F.cross_entropy, (x, y % 2), batch_size=4)
    assert ev.loss().item() == pytest.approx(2000)
    hessian, moment = dense(hs.Hessian(ev)), dense(hs.GradientCovariance(ev, centered=False))
    assert relative(dense(hs.LikelihoodCurvature(ev)), hessian - moment) < 1e-12


def test_ignored_targets_and_class_weights_scale_the_second_moment():
    x, y = data()
    y = y.clone()
    y[:2] = -100
    torch.manual_seed(0)
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]).double())
    ev = hs.Evaluator(mlp(), loss_fn, (x, y), batch_size=4)
    scale = ev.total_weight / ev.num_samples
    assert not math.isclose(scale, 1.0, rel_tol=0.1)
    moment = dense(hs.GradientCovariance(ev)) + dense(hs.GradientOuterProduct(ev))
    hessian = dense_hessian(ev.model, lambda m: loss_fn(m(x), y))
    assert relative(scale * moment + dense(hs.LikelihoodCurvature(ev)), hessian) < 1e-9


def test_weight_decay_belongs_to_the_hessian_and_to_gauss_newton():
    plain, decayed = evaluator(), evaluator(weight_decay=0.3)
    eye = torch.eye(plain.n, dtype=torch.float64)
    for make in (hs.GaussNewtonResidual, hs.LikelihoodCurvature, hs.GradientOuterProduct):
        assert torch.equal(dense(make(plain)), dense(make(decayed)))
    split = dense(hs.GaussNewton(decayed)) + dense(hs.GaussNewtonResidual(decayed))
    assert relative(dense(hs.Hessian(decayed)), split) < 1e-14
    assert relative(dense(hs.Hessian(decayed)) - 0.3 * eye, dense(hs.Hessian(plain))) < 1e-14


def test_a_network_that_is_linear_in_its_parameters_has_no_residual():
    x, y = data()
    ev = hs.Evaluator(nn.Linear(6, 3).double(), F.cross_entropy, (x, y), batch_size=4)
    assert not dense(hs.GaussNewtonResidual(ev)).any()
    pairs = hs.eigenpairs(hs.GaussNewtonResidual(ev), 2)
    assert pairs.values.tolist() == 4 * [0.0]


def test_the_outer_product_has_one_eigenvalue_and_float64_products():
    torch.manual_seed(0)
    x, y = data()
    rounded = x.float(), y  # products in float64 are of the evaluator's own samples
    ev = hs.Evaluator(mlp().float(), F.cross_entropy, rounded, batch_size=4)
    outer, g = hs.GradientOuterProduct(ev), ev.gradient().double()
    double = outer.in_float64()
    assert double.dtype == torch.float64 and double.in_float64() is double
    pairs = hs.eigenpairs(double, 1, "largest")
    assert pairs.values[0] == pytest.approx((g @ g).item(), rel=1e-12)
    assert abs(pairs.vectors[0] @ g.numpy()) == pytest.approx(g.norm().item(), rel=1e-9)
    for make in (hs.GaussNewtonResidual, hs.LikelihoodCurvature):
        single = make(ev)
        exact = make(hs.Evaluator(ev.model, F.cross_entropy, rounded, dtype=torch.float64))
        v = torch.randn(ev.n, dtype=torch.float64)
        assert relative(single.in_float64() @ v, exact @ v) < 1e-12
        assert relative((single @ v.float()).double(), exact @ v) < 1e-4


def test_what_has_no_such_terms_is_refused():
    by_batch = evaluator(network="batch norm, dropout", batch_norm="train")
    with pytest.raises(hs.InputError, match="each sample's loss depend on its minibatch"):
        hs.LikelihoodCurvature(by_batch)
    assert hs.GaussNewtonResidual(by_batch).n == by_batch.n  # needs no losses of single samples
    with pytest.raises(hs.InputError, match="GradientOuterProduct of a str"):
        hs.GradientOuterProduct("ev")
    x, y = data()
    linear = hs.Evaluator(
        mlp(), lambda out, labels: out[range(len(labels)), labels].mean(), (x, y), batch_size=4
    )
    with pytest.raises(hs.InputError, match="linear in what the network returns"):
        hs.GaussNewtonResidual(linear)
    with pytest.raises(hs.InputError, match="the losses of single samples are needed"):
        hs.LikelihoodCurvature(linear)
