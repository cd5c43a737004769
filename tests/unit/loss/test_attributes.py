"""What an evaluation leaves in a model's plain attributes is put back after it."""

import copy
import io
from collections import deque

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs

MODES = ("reverse", "reverse-batched", "forward", "linearize")


class Keeping(nn.Module):
    """Keeps a table that follows the dtype, activations, and counts of its calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.scale, self.table = nn.Parameter(torch.ones(4)), None
        self.calls, self.seen, self.last = 0, [], deque([1], maxlen=2)
        self.nested = {"inner": {"kept": []}, "same": self.seen}

    def forward(self, x):
        x = x * self.scale
        if self.table is None or self.table.dtype != x.dtype:
            self.table = torch.cos(torch.arange(4).to(x))
        h = torch.tanh(self.a(x * self.table))
        self.calls += 1
        self.seen.append(h)
        self.last.append(h)
        self.nested["inner"]["kept"].append(h)
        self.new = h
        self.a.activation = h
        return self.b(h)


def evaluator(model, dtype=None):
    torch.manual_seed(0)
    data = torch.randn(20, 4), torch.arange(20) % 3
    return hs.Evaluator(model, nn.CrossEntropyLoss(), data, dtype=dtype)


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_the_model_is_found_as_it_was(mode, dtype):
    model = Keeping()
    ev = evaluator(model, dtype)
    operator = hs.Hessian(ev, plan=hs.ProductPlan(mode))
    operator @ torch.ones(ev.n)
    hs.eigenpairs(operator, k=1)
    assert model.table is None and model.calls == 0
    assert model.seen == [] and list(model.last) == [1] and model.last.maxlen == 2
    assert model.nested == {"inner": {"kept": []}, "same": model.seen}
    assert not hasattr(model, "new") and not hasattr(model.a, "activation")
    copy.deepcopy(model)
    torch.save(model, io.BytesIO())
    assert torch.isfinite(ev.gradient()).all()


def test_it_is_after_an_evaluation_that_fails():
    class Failing(Keeping):
        fails = False

        def forward(self, x):
            out = super().forward(x)
            if Failing.fails:
                raise ValueError("no output")
            return out

    model = Failing()
    ev = evaluator(model)
    Failing.fails = True
    with pytest.raises(ValueError, match="no output"):
        ev.loss()
    assert model.table is None and model.seen == [] and model.calls == 0


def test_outputs_kept_by_a_module_are_no_part_of_other_evaluations():
    """A module that keeps what it computed: each evaluation starts without it."""

    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.kept = nn.Linear(4, 5).double(), nn.Linear(5, 3).double(), {}

        def forward(self, x):
            if len(x) not in self.kept:
                self.kept[len(x)] = torch.tanh(self.a(x))
            return self.b(self.kept[len(x)])

    x, y = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    ev = hs.Evaluator(Cached(), nn.CrossEntropyLoss(), (x, y), batch_size=10)
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), Cached().state_dict().values())))
    expected = hs.Evaluator(plain, nn.CrossEntropyLoss(), (x, y), batch_size=10)
    theta = ev.theta + 0.1
    assert torch.equal(ev.loss(theta), expected.loss(theta))
    eye = torch.eye(ev.n, dtype=torch.float64)
    for mode in MODES:
        plan = hs.ProductPlan(mode)
        found = hs.Hessian(ev, theta, plan) @ eye
        assert torch.equal(found, hs.Hessian(expected, theta, plan) @ eye)


def test_activations_recorded_by_a_hook_outside_of_the_model_stay():
    model, seen = Keeping(), []
    model.b.register_forward_hook(lambda *_: seen.append(1))
    evaluator(model)
    assert seen


def test_attributes_that_a_recurrent_layer_keeps_are_its_own_weights():
    model = nn.LSTM(4, 3, batch_first=True).double()
    before = list(model._flat_weights)
    x, y = torch.randn(6, 5, 4, dtype=torch.float64), torch.randint(3, (6, 5))
    ev = hs.Evaluator(model, lambda out, y: F.cross_entropy(out[0].transpose(1, 2), y), (x, y))
    hs.Hessian(ev) @ torch.ones(ev.n, dtype=torch.float64)
    assert all(a is b for a, b in zip(before, model._flat_weights))
