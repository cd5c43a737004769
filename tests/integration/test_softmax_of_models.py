"""Products through the rewritten softmax are those of dense matrices."""

import numpy as np
import pytest
import torch
from small_networks import relative
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import hessian_spectrum as hs
from benchmarks.suite.kinds import KINDS, oracle
from hessian_spectrum.loss import cross_entropy as softmax
from hessian_spectrum.operators.product_modes import MODES


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(softmax, "MANY_CLASSES", 2)
    monkeypatch.setattr(softmax, "BLOCK", 10)  # less than the logits of two tokens


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", ["perceptron", pytest.param("LSTM", marks=pytest.mark.slow), "transformer, tied"]
)
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


def test_two_tensors_as_large_as_the_logits_are_kept():
    tokens, classes = 256, 50_000

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, classes, bias=False)

        def forward(self, x):
            return self.head(torch.tanh(self.embedding(x)))

    x, y = torch.arange(tokens) % 9, torch.arange(tokens) % classes
    ev = hs.Evaluator(Head(), nn.CrossEntropyLoss(), (x, y), batch_size=tokens)
    logits = 4 * tokens * classes
    hessian = hs.Hessian(ev, plan=hs.ProductPlan("reverse", keep=True))
    loss_peak, _ = _allocated(ev.loss)
    product_peak, kept = _allocated(lambda: hessian.products(torch.randn(1, ev.n)))
    assert loss_peak < 1.2 * logits  # torch's own: 2.0
    assert kept < 2.1 * logits  # 3.0
    assert product_peak < 4.5 * logits  # 8.1


def _allocated(work) -> tuple[int, int]:
    """Bytes of tensors beyond those at the start, at the peak and at the end, as torch's own
    allocator counts them: the resident set would count what the C library holds free as well."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    events = (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    del result
    return int(held.max()), int(held[-1])
