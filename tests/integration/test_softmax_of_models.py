"""Products through the rewritten softmax are those of dense matrices."""

import pytest
import torch
from kinds import KINDS, oracle
from small_networks import relative
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum import softmax
from hessian_spectrum.products import MODES


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(softmax, "MANY_CLASSES", 2)
    monkeypatch.setattr(softmax, "BLOCK", 10)  # less than the logits of two tokens


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["perceptron", "LSTM", "transformer, tied"])
def test_products_are_those_of_dense_matrices(name, mode, always, monkeypatch):
    torch.manual_seed(0)
    kind = KINDS[name]()
    expected = oracle(kind)
    called = []
    ours = softmax.cross_entropy
    monkeypatch.setattr(softmax, "cross_entropy", lambda *a, **k: called.append(0) or ours(*a, **k))
    if name == "transformer, tied":  # the same loss, reduced
        kind.options["reduction"] = "mean"
        kind.loss_fn = lambda z, batch: F.cross_entropy(z.transpose(1, 2), batch["labels"])
    ev = hs.Evaluator(**kind.arguments())
    v = torch.randn(ev.n, 3, dtype=torch.float64)
    plan = hs.ProductPlan(mode, keep=True)
    assert relative(ev.gradient(), expected.gradient) < 1e-12
    assert relative(hs.Hessian(ev, plan=plan) @ v, expected.hessian @ v) < 1e-12
    assert relative(hs.GaussNewton(ev, plan=plan) @ v, expected.gauss_newton @ v) < 1e-12
    assert called
