"""The search for critical points: known points, safeguards, and searches that must fail."""

import math

import numpy as np
import pytest
import torch
from hand import objective, product, tensor

import hessian_spectrum as hs
from hessian_spectrum.analyses import critical

SCALES = (1e-8, 1.0, 1e8)


def rosenbrock(t):
    return (1 - t[0]) ** 2 + 100 * (t[1] - t[0] ** 2) ** 2


def wells(t):
    """Minima at (-1, 0) and (1, 0), a saddle at 0."""
    return t[0] ** 4 / 4 - t[0] ** 2 / 2 + t[1] ** 2


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("function", "start", "kind", "point"),
    [
        (rosenbrock, (-1.2, 1.0), "minimum", (1.0, 1.0)),
        (wells, (0.9, 0.3), "minimum", (1.0, 0.0)),
        (wells, (0.9, 0.3), "any", (1.0, 0.0)),
        (wells, (0.9, 0.3), "saddle", (0.0, 0.0)),
        (wells, (0.2, 0.3), "saddle", (0.0, 0.0)),
        (lambda t: t[0] ** 2 - t[1] ** 2, (0.3, 0.2), "any", (0.0, 0.0)),
        (lambda t: t[0].exp() * (t[0] - 1) - t[1].cos(), (1.0, 0.4), "any", (0.0, 0.0)),
    ],
)
def test_known_points_are_found_to_the_tolerance(function, start, kind, point, scale):
    ev = objective(lambda t: scale * function(t), start)
    found = hs.find_critical_point(ev, None, kind, tol=1e-10 * scale)
    assert found.converged and str(found).startswith("Found, after ")
    assert np.allclose(found.theta, point, atol=1e-8)
    assert ev.gradient(found.theta).norm() <= 1e-10 * scale
    assert kind in ("any", found.point.kind)
    assert found.distance == pytest.approx(math.dist(start, found.theta.tolist()), rel=1e-12)


@pytest.mark.parametrize("dense", [True, False])
def test_a_quadratic_is_solved_by_newton_steps_dense_or_krylov(monkeypatch, dense):
    if not dense:
        monkeypatch.setattr(critical, "DENSE", 10)
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    eigenvalues = np.concatenate([-np.linspace(1, 3, 5), np.linspace(0.5, 4, 35)])
    a, b = tensor((q * eigenvalues) @ q.T), tensor(rng.standard_normal(40))
    ev = objective(lambda t: t @ a @ t / 2 - b @ t, np.zeros(40))
    found = hs.find_critical_point(ev, kind="saddle")
    assert (found.outcome, found.point.index, found.attempts) == ("found", (5, 5), 1)
    assert torch.allclose(found.theta, torch.linalg.solve(a, b), atol=1e-9)
    assert found.steps < 10


def test_a_minimum_is_found_from_a_saddle():
    """At (0, 1) the gradient points to the saddle: no step of it leads to a well."""
    found = hs.find_critical_point(objective(wells, (0.0, 1.0)), kind="minimum")
    assert found.converged and found.attempts > 1
    assert np.allclose(found.theta.abs(), (1.0, 0.0), atol=1e-9)


def test_degenerate_points_are_approached_until_classify_calls_them_critical():
    for function, kind, order in [
        (lambda t: t[0] ** 2 + t[1] ** 4, "minimum", 4),
        (lambda t: t[0] ** 4 + t[1] ** 4, "minimum", 4),
        (lambda t: t[0] ** 3 - 3 * t[0] * t[1] ** 2, "saddle", 3),
    ]:
        found = hs.find_critical_point(objective(function, (0.3, 0.2)))
        assert (found.outcome, found.point.kind, found.point.order) == ("found", kind, order)


@pytest.mark.parametrize("scale", SCALES)
def test_where_only_the_gradients_norm_is_stationary_that_is_said(scale):
    """Of x^3 / 3 + x + y^2 the gradient is smallest, 1, at 0, where H g = 0."""
    ev = objective(lambda t: scale * (t[0] ** 3 / 3 + t[0] + t[1] ** 2), (1.0, 0.5))
    found = hs.find_critical_point(ev, tol=1e-10 * scale)
    assert (found.outcome, found.converged) == ("stagnation", False)
    assert found.point.kind == "not critical"
    assert np.allclose(found.theta, 0.0, atol=1e-5)
    assert str(found).startswith("H g = 0 at a gradient that is not 0")


def test_a_search_ends_as_soon_as_the_gradients_norm_is_stationary():
    """Of x^3 / 3 + x + y^2 at x = 0 two steps solve for y; no damping is tried after that."""
    ev = objective(lambda t: t[0] ** 3 / 3 + t[0] + t[1] ** 2, (0.0, 0.5))
    found = hs.find_critical_point(ev)
    assert (found.outcome, found.steps) == ("stagnation", 2)
    assert ev.counts.passes < 20  # 12, and 33 where steps are damped until none is left
    assert found.point.kind == "not critical"


def test_a_slope_that_only_flattens_out_has_no_critical_point():
    found = hs.find_critical_point(objective(lambda t: (-t[0]).exp(), (1.0,)), max_steps=60)
    assert (found.outcome, found.steps) == ("steps", 60)
    assert found.point.gradient_norm < 1e-10 and found.point.kind == "not critical"


def test_a_search_that_finds_the_other_kind_says_so():
    bowl = objective(lambda t: t.square().sum(), (1.0, 2.0))
    found = hs.find_critical_point(bowl, kind="saddle", attempts=2)
    assert (found.outcome, found.point.kind, found.attempts) == ("other kind", "minimum", 2)
    dome = objective(lambda t: t[0] - t[0] ** 3 / 3 - t[1] ** 2 / (1 + t[1] ** 2), (-1.1, 0.1))
    assert hs.find_critical_point(dome, kind="saddle").converged


def test_steps_to_where_the_loss_is_not_finite_are_refused():
    ev = objective(lambda t: t.exp().exp().sum() - 3 * t.sum(), (-3.0,))
    found = hs.find_critical_point(ev)
    assert found.converged
    x = found.theta.item()
    assert math.exp(x + math.exp(x)) == pytest.approx(3.0, rel=1e-12)
    beyond = hs.find_critical_point(ev, tensor([9.0]))
    assert (beyond.outcome, beyond.point.kind) == ("not finite", "not finite")


def test_minima_that_are_not_strict_are_called_undecided():
    """w1 w2 w3 = 1 is a surface of them."""
    found = hs.find_critical_point(product(3), kind="minimum")
    assert (found.outcome, found.converged, found.point.negative) == ("undecided", False, 0)
    assert found.theta.prod().item() == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize(
    "options", [{"kind": "maximum"}, {"tol": 0.0}, {"max_steps": 0}, {"attempts": 0}]
)
def test_options_that_are_of_no_use_are_refused(options):
    with pytest.raises(hs.InputError):
        hs.find_critical_point(objective(wells, (0.9, 0.3)), **options)


def test_float32_is_refused_with_what_to_do():
    ev = objective(wells, (0.9, 0.3), dtype=torch.float32)
    with pytest.raises(hs.InputError, match=r"dtype=torch\.float64"):
        hs.find_critical_point(ev)
