"""The plan for products: what is measured, what is left out, what fits."""

import dataclasses

import numpy as np
import pytest
import torch
from small_networks import data, mlp
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.algorithms import spectral_density as spectrum
from hessian_spectrum.operators import product_modes
from hessian_spectrum.planning import calibration, plan_choice, product_planner

GIB = 2**30


@pytest.fixture
def always(monkeypatch, tmp_path):
    """Calibrate however short the run, and whatever was measured before."""
    monkeypatch.setattr(plan_choice, "RUN_OVER_CALIBRATION", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def evaluator(model=None, samples=40, **options):
    return hs.Evaluator(model or mlp(), F.cross_entropy, data(samples), batch_size=16, **options)


def make_plan(ev, probes=4, steps=10, **options):
    return product_planner.plan(ev, ev.theta, probes, steps, **options)


def test_every_mode_is_tried_and_agrees_and_the_plan_gives_the_same_products(always):
    ev = evaluator()
    estimate = make_plan(ev)
    assert estimate.calibrated
    assert {trial.mode for trial in estimate.trials} == set(product_modes.MODES)
    assert max(trial.error for trial in estimate.trials) < 1e-10  # measured: 1e-15
    assert not estimate.refused
    v = torch.randn(ev.n, 5, dtype=torch.float64)
    planned = hs.Hessian(ev, plan=estimate.plan)
    torch.testing.assert_close(planned @ v, hs.Hessian(ev) @ v, rtol=1e-12, atol=1e-14)


def test_a_short_run_is_not_calibrated():
    estimate = make_plan(evaluator())
    assert not estimate.calibrated
    assert estimate.plan == hs.ProductPlan("linearize", keep=True)
    assert estimate.first is not None
    assert (estimate.products, estimate.passes) == (40, 10)
    few = make_plan(
        evaluator(), steps=plan_choice.MIN_STEPS_TO_LINEARIZE - 1
    )  # recording would not pay
    assert few.plan == hs.ProductPlan("reverse", keep=True)
    assert make_plan(evaluator(), mode="forward").plan.mode == "forward"


def test_a_short_run_keeps_nothing_that_does_not_fit(monkeypatch):
    kept, peak = 1 << 20, 8 << 20
    used = calibration.Use(peak, kept, torch.zeros_like, 0.5, 0.01)
    monkeypatch.setattr(calibration, "use", lambda bench, mode, count: used)
    monkeypatch.setattr(calibration.Bench, "single", lambda bench: (0.0, peak))
    monkeypatch.setattr(calibration, "bytes_of_a_sample", lambda *_: 1.0)
    ev = evaluator()
    small = (1 << 20) / 2 + 4 * 4 * ev.n * 8 + 4 * 11 * ev.n * 8
    for room, plan in (
        (50 * peak, hs.ProductPlan("linearize", keep=True)),
        (peak + kept // 2, hs.ProductPlan("reverse")),  # a linearization takes more, none is kept
    ):
        assert make_plan(ev, memory=int(room + small)).plan == plan


def test_a_short_run_of_a_model_that_cannot_be_linearized_is_by_reverse(monkeypatch):
    use = calibration.use
    monkeypatch.setattr(calibration, "use", lambda *a: use(*a) if a[1] == "reverse" else None)
    assert make_plan(evaluator()).plan == hs.ProductPlan("reverse", keep=True)
    with pytest.raises(hs.InputError, match="products by forward do not work"):
        make_plan(evaluator(), mode="forward")


def test_a_mode_can_be_forced_and_an_unknown_one_is_refused(always):
    assert make_plan(evaluator(), mode="linearize").plan.mode == "linearize"
    with pytest.raises(hs.InputError, match="hvp='fast': expected one of reverse"):
        make_plan(evaluator(), mode="fast")
    with pytest.raises(hs.InputError, match="product mode 'fast'"):
        hs.ProductPlan("fast")


def test_a_mode_that_is_wrong_by_a_thousandth_is_left_out(always, monkeypatch):
    def wrong(loss, theta, form):
        right = product_modes.reverse(loss, theta)
        return lambda vectors: 1.001 * right(vectors)

    monkeypatch.setitem(product_modes.MODES, "forward", wrong)
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
    assert {"forward", "linearize"} <= set(estimate.refused)
    assert estimate.plan.mode.startswith("reverse")


def test_second_derivatives_that_autograd_silently_drops_are_refused():
    with pytest.raises(
        hs.InputError, match="Hessian products would be wrong: H u differs"
    ) as error:
        hs.Hessian(evaluator(Custom(CubeOnce)))
    assert "custom autograd.Function that is once_differentiable" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_basis_that_cannot_fit_is_refused_before_anything_is_computed():
    with pytest.raises(hs.InputError, match="use fewer probes or steps, more ranks, or more"):
        make_plan(evaluator(), 10, 40, memory=50_000)


def test_krylov_vectors_that_take_half_of_the_memory_go_to_disk(tmp_path):
    ev = evaluator()
    size = 4 * (20 + 1) * ev.n * 8  # of the basis, in bytes
    assert make_plan(ev, 4, 20, memory=2 * size, folder=tmp_path).place == "device"
    assert make_plan(ev, 4, 20, memory=2 * size - 1, folder=tmp_path).place == "disk"
    with pytest.raises(hs.InputError, match="no host memory or disk for them"):
        make_plan(ev, 4, 20, memory=size)
    on_disk = hs.spectral_density(hs.Hessian(ev), 4, 20, basis=tmp_path)
    np.testing.assert_array_equal(on_disk.nodes, hs.spectral_density(hs.Hessian(ev), 4, 20).nodes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("largest", [16, 5, 1])
def test_running_out_of_memory_shrinks_the_minibatches(always, monkeypatch, largest):
    ev = evaluator()
    whole = ev.function.loss

    def loss(theta, batch, constants):
        if len(batch[0]) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(theta, batch, constants)

    monkeypatch.setattr(ev.function, "loss", loss)
    monkeypatch.setattr(calibration, "bytes_of_a_sample", lambda *_: 0.0)  # it all seems to fit
    estimate = make_plan(ev, mode="reverse")
    assert (estimate.plan.batch_size or 16) <= largest
    v = torch.randn(ev.n, dtype=torch.float64)
    small = hs.Hessian(ev, plan=estimate.plan) @ v
    monkeypatch.setattr(ev.function, "loss", whole)
    torch.testing.assert_close(small, hs.Hessian(ev) @ v)


def test_a_mode_that_runs_out_of_memory_is_left_out(always, monkeypatch):
    def greedy(loss, theta, form):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(product_modes.MODES, "forward", greedy)
    assert "out of memory" in make_plan(evaluator()).refused["forward"]


def test_products_in_other_arithmetic_differ_by_its_rounding_and_are_recorded(always):
    ev = evaluator()
    v = torch.randn(ev.n, 3, dtype=torch.float64)
    exact = hs.Hessian(ev) @ v
    for precision, low, high in (("float32", 1e-9, 1e-6), ("bfloat16", 1e-4, 3e-2)):
        estimate = make_plan(ev, precision=precision)
        assert estimate.plan.precision == precision
        hessian = hs.Hessian(ev, plan=estimate.plan)
        found = hessian @ v
        assert found.dtype == torch.float64
        assert low < (found - exact).norm() / exact.norm() < high  # measured: 1e-7, 6e-3
        assert hs.spectral_density(hessian, 4, 8).residuals.min() > low * exact.norm() / v.norm()
    single = evaluator(ev.model, dtype=torch.float32)
    double = hs.Hessian(single, plan=hs.ProductPlan(precision="float64")) @ v
    assert double.dtype == torch.float32
    # theta itself is rounded
    torch.testing.assert_close(double.double(), exact, rtol=1e-5, atol=1e-6)
    with pytest.raises(hs.InputError, match="tf32 is arithmetic of NVIDIA GPUs"):
        hs.Hessian(ev, plan=hs.ProductPlan(precision="tf32"))
    with pytest.raises(hs.InputError, match="precision 'half': expected one of float64"):
        hs.Hessian(ev, plan=hs.ProductPlan(precision="half"))


def test_a_second_plan_measures_nothing_but_checks_again(always, monkeypatch):
    ev = evaluator()
    first, calibrate = make_plan(ev), calibration.calibrate
    monkeypatch.setattr(calibration, "calibrate", lambda *_: pytest.fail("measured again"))
    assert make_plan(ev).plan == first.plan
    monkeypatch.setattr(calibration, "calibrate", calibrate)

    def wrong(loss, theta, form):
        return lambda vectors: 1.001 * product_modes.reverse(loss, theta)(vectors)

    monkeypatch.setitem(product_modes.MODES, "forward", wrong)  # the code has changed since
    assert "differs" in make_plan(ev).refused["forward"]


def test_the_first_product_tells_repeat_error_and_asymmetry():
    matrix = torch.randn(60, 60, dtype=torch.float64)
    symmetric = hs.Dense(matrix + matrix.T)
    assert spectrum.repeat_error(symmetric) == 0

    class Noisy(hs.Dense):
        def products(self, vectors):
            exact = super().products(vectors)
            noise = torch.randn_like(exact)
            return exact + 1e-3 * noise * exact.norm() / noise.norm()

    noisy = Noisy(matrix + matrix.T)
    assert spectrum.repeat_error(noisy) == pytest.approx(1.4e-3, rel=0.2)
    states = []
    hs.spectral_density(noisy, 8, 2, on_step=states.append)
    assert states[-1].noise == pytest.approx(1e-3, rel=0.3)


def test_a_rank_whose_targets_are_all_ignored_has_nothing_to_measure(always, monkeypatch):
    ev = evaluator()
    monkeypatch.setattr(ev.function, "weight", lambda batch: 0.0)  # as on one rank of several
    assert make_plan(ev).plan == hs.ProductPlan("reverse")


def test_modes_that_would_not_fit_are_not_tried(always, monkeypatch):
    monkeypatch.setattr(calibration, "EXPECTED_PEAK", {"forward": lambda chunk: 1e12})
    monkeypatch.setitem(product_modes.MODES, "forward", lambda *_: pytest.fail("tried"))
    timed = calibration._timed

    def with_a_peak(*given):
        return [dataclasses.replace(trial, peak=100) for trial in timed(*given)]

    monkeypatch.setattr(calibration, "_timed", with_a_peak)
    assert "would take about" in make_plan(evaluator()).refused["forward"]


def test_a_long_calibration_is_made_on_fewer_samples_and_scaled(always, monkeypatch):
    monkeypatch.setattr(
        plan_choice, "MAX_CALIBRATION", 1.7
    )  # of five seconds and a little: in thirds or less
    sizes, made, calibrate = [], [], calibration.calibrate

    def spy(bench, *given):
        sizes.append(bench.batch_size)
        made.append(calibrate(bench, *given))
        return made[-1]

    monkeypatch.setattr(calibration, "calibrate", spy)
    estimate = make_plan(evaluator(), mode="reverse")
    assert sizes[0] <= 6  # of 16
    assert estimate.plan.batch_size is None  # only the measurement was smaller
    small, whole = made[0][0][0], estimate.trials[0]
    share = whole.apply / small.apply
    assert share >= 3
    assert share == pytest.approx(round(share))
    assert whole.build == pytest.approx(small.build * share)


def test_what_was_formed_to_be_measured_is_used_and_gives_the_same_bits(monkeypatch):
    """A minibatch's map is formed once, not once for the plan and again for the run."""
    ev, formed, linearize = evaluator(), [], product_modes.linearize

    def counted(*arguments):
        formed.append(1)
        return linearize(*arguments)

    monkeypatch.setitem(product_modes.MODES, "linearize", counted)
    estimate, H = make_plan(ev), hs.Hessian(ev)
    v = torch.randn(4, ev.n, dtype=torch.float64)  # as many rows as it was planned for
    found = H.planned(estimate.plan, estimate.first).products(v)
    assert len(formed) == ev.num_minibatches
    planned = H.planned(estimate.plan)
    for _ in range(2):  # recorded in the first call
        assert torch.equal(planned.products(v), found)
