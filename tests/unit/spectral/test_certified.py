"""Certified weights: exact where the spectrum is resolved, unbiased everywhere, never worse."""

import numpy as np
import pytest
import torch
from diagonal_operators import (
    OUTLIERS,
    SIGMA2,
    SPECTRA,
    Diagonal,
    N,
    check_mean,
    l1,
    rule_of,
    rules,
)
from prescribed_spectra import with_spectrum

import hessian_spectrum as hs
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.spectral.held_out_probes import certified


def plain(rule, n=N):
    return hs.SpectralMeasure.of_rules([rule], n)


@pytest.mark.parametrize("name", SPECTRA)
def test_it_is_nowhere_worse_than_the_plain_rule_by_more_than_its_standard_error(name):
    exact = SPECTRA[name]
    found = [
        (l1(plain(rule), exact), l1(certified(rule, N), exact)) for rule in rules(exact, 6, 10, 8)
    ]
    usual, ours = np.transpose(found)
    allowed = np.std(usual, ddof=1) / len(usual) ** 0.5
    assert ours.mean() <= usual.mean() + allowed + 1e-12
    if name in ("outliers", "multiplicities", "low rank"):  # most that is random is known
        assert ours.mean() < 0.5 * usual.mean()


def test_outliers_weigh_exactly_one_each():
    for rule in rules(SPECTRA["outliers"], 8, 12, 3):
        measure = certified(rule, N)
        for value in OUTLIERS:
            near = np.abs(measure.nodes - value) < 0.01
            np.testing.assert_allclose(N * measure.weights[:, near].sum(1), 1, atol=1e-6)
        assert plain(rule).count(0.2, 4) != pytest.approx(7, abs=0.01)
        np.testing.assert_allclose(measure.weights.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("b", [2, 26])
def test_weights_are_the_trace_over_what_others_know_and_the_probe_over_the_rest(b):
    """Against whole vectors: exact to degree 3, since A leads no known vector out of the space.

    Of 26 probes two or three at a time are left out, each time all of a group.
    """
    n, m = 150, 4 if b == 2 else 3
    values = np.linspace(-1, 1, n) ** 3 + np.linspace(0, 0.5, n)
    measure = certified(rule_of(Diagonal(values), b, m, 0), n)
    z = gaussian_probes(Layout.of_size(n), range(b), 0, torch.float64).numpy()
    groups = np.array_split(np.arange(b), b if b <= 24 else 12)
    for group in groups:
        others = np.delete(z, group, axis=0)
        powers = [others * values**k for k in range(m - 1)]
        known = np.linalg.qr(np.concatenate(powers).T)[0].T
        left = z[group] - (z[group] @ known.T) @ known
        left /= np.linalg.norm(left, axis=1, keepdims=True)
        for p in range(5):
            rest = (n - len(known)) * left**2 @ values**p
            expected = (np.square(known).sum(0) @ values**p + rest) / n
            error = np.abs(measure.weights[group] @ measure.nodes**p - expected).max()
            assert error < 1e-13 if p < 4 else error > 1e-6  # measured: 1e-15


@pytest.mark.parametrize(("m", "name"), [(2, "Marchenko-Pastur"), (3, "power law")])
def test_traces_of_a_and_of_its_square_are_exact_in_expectation_from_two_steps_on(m, name):
    exact = SPECTRA[name][::5]
    found = []
    for rule in rules(exact, 4, m, 120):
        measure = certified(rule, len(exact))
        found.append([measure.moment(1), measure.moment(2)])
    error = check_mean(found, [exact.mean(), np.mean(exact**2)])
    assert (error < 0.1 * np.array([exact.mean(), np.mean(exact**2)])).all()


def test_one_probe_is_the_plain_rule():
    rule = next(rules(SPECTRA["outliers"], 1, 20, 1))
    ours, usual = certified(rule, N, 0.03), hs.SpectralMeasure.of_rules([rule], N, 0.03)
    for name in ("nodes", "weights", "residuals", "certified"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(usual, name))
    assert not ours.certified.any() and ours.residuals.min() == 0.03


def test_moments_of_the_plain_rule_are_those_of_the_probes():
    exact = SPECTRA["power law"]
    rule = next(rules(exact, 3, 5, 1))
    z = gaussian_probes(Layout.of_size(N), range(3), 0, torch.float64).numpy()
    measure = plain(rule)
    for p in range(2 * 5):  # exact to degree 2m - 1
        expected = ((z**2) @ exact**p / (z**2).sum(1)).mean()
        assert measure.moment(p) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["outliers", "multiplicities", "power law"])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_scaling_the_operator_scales_the_measure(scale, name):
    values = SPECTRA[name]
    measure, same = (hs.spectral_density(Diagonal(s * values), 4, 12) for s in (scale, 1.0))
    assert measure.certified.sum() == same.certified.sum()
    np.testing.assert_allclose(measure.nodes / scale, same.nodes, atol=1e-10)
    t = same.grid()
    expected = same.density(t)
    found = scale * measure.density(scale * t)
    np.testing.assert_allclose(found, expected, atol=1e-9 * expected.max())


@pytest.mark.parametrize("name", SPECTRA)
def test_float32_vectors_give_the_density_of_float64(name):
    single, double = (
        hs.spectral_density(Diagonal(SPECTRA[name], dtype), 6, 12)
        for dtype in (torch.float32, torch.float64)
    )
    t = double.grid(SIGMA2)
    expected = double.density(t, SIGMA2)
    error = np.abs(single.density(t, SIGMA2) - expected).max()
    # A cluster of 1e-4 beside exact zeros is half noise to float32: less of it is taken as known.
    assert error < (5e-3 if name == "clusters" else 1e-5) * expected.max()


# -- spaces that are exhausted ---------------------------------------------------------------------


def check_exact(measure, exact):
    """Each probe weighs each eigenvalue as it is."""
    for value in np.unique(exact):
        near = np.abs(measure.nodes - value) < 1e-10
        expected = np.mean(exact == value)
        np.testing.assert_allclose(measure.weights[:, near].sum(1), expected, atol=1e-11)


@pytest.mark.parametrize("b", [2, 7, 50])
def test_probes_that_each_reach_the_whole_space_weigh_each_eigenvalue_as_one(b):
    exact = np.linspace(-1, 2, 20) ** 3
    check_exact(hs.spectral_density(Diagonal(exact), b, 20), exact)
    if b > 20:  # more probes than eigenvalues: one step is enough
        check_exact(hs.spectral_density(Diagonal(exact), b, 1), exact)


@pytest.mark.parametrize("name", ["all zero", "low rank", "multiplicities"])
def test_a_spectrum_with_one_large_multiplicity_is_known_exactly(name):
    measure = hs.spectral_density(Diagonal(SPECTRA[name]), 8, 20)
    check_exact(measure, SPECTRA[name])
    assert measure.rules[0].is_exact


# -- what is certified -----------------------------------------------------------------------------


@pytest.mark.parametrize(("multiplicity", "known"), [(1, True), (4, True), (5, False), (8, False)])
def test_a_multiplicity_that_five_probes_can_leave_one_out_of_is_certified_up_to_four(
    multiplicity, known
):
    bulk = np.linspace(-0.05, 0.05, N - multiplicity - 1)
    exact = np.r_[bulk, 2.0, [1.0] * multiplicity]
    measure = hs.spectral_density(Diagonal(exact), 5, 8)
    assert measure.certified[np.abs(measure.nodes - 2) < 1e-6].tolist() == [True]
    there = np.abs(measure.nodes - 1) < 1e-6
    assert there.sum() == min(multiplicity, 5)
    assert measure.certified[there].tolist() == there.sum() * [known]


def test_certified_are_the_nodes_that_all_probes_weigh_as_one_eigenvalue():
    measure = hs.spectral_density(Diagonal(SPECTRA["power law"]), 6, 10)
    off = np.abs(N * measure.weights - 1)
    assert measure.certified.tolist() == (off < 0.01).all(axis=0).tolist()
    # Some that one probe weighs so, and another does not.
    assert ((off < 0.01).any(axis=0) & ~measure.certified).any()
    assert 3 < measure.certified.sum() < len(measure.nodes) / 2
    # Each is an eigenvalue, and another one.
    values = measure.nodes[measure.certified]
    nearest = np.abs(values[:, None] - SPECTRA["power law"]).argmin(axis=1)
    assert len(set(nearest)) == len(values)


@pytest.mark.parametrize("estimator", ["block", "lean"])
def test_interrupted_and_gone_on_with_every_bit_is_the_same(estimator):
    operator = hs.Dense(with_spectrum(SPECTRA["outliers"][-60:]))
    sizes = {"num_probes": 4, "num_steps": 9, "estimator": estimator}
    straight = hs.spectral_density(operator, **sizes)
    states = []
    hs.spectral_density(operator, **sizes, on_step=states.append)
    assert [s.num_steps for s in states] == list(range(1, 10))
    middle = states[4]
    low, high = middle.window
    middle.basis[high - low :] = np.nan  # what came after is not looked at
    resumed = hs.spectral_density(operator, **sizes, state=middle)
    for name in ("nodes", "weights", "residuals", "certified"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(straight, name))
