"""Cross entropy over many classes: torch's own numbers, from few copies of the logits."""

import numpy as np
import pytest
import torch
from small_networks import relative
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import hessian_spectrum as hs
from hessian_spectrum import softmax


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(softmax, "MANY_CLASSES", 2)
    monkeypatch.setattr(softmax, "BLOCK", 10)  # less than the logits of two tokens


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value_and_derivatives_are_torchs_with_weights_and_ignored_targets(reduction, always):
    z = torch.randn(3, 5, 4, dtype=torch.float64)  # (N, C, T)
    y = torch.randint(0, 5, (3, 4))
    y[0, 1:3] = -7
    options = {"weight": torch.rand(5).double(), "ignore_index": -7, "reduction": reduction}

    def functions(loss):
        value = lambda z: loss(z, y, **options)  # noqa: E731
        return value(z), torch.func.grad(value)(z), torch.func.hessian(value)(z)

    with softmax.LeanCrossEntropy():
        found = functions(F.cross_entropy)
    for ours, theirs in zip(found, functions(F.cross_entropy)):
        assert relative(ours, theirs) < 1e-13
    big = 1e4 * z  # neither overflows
    assert torch.isfinite(softmax.cross_entropy(big, y, **options))


def test_what_is_not_known_is_left_to_torch(always):
    z, y = torch.randn(3, 5), torch.tensor([0, 4, 2])
    for options in ({"label_smoothing": 0.1}, {"reduction": "none"}):
        assert not softmax.is_large(z, y, **options)
        with softmax.LeanCrossEntropy():
            assert torch.equal(F.cross_entropy(z, y, **options), _plain(z, y, **options))
    assert not softmax.is_large(z, z.softmax(1))
    assert softmax.is_large(z, y) and not softmax.is_large(z[:, :1], y)


def _plain(z, y, **options):
    return F.cross_entropy(z, y, **options)


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
