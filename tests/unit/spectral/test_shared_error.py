"""As many copies of an eigenvalue as probes: an error that the probes share and do not show."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diagonal_operators import SPECTRA, Diagonal

import hessian_spectrum as hs
from hessian_spectrum import InputError
from hessian_spectrum.spectral import outliers
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.shared_error import shared_error

SEEDS = 40
OUTSIDE = 5.0  # where the copies are
BULK = np.random.default_rng(0).uniform(-0.1, 0.1, 120)


def copies_of(c, outside=OUTSIDE):
    return np.r_[BULK[c:], np.full(c, outside)]


def measures(exact, b, m=6, dtype=torch.float64):
    return [hs.spectral_density(Diagonal(exact, dtype), b, m, seed) for seed in range(SEEDS)]


def covered(found, truth, query, *args):
    ends = np.array([measure.interval(query, *args) for measure in found])
    slack = 1e-9 * abs(truth)
    return int(((ends[:, 0] - slack <= truth) & (truth <= ends[:, 1] + slack)).sum())


def residuals_of_groups(c, g, b, draws):
    """(draws, groups): per probe, the copies that a group sees beyond what the others span."""
    components = np.random.default_rng(3).standard_normal((draws, b, c))
    found = []
    for start in range(0, b, g):
        group = np.arange(start, start + g)
        others = np.linalg.qr(np.delete(components, group, axis=1).swapaxes(1, 2)).Q
        own = components[:, group]
        left = own - (own @ others) @ others.swapaxes(1, 2)
        found.append((left**2).sum(axis=(1, 2)) / g)
    return np.transpose(found)


@pytest.mark.parametrize(("c", "g"), [(6, 1), (7, 1), (10, 1), (30, 1), (5, 2), (8, 2), (4, 3)])
def test_it_is_the_covariance_of_two_groups_of_held_out_probes(c, g):
    b, draws = 6, 40_000
    seen = residuals_of_groups(c, g, b, draws)
    k = c - (b - g)
    assert seen.mean() == pytest.approx(k, rel=0.03)
    found = np.cov(seen.T)
    between = found[~np.eye(len(found), dtype=bool)].mean()
    infinite = 1e12  # dimensions, of which the copies are few
    # Measured: 4 % at most, by the noise of the draws.
    assert shared_error(k, infinite, g) ** 2 == pytest.approx(between, rel=0.1)


def test_probes_that_see_nothing_else_share_no_error():
    assert shared_error(300.0, 300.0) == 0.0
    assert shared_error(1e-9, 300.0) == pytest.approx(shared_error(1.0, 300.0))
    exact = SPECTRA["multiplicities"]  # all that is not resolved is zero
    low, high = hs.spectral_density(Diagonal(exact), 8, 6).interval("mass", -0.1, 0.1)
    assert high - low < 1e-9


@pytest.mark.filterwarnings("ignore:effective_dimension")
@pytest.mark.parametrize("c", [6, 7, 9])
def test_intervals_cover_where_there_are_as_many_copies_as_probes_or_slightly_more(c):
    exact = copies_of(c)
    found = measures(exact, 6)
    truths = {
        ("count", 4, 6): c,
        ("mass", -np.inf, 1): 1 - c / len(exact),
        ("energy", 4, 6): c * OUTSIDE**2,
        ("trace",): exact.sum(),
        ("frobenius_norm",): np.linalg.norm(exact),
        ("moment", 3): np.mean(exact**3),
        ("effective_dimension", 1.0): np.sum(exact.clip(0) / (exact.clip(0) + 1)),
    }
    for (query, *args), truth in truths.items():
        # Measured: 38 at least; by the probes' scatter alone 28, 32 and 36.
        assert covered(found, truth, query, *args) >= 37, query
    alone = [replace(measure, shared=None) for measure in found]
    if c < 9:
        assert covered(alone, c, "count", 4, 6) < 35


def test_groups_of_probes_share_it_too():
    exact = np.r_[BULK, np.full(25, OUTSIDE)]  # 26 probes, of which 2 or 3 are left out together
    found = measures(exact, 26, 3)
    assert all(measure.shared is not None for measure in found)
    assert covered(found, 25, "count", 4, 6) >= 37


def test_in_float32_copies_are_equal_to_its_noise():
    found = measures(copies_of(6), 6, dtype=torch.float32)
    assert covered(found, 6, "count", 4, 6) >= 37


@pytest.mark.parametrize("c", [1, 3, 5])
def test_fewer_copies_than_probes_are_counted_exactly(c):
    measure = hs.spectral_density(Diagonal(copies_of(c)), 6, 8)
    assert measure.shared is None
    low, high = measure.interval("count", 4, 6)
    assert high - low < 1e-6 and low - 1e-6 <= c <= high + 1e-6


def test_copies_that_differ_enough_to_be_told_apart_are_counted_exactly():
    exact = copies_of(9)
    exact[exact > 1] += 1e-7 * np.arange(9)
    measure = hs.spectral_density(Diagonal(exact), 6, 10)
    low, high = measure.interval("count", 4, 6)
    assert high - low < 1e-5 and low - 1e-5 <= 9 <= high + 1e-5


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_it_does_not_depend_on_the_unit_of_the_eigenvalues(scale):
    units = 1.0, scale
    found = [(hs.spectral_density(Diagonal(s * copies_of(6)), 6, 6), s) for s in units]
    above = [m.standard_error("count", threshold, np.inf) for m, threshold in found]
    assert above[0] == pytest.approx(above[1], rel=1e-6)


def test_the_density_has_it_and_its_expected_error_too():
    measure = hs.spectral_density(Diagonal(copies_of(6)), 6, 6)
    alone = replace(measure, shared=None)
    t = [0.0, OUTSIDE]
    found, scatter = (m.standard_error("density", t, 0.01) for m in (measure, alone))
    # At the peak one standard error of the count; 120 - 5 (6 - 1) dimensions are not known.
    hidden = shared_error(1.0, 120 - 25) / 120 / np.sqrt(2 * np.pi * 0.01)
    assert found[1] == pytest.approx(np.hypot(scatter[1], hidden), rel=1e-3)
    assert found[0] > scatter[0]  # the bulk has less where the copies are more
    assert measure.density_error(0.01).noise > 1.3 * alone.density_error(0.01).noise
    # The whole is 1, whatever the probes see.
    assert measure.standard_error("mass", -np.inf, np.inf) == pytest.approx(0, abs=1e-12)


def test_it_is_kept_in_the_file_and_where_eigenpairs_take_the_other_end(tmp_path):
    measure = hs.spectral_density(Diagonal(np.r_[copies_of(6), -3.0]), 6, 6)
    hs.save(tmp_path / "run.h5", measure)
    with hs.open(tmp_path / "run.h5") as run:
        np.testing.assert_array_equal(run["density"].shared, measure.shared)
    pair = EigenPairs(np.array([-3.0]), np.array([1e-12]), np.array([True]), num_lower=1)
    found = outliers.refined(measure, pair)
    error = measure.standard_error("count", 4, 6)
    assert found.standard_error("count", 4, 6) == pytest.approx(error, rel=0.01)


def test_shared_errors_of_other_nodes_are_refused():
    measure = hs.spectral_density(Diagonal(copies_of(6)), 6, 6)
    with pytest.raises(InputError, match="do not belong"):
        replace(measure, shared=measure.shared[:, 1:])
