"""Embeddings whose options change gradients or weights: products are those of the loss."""

import pytest
import torch
from dense_oracles import dense_hessian
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.loss import embeddings

MODES = ("reverse", "reverse-batched", "forward", "linearize")
OPTIONS = ({"sparse": True}, {"scale_grad_by_freq": True})


def words():
    generator = torch.Generator().manual_seed(0)
    w = torch.randint(8, (30, 4), generator=generator)
    return w, torch.randint(3, (30,), generator=generator)


class Mean(nn.Module):
    """The mean of embeddings, in which padding is included."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(1)
        self.e, self.h = nn.Embedding(8, 3, **options), nn.Linear(3, 3)
        nn.init.normal_(self.e.weight)
        self.double()

    def forward(self, w):
        return self.h(torch.tanh(self.e(w)).mean(1))


class Functional(Mean):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, w):
        return self.h(torch.tanh(F.embedding(w, self.e.weight, **self.options)).mean(1))


class Subclass(Mean):
    """As the positions of language models, which shift what they look up."""

    def __init__(self, **options):
        class Shifted(nn.Embedding):
            def forward(self, w):
                return super().forward((w + 1) % 8)

        super().__init__()
        torch.manual_seed(1)
        self.e = Shifted(8, 3, **options).double()
        nn.init.normal_(self.e.weight)


class Bag(Mean):
    def __init__(self, flat=False, scaled=False, **options):
        super().__init__()
        self.e = nn.EmbeddingBag(8, 3, **options).double()
        nn.init.normal_(self.e.weight)
        self.flat, self.scaled = flat, scaled

    def bags(self, w):
        scales = w.double() if self.scaled else None
        if not self.flat:
            return self.e(w, per_sample_weights=scales)
        scales = None if scales is None else scales.reshape(-1)
        offsets = torch.arange(len(w)) * w.shape[1]
        return self.e(w.reshape(-1), offsets, scales)

    def forward(self, w):
        return self.h(torch.tanh(self.bags(w)))


class BagByHand(Bag):
    def bags(self, w):
        scales = (w.double() if self.scaled else torch.ones_like(w).double())[..., None]
        kept = torch.ones_like(w) if self.e.padding_idx is None else (w != self.e.padding_idx)
        total = (self.e.weight[w] * scales * kept[..., None]).sum(1)
        return total / kept.sum(1, keepdim=True).clamp(min=1) if self.e.mode == "mean" else total


class Constant(nn.Module):
    """``Mean`` with a row that is looked up as a constant, written out."""

    def __init__(self, model):
        super().__init__()
        self.e, self.h = model.e, model.h
        self.row = model.e.weight[model.e.padding_idx].detach().clone()

    def forward(self, w):
        found = self.e.weight[w]
        found = torch.where((w == self.e.padding_idx)[..., None], self.row, found)
        return self.h(torch.tanh(found).mean(1))


def evaluator(model, dtype=None):
    return hs.Evaluator(model, F.cross_entropy, words(), batch_size=8, dtype=dtype)


def require_equal(ev, model):
    w, y = words()
    expected = dense_hessian(model, lambda m: F.cross_entropy(m(w), y))
    for mode in MODES:
        found = hs.Hessian(ev, plan=hs.ProductPlan(mode)) @ torch.eye(ev.n, dtype=torch.float64)
        assert (found - expected).norm() < 1e-12 * expected.norm(), mode  # measured: 3e-16
    hs.eigenpairs(hs.Hessian(ev), k=1)  # with the check on all data


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", [Mean, Functional, Subclass])
def test_options_that_change_gradients_only_change_nothing(kind, options):
    require_equal(evaluator(kind(**options)), kind())


@pytest.mark.parametrize("padding_idx", [0, -1])
def test_the_row_of_the_padding_is_a_constant_of_the_derivatives(padding_idx):
    model = Mean(padding_idx=padding_idx)
    ev = evaluator(model)
    require_equal(ev, Constant(model))
    pads = slice(0, 3) if padding_idx == 0 else slice(21, 24)
    assert not ev.gradient()[pads].any() and not ev.verification.unverified


def test_a_call_may_count_the_row_of_the_padding_from_the_end():
    weight = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    w = words()[0]
    found, expected = (
        torch.autograd.grad(call(w, weight, padding_idx=-1).square().sum(), weight)[0]
        for call in (embeddings.lookup, F.embedding)
    )
    assert torch.equal(found, expected) and not found[7].any() and found[6].any()


def test_the_loss_has_the_row_of_its_theta():
    """Two networks may have been given other rows by their initialization."""
    model, other = Mean(padding_idx=0), Mean(padding_idx=0)
    nn.init.normal_(other.e.weight)
    w, y = words()
    expected = F.cross_entropy(other(w), y).item()
    assert evaluator(model).loss(evaluator(other).theta).item() == pytest.approx(expected, 1e-14)


def test_a_row_that_is_constant_in_lookups_alone_has_the_derivatives_of_its_other_use():
    class Tied(Mean):
        def __init__(self):
            super().__init__(padding_idx=0)
            self.decode = nn.Linear(3, 8, bias=False).double()
            self.decode.weight = self.e.weight

        def forward(self, w):
            return self.h(torch.tanh(self.decode(self.e(w)).mean(1))[:, :3])

    class ByHand(Constant):
        def forward(self, w):
            found = torch.where((w == 0)[..., None], self.row, self.e.weight[w])
            return self.h(torch.tanh((found @ self.e.weight.T).mean(1))[:, :3])

    model = Tied()
    assert "decode.weight" not in evaluator(model).layout.names
    require_equal(evaluator(model), ByHand(model))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "mean", "sparse": True},
        {"mode": "mean", "padding_idx": 2},
        {"mode": "sum", "scale_grad_by_freq": True},
        {"mode": "sum", "scaled": True, "padding_idx": 0},
    ],
)
def test_bags_have_second_derivatives(options, flat):
    require_equal(evaluator(Bag(flat=flat, **options)), BagByHand(flat=flat, **options))


@pytest.mark.parametrize("kind", [Mean, Bag])
def test_max_norm_is_refused_by_layer_and_its_way_out_is_the_same_loss(kind):
    w, y = words()
    model = kind(max_norm=0.7)
    with pytest.raises(hs.InputError, match=r"layer e \(Embedding.*max_norm=0.7") as caught:
        evaluator(model)
    written = str(caught.value).split("once, ")[1].replace(", and set ", "\n")
    exec(written, {"model": model})
    expected = F.cross_entropy(kind(max_norm=0.7)(w), y).item()
    ev = evaluator(model)
    assert ev.loss().item() == pytest.approx(expected, 1e-6)  # torch's own divides by norm + 1e-7
    hs.eigenpairs(hs.Hessian(ev), k=1)


def test_max_norm_of_a_call_is_refused_with_its_cause():
    class Called(Mean):
        def forward(self, w):
            return self.h(torch.tanh(F.embedding(w, self.e.weight, max_norm=1.0)).mean(1))

    with pytest.raises(hs.InputError, match=r"^embedding is called with max_norm=1: "):
        evaluator(Called())
