"""The recorded linearization is the Hessian, whatever simplifications apply to a network."""

import gc
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum.operators import product_modes
from hessian_spectrum.operators.graph_passes import Simplifier
from hessian_spectrum.operators.tracing import record


class Recurrent(nn.Module):
    """An LSTM written out: its weights are used at every step."""

    def __init__(self, width=5):
        super().__init__()
        self.embed, self.width = nn.Embedding(7, 3), width
        self.cell, self.head = nn.LSTMCell(3, width), nn.Linear(width, 7)

    def forward(self, symbols):
        x = self.embed(symbols)
        h = c = x.new_zeros(len(x), self.width)
        outputs = []
        for step in range(x.shape[1]):
            i, f, g, o = (
                F.linear(x[:, step], self.cell.weight_ih, self.cell.bias_ih)
                + F.linear(h, self.cell.weight_hh, self.cell.bias_hh)
            ).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(self.head(h))
        return torch.stack(outputs, 2)


class Wild(nn.Module):
    """Changes in place, a view after a transposition, functions of several kinds."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x):
        z = self.first(x)
        mixed = torch.zeros_like(z)
        mixed[:, :4] = z[:, :4] * z[:, 4:]
        mixed[:, 4:] += z[:, :4]
        z = mixed.clone().add_(1.0) * F.silu(z)
        z = z.view(-1, 2, 4).transpose(1, 2).reshape(len(x), 4, 2).logsumexp(2)
        return self.second(F.gelu(z) + F.softplus(z) / (1 + z.square()))


def images(n=3):
    return torch.randn(n, 3, 8, 8, dtype=torch.float64), torch.arange(n)


def running(model):
    """Running statistics as after a training, so that BatchNorm is no identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model


def tokens(n=3):
    x = torch.randint(0, 7, (n, 6))
    return x[:, :-1], x[:, 1:]


def rows(outputs):
    return lambda: (torch.randn(5, 6, dtype=torch.float64), outputs())


PROBLEMS = {
    "residual network": (
        lambda: running(zoo.build_model("resnet8", input_shape=(3, 8, 8))),
        F.cross_entropy,
        images,
    ),
    "without BatchNorm": (
        lambda: zoo.build_model("resnet8", input_shape=(3, 8, 8), batchnorm=False),
        F.cross_entropy,
        images,
    ),
    "recurrent": (Recurrent, F.cross_entropy, tokens),
    "wild": (Wild, F.cross_entropy, rows(lambda: torch.randint(0, 3, (5,)))),
    "squares": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 2)),
        F.mse_loss,
        rows(lambda: torch.randn(5, 2, dtype=torch.float64)),
    ),
    "transposed, grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, groups=3),
            nn.GroupNorm(2, 6),
            nn.PReLU(),
            nn.ConvTranspose2d(6, 4, 3, stride=2),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.LazyLinear(3),
        ),
        F.cross_entropy,
        images,
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_is_the_hessian_for_any_number_of_rows(name):
    model, loss_fn, data = PROBLEMS[name]
    model, data = model().double(), data()
    model(data[0])  # a lazy layer is made
    ev = hs.Evaluator(model, loss_fn, data)
    with ev.evaluation_mode():
        loss, theta = next(ev.parts({})), ev.theta
        linear, exact = product_modes.linearize(loss, theta), product_modes.reverse(loss, theta)
        for k in (1, 3, 2, 3, 1):
            v = torch.randn(k, ev.n, dtype=torch.float64)
            expected = exact(v)
            error = (linear(v) - expected).norm() / expected.norm()
            assert error < 1e-12, k  # measured: at most 1e-15


def test_a_linear_loss_has_the_hessian_zero():
    data = torch.ones(3, 4), torch.ones(3)
    ev = hs.Evaluator(nn.Linear(4, 1).double(), lambda out, y: out.mean(), data)
    zero = hs.Hessian(ev, plan=hs.ProductPlan("linearize")) @ torch.ones(ev.n, 2)
    assert not zero.any()


def test_a_map_that_differs_from_what_it_was_recorded_from_is_refused(monkeypatch):
    def wrong(self):
        for node in self._calls(torch.ops.aten.mul.Tensor)[:1]:
            node.target = torch.ops.aten.add.Tensor

    monkeypatch.setattr(Simplifier, "merge_factors", wrong)
    model, loss_fn, data = PROBLEMS["squares"]
    ev = hs.Evaluator(model().double(), loss_fn, data())
    with pytest.raises(RuntimeError, match="the recorded linearization is wrong by"):
        hs.Hessian(ev, plan=hs.ProductPlan("linearize")) @ torch.ones(ev.n)


def test_only_what_depends_on_the_argument_is_recorded():
    a, b = torch.randn(4, 4), torch.randn(4, 4)

    def function(v):
        constant = (a @ b).tanh() @ a
        return constant @ v + (2 * v) * constant[0]

    v = torch.randn(4)
    made = record(function, v)
    calls = [node for node in made.graph.nodes if node.op == "call_function"]
    assert len(calls) == 4  # mv, 2 v, times, plus
    torch.testing.assert_close(Simplifier(made).function()(v), function(v))


def test_what_a_map_keeps_is_gone_with_it_without_a_garbage_collection():
    """Maps at many points keep gigabytes each; a collection comes after many objects, not bytes."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
    samples = torch.randn(5, 1, 8, 8), torch.arange(5) % 4
    ev = hs.Evaluator(model, nn.CrossEntropyLoss(), samples)

    def form():
        hessian = hs.Hessian(ev, plan=hs.ProductPlan("linearize", keep=True))
        hessian.products(torch.randn(1, ev.n))
        hessian.products(torch.randn(3, ev.n))

    def tensors():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own objects that are looked at
            return {id(x) for x in gc.get_objects() if isinstance(x, torch.Tensor)}

    form()
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        form()
        assert tensors() <= before
    finally:
        gc.enable()


def test_rounding_of_a_vector_in_the_null_space_is_no_sign_of_a_wrong_map():
    """Another way to multiply has another amount of rounding where the product is zero."""
    matrix, null = torch.diag(tensor([1.0, 2.0, 0.0])), tensor([0.0, 0.0, 1.0])

    def function(v):
        return matrix @ v

    def rounded(v):
        return matrix @ v + 1e-17 * v

    def wrong(v):
        return 1.01 * (matrix @ v) + 1e-17 * v

    found, out = product_modes._checked(rounded, null, function(null), function)
    assert found is rounded and torch.equal(out, rounded(null))
    with pytest.raises(RuntimeError, match="the recorded linearization is wrong"):
        product_modes._checked(wrong, null, function(null), function)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)
