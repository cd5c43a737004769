"""The smallest step that raises a loss, against closed forms."""

import math

import pytest

from hessian_spectrum.analyses.critical_step import critical_step


@pytest.mark.parametrize("curvature", [1e-8, 0.7, 1e8])
@pytest.mark.parametrize("first", [1e-4, 1.0, 300.0])
def test_of_a_quadratic_it_is_twice_the_slope_over_the_curvature(curvature, first):
    calls = []

    def rise(step):
        calls.append(step)
        return -step * curvature + curvature * step**2 / 2

    step, evaluations = critical_step(rise, first)
    assert step == pytest.approx(2.0, rel=1e-9)  # its slope is linear: Brent's first step is exact
    assert evaluations == len(calls) <= 18


def test_near_the_step_before_it_takes_a_handful_of_evaluations():
    for moved in (0.7, 0.95, 1.0, 1.05, 1.4):
        step, evaluations = critical_step(lambda s: -s + s**2 / 2 + 0.01 * s**3, 2.0 * moved)
        exact = (-0.5 + math.sqrt(0.25 + 0.04)) / 0.02
        assert step == pytest.approx(exact, rel=2e-4) and evaluations <= 7


def test_ascent_a_loss_that_never_rises_and_one_that_overflows():
    assert critical_step(lambda s: s)[0] == 0.0
    assert critical_step(lambda s: -s)[0] == math.inf
    step, _ = critical_step(lambda s: -s if s < 3.0 else math.nan)
    assert step == pytest.approx(3.0, rel=2e-4)
