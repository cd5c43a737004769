"""An attempt that fails leaves torch as it was, and autograd is tried after it."""

import pytest
import torch
from torch import nn
from torch.func import functionalize, grad, jvp, vmap

import hessian_spectrum as hs
from hessian_spectrum.loss import torch_state
from hessian_spectrum.operators.product_modes import MODES
from hessian_spectrum.planning import calibration


def state():
    tls = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    return (*map(str, tls), torch._C._functorch.get_dynamic_layer_stack_depth())


class Quantile(nn.Module):
    """torch's quantile fails inside functionalize, and leaves keys excluded (2.13)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8), nn.Linear(1, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)).quantile(0.3, 1, keepdim=True) ** 2)


class Inspecting(nn.Module):
    """Looks at numbers in Python, which transforms refuse."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if h.detach().numpy().max() > 10:
            raise ValueError("no")
        return self.b(h)


def evaluator(model, **kwargs):
    torch.manual_seed(1)
    x, y = torch.randn(64, 4, dtype=torch.float64), torch.randint(0, 3, (64,))
    return hs.Evaluator(model.double(), nn.CrossEntropyLoss(), (x, y), **kwargs)


def failing(t):
    return functionalize(lambda t: jvp(grad(lambda u: u.quantile(0.3) ** 2), (t,), (t,))[1])(t)


@pytest.mark.parametrize("around", [lambda f: f, vmap, grad])
def test_dispatch_keys_and_transforms_are_restored(around):
    before, t = state(), torch.randn(3, 5, dtype=torch.float64)
    with pytest.raises(RuntimeError), torch_state.unchanged():
        around(lambda u: failing(u).sum())(t if around is vmap else t[0])
    assert state() == before
    leaf = torch.ones(3, requires_grad=True)
    assert torch.equal(torch.autograd.grad(leaf.square().sum(), leaf)[0], torch.full((3,), 2.0))


@pytest.mark.parametrize("kind", [Quantile, Inspecting])
@pytest.mark.parametrize("mode", list(MODES))
def test_a_form_that_fails_leaves_torch_as_it_was(kind, mode, caplog):
    """A plan of the user's is obeyed, or fails; one that was chosen falls back."""
    ev, before = evaluator(kind()), state()
    gradient = ev.gradient()
    eye = torch.eye(ev.n, dtype=torch.float64)
    expected = hs.Hessian(ev) @ eye
    operator = hs.Hessian(ev, plan=hs.ProductPlan(mode))
    fails = mode == "linearize" or (mode == "forward" and kind is Inspecting)
    if fails:
        with pytest.raises(RuntimeError):
            operator @ eye
        assert state() == before and torch.equal(ev.gradient(), gradient)
        assert not caplog.text
    found = operator.planned(operator.plan) @ eye
    assert (found - expected).norm() <= 1e-12 * expected.norm() and expected.norm() > 0.1
    assert (f"products by {mode} fail for a minibatch; they are by reverse" in caplog.text) == fails
    assert state() == before and torch.equal(ev.gradient(), gradient)


@pytest.mark.parametrize("kind", [Quantile, Inspecting])
def test_planning_tries_autograd_after_a_form_that_fails(kind):
    ev = evaluator(kind())
    operator = hs.Hessian(ev)
    trace = (operator @ torch.eye(ev.n, dtype=torch.float64)).trace().item()
    measure = hs.spectral_density(operator, num_products=40)
    assert measure.n == ev.n and measure.interval("trace")[0] <= trace
    assert trace <= measure.interval("trace")[1] and trace > 0.1


def test_a_form_that_fails_for_a_later_minibatch_only_falls_back_there(caplog):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            if bool((x[:, 0] > 0).all()):
                h = h - h.quantile(0.5, 1, keepdim=True)
            return self.b(h)

    torch.manual_seed(1)
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    x[:, 0] = torch.where(torch.arange(20) < 16, -1.0, 1.0) * x[:, 0].abs()
    ev = hs.Evaluator(Late().double(), nn.CrossEntropyLoss(), (x, y), batch_size=8)
    eye = torch.eye(ev.n, dtype=torch.float64)
    expected = hs.Hessian(ev) @ eye
    found = hs.Hessian(ev).planned(hs.ProductPlan("linearize", keep=True))
    for _ in range(2):
        assert (found @ eye - expected).norm() <= 1e-12 * expected.norm()
    assert caplog.text.count("products by linearize fail") == 1


def test_products_of_zero_are_no_agreement():
    """A form whose products are not zero differs from one whose products are."""
    zero, some = torch.zeros(1, 3), torch.ones(1, 3)
    assert calibration._error(some, zero) == float("inf")
    assert calibration._error(zero, zero) == 0.0
