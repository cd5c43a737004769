"""The plan for products: what is measured, what is left out, what fits."""

import pytest
import torch
from test_evaluator import data, mlp
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum import planner, products

GIB = 2**30


@pytest.fixture
def always(monkeypatch):
    """Calibrate however short the run."""
    monkeypatch.setattr(planner, "WORTH", -1.0)


def evaluator(model=None, samples=40, **options):
    return hs.Evaluator(model or mlp(), F.cross_entropy, data(samples), batch_size=16, **options)


def make_plan(ev, probes=4, steps=10, **options):
    return planner.plan(ev, ev.theta, probes, steps, **options)


def test_every_mode_is_tried_and_agrees_and_the_plan_gives_the_same_products(always):
    ev = evaluator()
    estimate = make_plan(ev)
    assert estimate.calibrated
    assert {trial.mode for trial in estimate.trials} == set(products.MODES)
    assert max(trial.error for trial in estimate.trials) < 1e-10  # measured: 1e-15
    assert not estimate.refused
    v = torch.randn(ev.n, 5, dtype=torch.float64)
    planned = hs.Hessian(ev, plan=estimate.plan)
    torch.testing.assert_close(planned @ v, hs.Hessian(ev) @ v, rtol=1e-12, atol=1e-14)


def test_a_short_run_is_not_calibrated():
    estimate = make_plan(evaluator())
    assert not estimate.calibrated
    assert estimate.plan == hs.ProductPlan("reverse")
    assert (estimate.products, estimate.passes) == (40, 10)


def test_a_mode_can_be_forced_and_an_unknown_one_is_refused(always):
    assert make_plan(evaluator(), mode="linearize").plan.mode == "linearize"
    with pytest.raises(hs.InputError, match="hvp='fast': expected one of reverse"):
        make_plan(evaluator(), mode="fast")
    with pytest.raises(hs.InputError, match="product mode 'fast'"):
        hs.ProductPlan("fast")


def test_a_mode_that_is_wrong_by_a_thousandth_is_left_out(always, monkeypatch):
    def wrong(loss, theta):
        right = products.reverse(loss, theta)
        return lambda vectors: 1.001 * right(vectors)

    monkeypatch.setitem(products.MODES, "forward", wrong)
    estimate = make_plan(evaluator())
    assert "differs from reverse over reverse by 1.0e-03" in estimate.refused["forward"]
    assert estimate.plan.mode != "forward"


class Cube(torch.autograd.Function):
    """No jvp and no vmap rule, but its backward can be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class CubeOnce(Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Custom(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(6, 3).double(), function

    def forward(self, x):
        return self.function.apply(self.linear(x))


def test_a_custom_function_leaves_the_modes_that_work_for_it(always):
    ev = evaluator(Custom(Cube))
    estimate = make_plan(ev)
    assert {"forward", "linearize", "linearize-batched"} <= set(estimate.refused)
    assert estimate.plan.mode.startswith("reverse")


def test_second_derivatives_that_autograd_silently_drops_are_refused():
    with pytest.raises(
        hs.InputError, match="Hessian products would be wrong: H u differs"
    ) as error:
        hs.Hessian(evaluator(Custom(CubeOnce)))
    assert "custom autograd.Function that is once_differentiable" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_plan_stays_within_its_memory_by_cutting_minibatches(always):
    model = nn.Sequential(nn.Linear(64, 2048), nn.Tanh(), nn.Linear(2048, 10))
    x, y = torch.rand(4096, 64), torch.randint(0, 10, (4096,))
    ev = hs.Evaluator(model, F.cross_entropy, (x, y), batch_size=4096)
    plans = {size: make_plan(ev, 2, 5, memory=size, mode="reverse") for size in (4 * GIB, GIB // 4)}
    for size, estimate in plans.items():
        assert estimate.basis + estimate.working <= size
        assert estimate.basis == 2 * 6 * ev.n * 4
    assert plans[4 * GIB].plan.batch_size is None
    assert plans[GIB // 4].plan.batch_size < 2048  # the graph of all takes 300 MiB
    small = hs.Hessian(ev, plan=plans[GIB // 4].plan)
    v = torch.randn(ev.n)
    torch.testing.assert_close(small @ v, hs.Hessian(ev) @ v, rtol=1e-3, atol=1e-6)


def test_a_basis_that_cannot_fit_is_refused_before_anything_is_computed():
    with pytest.raises(hs.InputError, match="use fewer probes or steps, more ranks, or more"):
        make_plan(evaluator(), 10, 40, memory=50_000)
