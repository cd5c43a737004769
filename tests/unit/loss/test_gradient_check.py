"""What is differentiated is what is evaluated: gradients are compared with losses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.loss import gradient_check

DTYPES = (torch.float32, torch.float64)


def samples(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, 3, (48,), generator=generator)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def squares(parameters):
    return 0.5 * sum(p.square().sum() for p in parameters)


def dense(model, loss_fn):
    """The Hessian of the loss of the samples by torch.autograd.functional, float64."""
    x, y = samples()
    named = dict(model.named_parameters())
    theta = torch.cat([p.detach().reshape(-1) for p in named.values()])

    def loss(theta):
        parts = theta.split([p.numel() for p in named.values()])
        tensors = {k: t.view(p.shape) for (k, p), t in zip(named.items(), parts)}
        return loss_fn(torch.func.functional_call(model, tensors, (x,)), y, tensors)

    return torch.autograd.functional.hessian(loss, theta)


class Body(nn.Module):
    """Two layers, and something between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()

    def between(self, h, x):
        return h

    def forward(self, x):
        return self.b(self.between(torch.tanh(self.a(x)), x))


class OwnList(Body):
    def __init__(self):
        super().__init__()
        self.kept = [self.a.weight]

    def between(self, h, x):
        return h + torch.tanh(x @ self.kept[0].to(x).T)


class Detached(Body):
    def between(self, h, x):
        return h * h.detach()


class NoGrad(Body):
    def between(self, h, x):
        with torch.no_grad():
            scale = h.abs().mean(1, keepdim=True)
        return h * scale


class Item(Body):
    def between(self, h, x):
        return h * self.a.weight.norm().item()


class Clipped(Body):
    def between(self, h, x):
        if h.requires_grad:
            h.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
        return h


class StraightThrough(Body):
    def between(self, h, x):
        return h + (torch.round(4 * h) / 4 - h).detach()


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


class Reversed(Body):
    def between(self, h, x):
        return Reversal.apply(h)


class KeptOutputs(Body):
    def __init__(self):
        super().__init__()
        self.kept = {}

    def forward(self, x):
        if len(x) not in self.kept:
            self.kept[len(x)] = super().forward(x).detach()
        return self.kept[len(x)] + 0 * super().forward(x)


class Padded(nn.Module):
    """Its padding is part of the mean, but has no gradient; no layer says which row it is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.h = nn.Embedding(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        w = (10 * x.abs()).long() % 6
        return self.h(torch.tanh(F.embedding(w, self.e.weight, padding_idx=0)).mean(1))


WRONG = (Detached, NoGrad, Item, Clipped, StraightThrough, Reversed, KeptOutputs, Padded)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", WRONG)
def test_a_model_whose_gradient_is_not_that_of_its_loss_is_refused(kind, dtype):
    with pytest.raises(hs.InputError, match="is not the derivative of the loss"):
        hs.Evaluator(kind().to(dtype), F.cross_entropy, samples(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_so_is_one_that_computes_in_float32_by_itself(dtype):
    class Cast(Detached):
        def between(self, h, x):
            return super().between(h.float(), x).to(h)

    with pytest.raises(hs.InputError, match="is not the derivative of the loss"):
        hs.Evaluator(Cast().to(dtype), F.cross_entropy, samples(dtype))


def losses(model):
    stored, weight = list(model.parameters()), model[0].weight
    return {
        "list": lambda z, y: F.cross_entropy(z, y) + squares(stored),
        "one": lambda z, y: F.cross_entropy(z, y) + squares([weight]),
        "detached": lambda z, y: (
            F.cross_entropy(z, y) + squares(p.detach() for p in model.parameters())
        ),
        "item": lambda z, y: F.cross_entropy(z, y) + squares(model.parameters()).item(),
        "all": lambda z, y: F.cross_entropy(z, y).detach() + 0 * z.sum(),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("list", r"model's own 0.weight, 0.bias, 2.weight, 2.bias"),
        ("one", r"model's own 0.weight, but"),
        ("detached", r"not the derivative .* \(parameters 0.weight, 0.bias"),
        ("item", r"not the derivative"),
        ("all", r"not the derivative"),
    ],
)
def test_a_loss_that_holds_parameters_in_its_own_way_is_refused_by_their_names(
    name, message, dtype
):
    model = net().to(dtype)
    with pytest.raises(hs.InputError, match=message):
        hs.Evaluator(model, losses(model)[name], samples(dtype))


def test_a_module_that_holds_a_parameter_in_a_list_is_refused():
    with pytest.raises(hs.InputError, match=r"model's own a\.weight, but"):
        hs.Evaluator(OwnList(), F.cross_entropy, samples())


def test_a_penalty_of_the_models_parameters_is_part_of_the_hessian():
    model = net()
    ev = hs.Evaluator(
        model, lambda z, y: F.cross_entropy(z, y) + squares(model.parameters()), samples()
    )
    found = hs.Hessian(ev) @ torch.eye(ev.n, dtype=torch.float64)
    expected = dense(model, lambda z, y, named: F.cross_entropy(z, y) + squares(named.values()))
    assert (found - expected).norm() < 1e-12 * expected.norm()  # measured: 2e-16


def test_outputs_kept_by_forward_are_refused():
    kept = {}

    def forward(model, batch):
        return kept.setdefault(len(batch[0]), model(batch[0]))

    with pytest.raises(hs.InputError, match="does not depend on the parameters"):
        hs.Evaluator(net(), lambda z, b: F.cross_entropy(z, b[1]), samples(), forward=forward)


class Branch(Body):
    """Samples with a positive first entry are detached."""

    def between(self, h, x):
        return torch.where(x[:, :1] > 0, h.detach(), h)


def test_samples_are_drawn_from_the_whole_share():
    x, y = samples()
    x[:, 0] = x[:, 0].abs()
    x[:16, 0] *= -1
    with pytest.raises(hs.InputError, match="is not the derivative of the loss"):
        hs.Evaluator(Branch(), F.cross_entropy, (x, y), batch_size=16)


# -- no false alarm ------------------------------------------------------------------------------


class ZeroBias(Body):
    """ReLUs at exactly zero: half of the samples are zero, and there are no biases."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.a.bias)

    def forward(self, x):
        keep = (torch.arange(len(x)) % 2)[:, None]
        return self.b(torch.relu(self.a(x * keep)))


def l1(model):
    return lambda z, y: F.cross_entropy(z, y) + 0.1 * sum(p.abs().sum() for p in model.parameters())


def test_kinks_at_the_parameters_are_no_reason_to_refuse():
    for dtype in DTYPES:
        ev = hs.Evaluator(ZeroBias().to(dtype), F.cross_entropy, samples(dtype))
        assert "the gradient" not in ev.verification.unverified
        model = net().to(dtype)
        nn.init.zeros_(model[0].weight)
        ev = hs.Evaluator(model, l1(model), samples(dtype))
        assert "the gradient" not in ev.verification.unverified


class Creased(nn.Module):
    """Kinks at all distances from 5e-8 to 1e-4, as the units of a large network have them."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.creases = 1 + 5e-8 * 2 ** (torch.arange(24, dtype=torch.float64) / 2)

    def forward(self, x):
        return (0.5 * self.p + 0.05 * (self.p - self.creases).abs().sum()) * x[:, :1]


def test_kinks_at_every_distance_are_no_reason_to_refuse():
    # Both steps of the check find the same misfit; it is gone with a step below all kinks.
    x = torch.ones(4, 1, dtype=torch.float64)
    ev = hs.Evaluator(Creased(), lambda out, _: out.mean(), (x, x))
    assert "the gradient" not in ev.verification.unverified


def test_a_loss_of_zero_with_a_gradient_of_zero_is_no_reason_to_refuse():
    def hinge(z, y):
        return F.relu(z.square().sum(1) - 1e6).mean()

    ev = hs.Evaluator(net(), hinge, samples())
    assert ev.loss() == 0 and not ev.verification.unverified


def test_an_unused_parameter_stays_in_theta():
    model = Body()
    model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    ev = hs.Evaluator(model, F.cross_entropy, samples())
    hs.spectral_density(hs.Hessian(ev), num_probes=2, num_steps=3)
    assert ev.verification.without_gradient == ("unused",)


def test_a_merged_update_is_named():
    class Adapted(Body):
        """A low-rank update of a weight, which may be merged into it."""

        def __init__(self, merged):
            super().__init__()
            self.up = nn.Parameter(torch.randn(6, 1, dtype=torch.float64))
            self.down = nn.Parameter(torch.randn(1, 4, dtype=torch.float64))
            self.merged = merged
            if merged:
                self.a.weight.data += self.up.data @ self.down.data

        def train(self, mode=True):
            if not mode and not self.merged:
                self.a.weight.data += self.up.data @ self.down.data
                self.merged = True
            return super().train(mode)

        def forward(self, x):
            weight = self.a.weight if self.merged else self.a.weight + self.up @ self.down
            return self.b(torch.tanh(F.linear(x, weight, self.a.bias)))

    torch.manual_seed(0)
    apart = Adapted(merged=False)
    before = [p.detach().clone() for p in apart.parameters()]
    ev = hs.Evaluator(apart, F.cross_entropy, samples())
    hs.spectral_density(hs.Hessian(ev), num_probes=2, num_steps=3)
    assert not ev.verification.without_gradient and not apart.merged
    assert all(map(torch.equal, before, apart.parameters()))

    ev = hs.Evaluator(Adapted(merged=True), F.cross_entropy, samples())
    hs.spectral_density(hs.Hessian(ev), num_probes=2, num_steps=3)
    assert set(ev.verification.without_gradient) == {"up", "down"}


# -- what the check leaves ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_the_models_weights_are_found_as_they_were(dtype):
    model = net().float()
    pointers = [p.data_ptr() for p in model.parameters()]
    before = [p.detach().clone() for p in model.parameters()]
    value = model(samples(torch.float32)[0]).sum()
    hs.Evaluator(model, F.cross_entropy, samples(torch.float32), dtype=dtype)
    assert all(map(torch.equal, before, model.parameters()))
    assert pointers == [p.data_ptr() for p in model.parameters()]
    value.backward()  # a graph of before: no version was changed


def test_a_check_that_concludes_nothing_says_so(caplog):
    class Noise(Body):
        """Rounds so coarsely that no difference of losses can be seen."""

        def between(self, h, x):
            return h.bfloat16().to(h)

    ev = hs.Evaluator(Noise(), F.cross_entropy, samples())
    assert (
        ev.verification.unverified["the gradient"]
        == "the model or the loss casts to bfloat16 by itself"
    )
    assert "the gradient could not be verified" in caplog.text
    assert "the gradient could not be verified" in ev.verification.stored()["unverified"][0]


def test_running_out_of_memory_takes_fewer_samples(monkeypatch):
    sizes = []

    def loss_fn(z, y):
        sizes.append(len(z))
        if torch.is_grad_enabled() and z.requires_grad and len(z) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return F.cross_entropy(z, y)

    ev = hs.Evaluator(net(), loss_fn, samples())
    assert not ev.verification.unverified and min(sizes) <= 3


def test_slopes_are_exact_for_a_cubic():
    """The two-sided mean of gradients differs from the slope by h^2 / 3 times the third one."""
    theta = torch.tensor([0.5, -2.0], dtype=torch.float64)
    u = torch.tensor([1.0, 3.0], dtype=torch.float64)
    slope = gradient_check.Slope([lambda t: (t**3).sum()], theta, u, 1e-2)
    assert slope.rate - slope.slope == pytest.approx(-2e-4 * (u**3).sum().item(), rel=1e-6)
