"""Rises of a value along a path against scipy's prominent peaks and known curves."""

import numpy as np
import pytest
from scipy.signal import find_peaks

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError


def curve(values, t=None):
    t = np.arange(float(len(values))) if t is None else t
    return hs.Curve(t, distance=t - t[0], values={"loss": values})


@pytest.mark.parametrize("tolerance", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_barriers_are_the_peaks_whose_prominence_is_above_the_tolerance(seed, tolerance):
    values = np.random.default_rng(seed).normal(size=200).cumsum()
    found = [rise for rise in curve(values).rises(tolerance) if rise.is_barrier]
    peaks, _ = find_peaks(values, prominence=np.nextafter(tolerance, np.inf))
    assert [rise.stop for rise in found] == peaks.tolist()
    assert all(rise.height > tolerance and rise.start < rise.stop for rise in found)
    assert [r.height for r in found] == [values[int(r.stop)] - values[int(r.start)] for r in found]


def test_a_curve_of_cosines_rises_from_each_valley_to_the_next_peak():
    t = np.linspace(0, 2.5, 251)
    found = curve(np.cos(2 * np.pi * t), t).rises(1e-9)
    assert np.allclose([rise[:3] for rise in found], [(0.5, 1, 2), (1.5, 2, 2)], atol=1e-9)
    assert [rise.is_barrier for rise in found] == [True, True]


def test_a_value_that_is_highest_at_the_end_has_risen_over_no_barrier():
    t = np.linspace(-1, 1, 21)
    (rise,) = curve(t**2, t).rises()
    assert rise == (t[10], 1.0, 1.0, False)
    assert curve(-t, t).rises() == []


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_noise_within_the_tolerance_leaves_a_falling_curve_falling(scale):
    t = np.linspace(0, 1, 200)
    noise = np.random.default_rng(0).uniform(-0.01, 0.01, size=t.size)
    falling = curve(scale * (noise - t), t)
    assert falling.rises(0.02 * scale) == []
    assert len(falling.rises()) > 20


def test_rises_of_unknown_values_and_by_a_negative_tolerance_are_refused():
    with pytest.raises(InputError, match="the loss at t = 1 is not finite"):
        curve([1.0, np.nan, 0.0]).rises()
    with pytest.raises(InputError, match="at least 0"):
        curve([1.0, 0.0]).rises(-1.0)
