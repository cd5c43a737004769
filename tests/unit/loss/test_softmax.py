"""Cross entropy over many classes: torch's own numbers, from few copies of the logits."""

import pytest
import torch
from small_networks import relative
from torch.nn import functional as F

from hessian_spectrum.loss import cross_entropy as softmax


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
