"""Deep linear networks: autograd as the oracle, saddles of higher order, minima that are global."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hand import tensor
from torch import nn

import hessian_spectrum as hs


def samples(sizes, count=9, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, sizes[0])), rng.standard_normal((count, sizes[-1]))


def evaluator(sizes, x, y):
    layers = (nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))
    model = nn.Sequential(*layers).double()
    return hs.Evaluator(
        model, lambda out, target: (out - target).square().sum(1).mean() / 2, (tensor(x), tensor(y))
    )


@pytest.mark.parametrize("sizes", [(3, 2), (3, 4, 2), (2, 3, 1, 2), (2, 2, 3, 2, 2)])
def test_loss_gradient_and_hessian_are_those_of_autograd(sizes):
    x, y = samples(sizes)
    net, ev = hs.DeepLinear.of(sizes, x, y), evaluator(sizes, x, y)
    theta = tensor(np.random.default_rng(1).standard_normal(ev.n))
    dense = (hs.Hessian(ev, theta) @ torch.eye(ev.n).double()).numpy()
    assert net.loss(theta) == pytest.approx(ev.loss(theta).item(), rel=1e-13)
    assert np.allclose(net.gradient(theta), ev.gradient(theta), rtol=1e-11, atol=1e-12)
    assert np.allclose(net.hessian(theta), dense, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("k", [0.0, 1.5])
def test_of_three_weights_the_only_entries_at_two_zeros_are_of_w3(k):
    """The mean squared error is twice the loss: entries of -2 k, and none at 0."""
    net = hs.DeepLinear.of([1, 1, 1, 1], [[1.0]], [[1.0]])
    expected = np.zeros((3, 3))
    expected[0, 1] = expected[1, 0] = -2 * k
    assert np.array_equal(2 * net.hessian([0.0, 0.0, k]), expected)
    found = hs.classify(evaluator([1, 1, 1, 1], [[1.0]] * 2, [[1.0]] * 2), tensor([0.0, 0.0, k]))
    assert (found.kind, found.order) == ("saddle", 2 if k else 3)
    assert (found.smallest, found.largest) == (-k, k)


def test_the_origin_is_a_saddle_of_as_high_an_order_as_there_are_layers():
    for depth in (2, 3, 4):
        ev = evaluator([1] * (depth + 1), [[1.0]] * 2, [[1.0]] * 2)
        found = hs.classify(ev, torch.zeros(depth))
        assert (found.kind, found.order) == ("saddle", depth)


def test_one_layer_is_convex_and_more_are_not():
    rng = np.random.default_rng(2)
    for sizes, convex in [((4, 3), True), ((4, 3, 2), False)]:
        net = hs.DeepLinear.of(sizes, *samples(sizes))
        n = sum(a * b for a, b in pairwise(sizes))
        lowest = min(np.linalg.eigvalsh(net.hessian(rng.standard_normal(n)))[0] for _ in range(20))
        assert (lowest > 0.01) == convex
        assert (lowest > -0.01) == convex


@pytest.mark.parametrize("sizes", [(2, 1, 2), (2, 2, 2), (2, 2, 1, 2)])
def test_all_minima_from_many_starts_are_global_and_saddles_lie_above(sizes):
    """Kawaguchi 2016; the value is that of least squares of the smallest size's rank."""
    x, y = samples(sizes, seed=3)
    net, ev = hs.DeepLinear.of(sizes, x, y), evaluator(sizes, x, y)
    rng = np.random.default_rng(4)
    for _ in range(6):
        found = hs.find_critical_point(ev, tensor(rng.standard_normal(ev.n)), "minimum")
        assert found.outcome in ("found", "undecided")  # they are surfaces: not strict
        assert found.point.loss == pytest.approx(net.least_loss, rel=1e-9)
        assert np.linalg.norm(net.gradient(found.theta)) <= 1e-10
    origin = hs.classify(ev, torch.zeros(ev.n))
    assert origin.kind == "saddle"
    assert origin.loss == pytest.approx(net.syy / 2, rel=1e-14)
    assert origin.loss > (1 + 1e-6) * net.least_loss


@pytest.mark.parametrize("sizes", [(3,), (2, 1)])
def test_samples_and_parameters_of_other_shapes_are_refused(sizes):
    with pytest.raises(hs.InputError, match="samples of shapes"):
        hs.DeepLinear.of(sizes, np.ones((4, 3)), np.ones((4, 3)))
    with pytest.raises(hs.InputError, match=r"expected \(4,\)"):
        hs.DeepLinear.of((2, 2), np.ones((4, 2)), np.ones((4, 2))).loss(np.ones(3))
