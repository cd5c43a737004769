"""Correlations and their intervals against scipy, published tables and simulated coverage."""

import numpy as np
import pytest
from scipy import stats

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results.correlation import correlation


def pairs(count, rho, seed=0):
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, count))
    return x, rho * x + np.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_the_coefficients_are_those_of_scipy_at_every_scale(scale):
    x, y = pairs(40, 0.6)
    ties = np.round(2 * x)
    assert correlation(scale * x, y).value == pytest.approx(stats.pearsonr(x, y)[0], rel=1e-12)
    expected = stats.spearmanr(ties, y)[0]
    assert correlation(scale * ties, y, rank=True).value == pytest.approx(expected, rel=1e-12)


def test_fishers_interval_by_hand():
    """r = 0.5 of 28 pairs: z = 0.5493 +- 1.95996 / 5, so 0.156 to 0.736."""
    rng = np.random.default_rng(0)
    a, b = np.linalg.qr(rng.standard_normal((28, 3)))[0][:, 1:].T
    a, b = a - a.mean(), b - b.mean()
    b -= (a @ b) / (a @ a) * a
    y = 0.5 * a / np.linalg.norm(a) + np.sqrt(0.75) * b / np.linalg.norm(b)
    found = correlation(a, y)
    assert found.value == pytest.approx(0.5, abs=1e-12)
    assert found.fisher == pytest.approx((0.156, 0.736), abs=6e-4)
    assert correlation(a, y).bootstrap == correlation(a, y).bootstrap  # by its seed


@pytest.mark.parametrize("rank", [False, True])
def test_both_intervals_cover_the_truth_about_as_often_as_they_say(rank):
    """For 400 samples of 50 pairs, 95 % +- 1.1 % (standard error); bootstraps cover less."""
    rho, count = 0.5, 400
    truth = 6 / np.pi * np.arcsin(rho / 2) if rank else rho
    fisher = bootstrap = 0
    for seed in range(count):
        found = correlation(*pairs(50, rho, seed), rank=rank, resamples=200)
        fisher += found.fisher[0] <= truth <= found.fisher[1]
        bootstrap += found.bootstrap[0] <= truth <= found.bootstrap[1]
    assert 0.92 <= fisher / count <= 0.98
    assert 0.89 <= bootstrap / count <= 0.98


def test_perfect_order_has_an_interval_of_no_width():
    found = correlation(np.arange(6.0), np.arange(6.0) ** 3, rank=True)
    assert (found.value, found.fisher) == (1.0, (1.0, 1.0))
    assert "1.000 over 6 pairs, 95% interval 1.000 to 1.000 (Fisher)" in str(found)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        ([1, 2, 3], [1, 2, 3], {}, "at least 4"),
        ([1, 2, 3, 4], [1, 2, 3, 4, 5], {}, "as many of both"),
        ([1, 1, 1, 1], [1, 2, 3, 4], {}, "all equal"),
        ([1, 2, 3, np.nan], [1, 2, 3, 4], {}, "not all finite"),
        ([1, 2, 3, 5], [1, 2, 3, 4], {"level": 1.0}, "level"),
        ([1, 2, 3, 5], [1, 2, 3, 4], {"resamples": 0}, "resamples"),
    ],
)
def test_what_has_no_correlation_is_refused(x, y, options, message):
    with pytest.raises(InputError, match=message):
        correlation(x, y, **options)
