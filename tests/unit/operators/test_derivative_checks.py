"""Second derivatives and Jacobians are compared with differences: on samples, and on all data."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import hessian_spectrum as hs
from hessian_spectrum.loss import fallbacks
from hessian_spectrum.operators import run_check
from hessian_spectrum.operators.run_check import check_on_all_data

OPERATORS = (hs.Hessian, hs.GaussNewton, hs.GradientCovariance)
MODES = ("reverse", "reverse-batched", "forward", "linearize")


def samples(count=48, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    x[:, 0] = -x[:, 0].abs()
    return x.to(dtype), torch.randint(0, 3, (count,), generator=generator)


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()

    def between(self, h, x):
        return h

    def forward(self, x):
        return self.b(self.between(torch.tanh(self.a(x)), x))


class OnceOnly(torch.autograd.Function):
    """x^2 with a right gradient whose own derivative is lost."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 2 * x.detach()


class Lost(Body):
    def between(self, h, x):
        return OnceOnly.apply(h)


class Norm(Body):
    """|c| ** 2, which is smooth, with a norm that has no derivative at 0."""

    def between(self, h, x):
        d = torch.where(x[:, :1] > 0, 0 * h, h + 2)
        return h * torch.linalg.norm(d, dim=1, keepdim=True) ** 2


class DetachingBranch(Body):
    def between(self, h, x):
        return torch.where(x[:, :1] > 0, h.detach(), h)


class LostBranch(Body):
    def between(self, h, x):
        return torch.where(x[:, :1] > 0, OnceOnly.apply(h), h * h)


def evaluator(model, data=None, **kwargs):
    return hs.Evaluator(model, nn.CrossEntropyLoss(), data or samples(), **kwargs)


def with_one_positive(count, index):
    x, y = samples(count)
    x[index, 0] = 5.0
    return x, y


# -- on samples, when an operator is made --------------------------------------------------------


def test_a_second_derivative_that_is_lost_is_refused():
    with pytest.raises(hs.InputError, match="H u differs from differences"):
        hs.Hessian(evaluator(Lost()))


@pytest.mark.parametrize("kind", (hs.GaussNewton, hs.GradientCovariance))
def test_a_jacobian_product_that_is_lost_is_refused(kind):
    """J u of reverse mode twice needs the derivative of the backward pass by its argument."""

    class Constant(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return (g.detach() * 2 * x).detach()

    class Model(Body):
        def between(self, h, x):
            return Constant.apply(h)

    with pytest.raises(hs.InputError, match="those with the Jacobian of the"):
        kind(evaluator(Model()))


@pytest.mark.parametrize("kind", (hs.GaussNewton, hs.GradientCovariance))
def test_a_hook_that_acts_on_large_gradients_only_is_refused(kind):
    """The loss's own gradients are small enough; those of Jacobian products are not."""

    class Clipped(Body):
        def between(self, h, x):
            if h.requires_grad:
                h.register_hook(lambda g: g.clamp(-0.3, 0.3))
            return h

    with pytest.raises(hs.InputError, match="is there a hook on gradients"):
        kind(evaluator(Clipped()))


@pytest.mark.parametrize("batch_size", [7, 48])
def test_a_second_derivative_that_is_nan_is_refused_by_sample_operation_and_parameter(batch_size):
    data = with_one_positive(48, 0)
    data[0][:, 0] = data[0][:, 0].abs()
    message = r"not finite for sample \d+ of minibatch \d+ \(operation \w+, test_.* line \d+\)"
    with pytest.raises(hs.InputError, match=message + r".*concerned: a.weight, a.bias"):
        hs.Hessian(evaluator(Norm(), data, batch_size=batch_size))


def test_a_relu_at_exactly_zero_is_checked_nearby():
    class Zero(Body):
        def forward(self, x):
            return self.b(torch.relu(self.a(0 * x)))

    model = Zero()
    nn.init.zeros_(model.a.bias)
    ev = evaluator(model)
    hs.Hessian(ev)
    assert not ev.verification.unverified


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("form", ["parametrized", "hook", "whole"])
def test_weight_normalization_has_right_products(kind, form, caplog, monkeypatch):
    """torch's fused one treats the norm as a constant when it is differentiated twice."""
    monkeypatch.setattr(fallbacks, "_said", set())
    model = Body()
    dim = None if form == "whole" else 0
    if form == "hook":
        with pytest.warns(FutureWarning):
            model.a = nn.utils.weight_norm(model.a)
    else:
        model.a = parametrizations.weight_norm(model.a, dim=dim)
    ev = evaluator(model)
    assert "weight_norm runs in elementary operations" in caplog.text
    assert any("weight_norm" in text for text in ev.fallbacks)

    def first(x):
        named = dict(model.named_parameters())
        g, v = (named[name] for name in named if name.startswith("a.") and "bias" not in name)
        norm = v.norm() if form == "whole" else v.norm(dim=1, keepdim=True)
        return F.linear(x, g * v / norm, model.a.bias)

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x):
            return model.b(torch.tanh(first(x)))

    expected = kind(evaluator(ByHand())) @ torch.eye(ev.n, dtype=torch.float64)
    for mode in MODES:
        found = kind(ev, plan=hs.ProductPlan(mode)) @ torch.eye(ev.n, dtype=torch.float64)
        assert (found - expected).norm() < 1e-12 * expected.norm()  # measured: 3e-16


# -- in lower arithmetic -------------------------------------------------------------------------


def cast(kind):
    class Cast(kind):
        def between(self, h, x):
            return super().between(h.float(), x.float()).to(h)

    return Cast()


def test_a_model_that_casts_is_verified_in_float32(caplog):
    ev = evaluator(cast(Body))
    hs.Hessian(ev)
    assert not ev.verification.unverified and not caplog.text
    assert ev.verification.arithmetic.why == "the model or the loss casts to float32 by itself"


def test_where_it_cannot_be_verified_it_says_so(caplog):
    ev = evaluator(cast(Lost))
    hs.Hessian(ev)
    text = "second derivatives could not be verified: the model or the loss casts to float32"
    assert text in caplog.text
    assert text in ev.verification.stored()["unverified"][0]


def float32_only():
    class Only(Body):
        """Has a constant in float32."""

        def between(self, h, x):
            return h @ torch.eye(6)

    return Only().float()


def test_a_model_for_float32_only_has_all_results():
    ev = evaluator(float32_only(), samples(dtype=torch.float32))
    expected = hs.Hessian(evaluator(Body())) @ torch.eye(ev.n, dtype=torch.float64)
    values = torch.linalg.eigvalsh(expected)
    operator = hs.Hessian(ev)
    assert not ev.verification.unverified and operator.in_float64() is operator
    assert hs.spectral_density(operator, num_products=30).trace == pytest.approx(
        expected.trace().item(), rel=0.5
    )
    pairs = hs.eigenpairs(operator, k=1)
    assert pairs.values == pytest.approx(values[[0, -1]].tolist(), abs=1e-6)


# -- on all the data -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPERATORS)
def test_one_sample_of_thousands_that_is_detached_is_found(kind):
    ev = evaluator(DetachingBranch(), with_one_positive(4000, 3777))
    operator = kind(ev)  # its samples do not show it
    with pytest.raises(hs.InputError, match="the loss of samples 3584 to 3999: "):
        hs.spectral_density(operator, num_probes=2, num_steps=3)


def test_one_sample_whose_second_derivative_is_lost_is_found():
    ev = evaluator(LostBranch(), with_one_positive(4000, 3777))
    with pytest.raises(hs.InputError, match="for samples 3584 to 3999 H u differs"):
        hs.eigenpairs(hs.Hessian(ev), k=1)


@pytest.mark.parametrize("mode", [None, *MODES])
def test_one_sample_whose_second_derivative_is_nan_is_named(mode):
    ev = evaluator(Norm(), with_one_positive(4000, 3777))
    operator = hs.Hessian(ev, plan=mode and hs.ProductPlan(mode))
    with pytest.raises(hs.InputError, match=r"is not finite for sample 3777 \(operation"):
        hs.spectral_density(operator, num_probes=2, num_steps=3)


def test_all_data_are_checked_once_for_each_evaluator_and_counted_apart():
    ev = evaluator(Body(), batch_size=10)
    operator = hs.Hessian(ev)
    assert ev.counts.checks == 0
    hs.spectral_density(operator, num_probes=2, num_steps=3)
    hs.eigenpairs(hs.Hessian(ev, ev.theta + 0.1), k=1)
    assert ev.counts.checks == 1


@pytest.mark.parametrize(("kind", "evaluations"), [(hs.Hessian, 3), (hs.GaussNewton, 2)])
def test_the_check_takes_two_gradients_and_a_product(kind, evaluations):
    """Of the forward passes: two for the gradients, one for the graph of the product."""
    sizes = []

    class Loss(nn.CrossEntropyLoss):
        def forward(self, z, y):
            sizes.append(len(z))
            return super().forward(z, y)

    ev = hs.Evaluator(Body(), Loss(), samples(), batch_size=10)
    operator = kind(ev)
    sizes.clear()
    check_on_all_data(operator)
    assert sum(sizes) == evaluations * 48


def test_it_is_done_in_float64_with_half_of_the_samples_at_once():
    seen = []

    class Loss(nn.CrossEntropyLoss):
        def forward(self, z, y):
            seen.append((z.dtype, len(z)))
            return super().forward(z, y)

    ev = hs.Evaluator(Body().float(), Loss(), samples(dtype=torch.float32), batch_size=10)
    operator = hs.Hessian(ev)
    seen.clear()
    check_on_all_data(operator)
    assert {dtype for dtype, _ in seen} == {torch.float64} and max(n for _, n in seen) == 5


def test_running_out_of_memory_halves_the_samples_at_once(monkeypatch):
    sizes = []

    class Loss(nn.CrossEntropyLoss):
        limit = 1000

        def forward(self, z, y):
            if len(z) > Loss.limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            sizes.append(len(z))
            return super().forward(z, y)

    ev = hs.Evaluator(Body(), Loss(), samples(), batch_size=48)
    operator = hs.Hessian(ev)
    Loss.limit = 15
    sizes.clear()
    check_on_all_data(operator)
    assert max(sizes) == 12


def test_many_kinks_do_not_refuse_a_network_of_relus():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3000), nn.ReLU(), nn.Linear(3000, 3)).double()
    ev = evaluator(model, samples(4000))
    check_on_all_data(hs.Hessian(ev))
    assert not ev.verification.unverified


def test_the_data_may_verify_what_the_samples_leave_open(monkeypatch):
    ev = evaluator(Body())
    operator = hs.Hessian(ev)
    ev.verification.unverified["second derivatives"] = "a test"
    check_on_all_data(operator)
    assert not ev.verification.unverified


def test_products_of_zero_are_an_error_where_the_gradient_changes(monkeypatch):
    ev = evaluator(Body())
    operator = hs.Hessian(ev, plan=hs.ProductPlan("forward"))
    check_on_all_data(operator)
    broken = {**hs.operators.product_modes.MODES, "forward": lambda *_: torch.zeros_like}
    monkeypatch.setattr("hessian_spectrum.operators.linearization.MODES", broken)
    with pytest.raises(FloatingPointError, match="products by forward are exactly zero"):
        operator @ torch.ones(ev.n, dtype=torch.float64)
    block = hs.Restricted(operator, ["a.bias"])  # a vector that is zero elsewhere may give zeros
    assert not (block @ torch.ones(6, dtype=torch.float64)).any()


def test_a_gpu_that_is_slow_in_float64_is_checked_in_its_own_dtype(monkeypatch):
    ev = evaluator(Body().float(), samples(dtype=torch.float32))
    monkeypatch.setattr(ev, "device", torch.device("cuda"))
    for capability, dtype in (((8, 9), torch.float32), ((8, 0), torch.float64)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert run_check._on_device(ev).dtype == dtype
