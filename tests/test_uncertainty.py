"""What a measure says of its own error: bounds that hold, intervals, the error of a density."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from test_certified import OUTLIERS, SPECTRA, Diagonal, N, l1, rule_of

import hessian_spectrum as hs
from hessian_spectrum import InputError, SpectralMeasure
from hessian_spectrum.layout import Layout
from hessian_spectrum.probes import gaussian_probes
from hessian_spectrum.quadrature import BlockRule

ESTIMATORS = ["block", "slq", "lean"]


def legendre(m):
    """The rule of the uniform measure on [-1, 1]."""
    k = np.arange(1, m + 1)
    beta = k / np.sqrt(4.0 * k**2 - 1)
    t = np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    return BlockRule(t, np.ones((1, 1)), beta[None, -1:], num_steps=m)


def legendre_values(m, x):
    """p_0(x), ..., p_{m-1}(x), orthonormal for the uniform measure of mass 1."""
    k = np.arange(m)
    return np.sqrt(2 * k + 1) * np.polynomial.legendre.legvander(x, m - 1)


# -- the most that can lie at a threshold ----------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 5, 20])
def test_the_largest_mass_of_one_probe_is_the_christoffel_number(m):
    x = np.linspace(-1.5, 1.5, 101)
    expected = 1 / np.square(legendre_values(m, x)).sum(1)
    found = np.array([legendre(m).largest_mass(t)[0] for t in x])
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-15)


def test_at_a_node_the_largest_mass_is_its_gauss_weight():
    nodes, weights = np.polynomial.legendre.leggauss(9)
    found = [legendre(9).largest_mass(x)[0] for x in nodes]
    np.testing.assert_allclose(found, weights / 2, atol=1e-14)


def some_spectra(count):
    """Of 60 eigenvalues: a bulk, outliers, multiplicities, in any place and of any width."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        bulk = generator.uniform(-0.5, 0.5) + generator.exponential() * generator.random(40)
        few = generator.normal(size=8)
        yield np.sort(np.r_[bulk, 3 * generator.normal(size=4), np.repeat(few[:4], 4)])


def masses_below(x, places, weights):
    """(..., thresholds): of the atoms below x, each end of the interval in turn."""
    return [weights @ (places[:, None] < x), weights @ (places[:, None] <= x)]


@pytest.mark.parametrize("estimator", ["block", "slq"])
def test_each_probes_mass_below_any_threshold_is_within_the_bound_of_its_rules(estimator):
    generator, tight = np.random.default_rng(1), 0.0
    for seed, exact in enumerate(some_spectra(12)):
        b, m = int(generator.integers(1, 6)), int(generator.integers(2, 12))
        measure = hs.spectral_density(Diagonal(exact), b, m, seed, estimator=estimator)
        z = gaussian_probes(Layout.of_size(60), range(b), seed, torch.float64).numpy()
        z = np.square(z) / np.square(z).sum(1, keepdims=True)
        rules = SpectralMeasure.of_rules(measure.rules, 60)
        x = np.r_[generator.uniform(exact[0] - 0.1, exact[-1] + 0.1, 40), exact[::6] + 1e-7]
        bound = np.concatenate(
            [np.stack([r.largest_mass(t) for t in x], axis=1) for r in measure.rules]
        )
        assert bound.shape == (b, len(x))
        for true, found in zip(
            masses_below(x, exact, z), masses_below(x, rules.nodes, rules.weights)
        ):
            error = np.abs(true - found)
            assert (error <= bound + 1e-12).all()
            tight = max(tight, (error[bound > 1e-3] / bound[bound > 1e-3]).max())
    assert tight > 0.8  # a bound half as large would not hold


@pytest.mark.parametrize("estimator", ["block", "slq"])
def test_between_resolved_outliers_a_threshold_is_certain(estimator):
    measure = hs.spectral_density(Diagonal(SPECTRA["outliers"]), 8, 20, estimator=estimator)
    for x in (OUTLIERS[1:-1] + OUTLIERS[2:]) / 2:
        assert measure.truncation("mass", -np.inf, x) < 1e-12
    assert measure.truncation("count", 0.2, 4.0) < 1e-9
    assert measure.truncation("negative_fraction", 0.0) > 1e-3  # inside the bulk
    # At a resolved outlier all of its weight is in doubt.
    if estimator == "slq":
        at = measure.truncation("mass", -np.inf, 3.0)
        assert at == pytest.approx(measure.mass(2.9, 3.1), rel=1e-3)


def test_a_count_is_in_doubt_at_both_its_ends_and_an_energy_by_the_square():
    measure = hs.spectral_density(Diagonal(SPECTRA["power law"]), 3, 4)
    (rule,) = measure.rules
    at = [rule.largest_mass(x).mean() for x in (0.01, 0.2)]
    assert min(at) > 1e-3
    assert measure.truncation("mass", 0.01, 0.2) == pytest.approx(sum(at))
    assert measure.truncation("mass", 0.01, np.inf) == pytest.approx(at[0])
    assert measure.truncation("count", 0.01, 0.2) == pytest.approx(N * sum(at))
    energy = N * (0.01**2 * at[0] + 0.2**2 * at[1])
    assert measure.truncation("energy", 0.01, 0.2) == pytest.approx(energy)
    assert measure.truncation("energy", -np.inf, 0.2) == pytest.approx(N * 0.2**2 * at[1])
    below = rule.largest_mass(-0.02).mean()
    assert measure.truncation("negative_fraction", 0.02) == pytest.approx(below)


# -- what the last step has changed ----------------------------------------------------------------

SMOOTH = {
    "density": (np.linspace(-0.5, 2, 7), 0.01),
    "moment": (3,),
    "trace": (),
    "frobenius_norm": (),
    "effective_dimension": (0.1,),
    "log_determinant": (3.0,),
}


def value(measure, query, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # negative eigenvalues are clipped
        found = getattr(measure, query)
        return found(*args) if callable(found) else found


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("query", SMOOTH)
def test_the_truncation_of_a_smooth_query_is_what_the_last_step_has_changed(query, estimator):
    operator, args = Diagonal(SPECTRA["Marchenko-Pastur"]), SMOOTH[query]
    run = [hs.spectral_density(operator, 3, m, estimator=estimator) for m in (4, 3)]
    usual = [SpectralMeasure.of_rules(measure.rules, N) for measure in run]
    expected = np.abs(value(usual[0], query, *args) - value(usual[1], query, *args))
    found = run[0].truncation(query, *args)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-11)
    if query in ("density", "effective_dimension", "log_determinant"):
        assert np.max(found) > 1e-6
    assert np.isnan(hs.spectral_density(operator, 3, 1).truncation(query, *args)).all()


def test_the_truncation_of_a_density_is_at_the_smoothing_of_the_whole_measure():
    measure = hs.spectral_density(Diagonal(SPECTRA["Marchenko-Pastur"]), 3, 4)
    t = np.linspace(-0.5, 2, 7)
    expected = measure.truncation("density", t, measure.default_sigma2)
    np.testing.assert_array_equal(measure.truncation("density", t), expected)
    np.testing.assert_array_equal(
        measure.truncation("density", t, sigma2=0.02), measure.truncation("density", t, 0.02)
    )


def test_without_rules_no_truncation_is_known_and_the_interval_is_that_of_the_noise():
    m = hs.spectral_density(Diagonal(SPECTRA["power law"]), 4, 5)
    stored = SpectralMeasure(m.nodes, m.weights, m.n, m.residuals, m.certified)
    for query, args in {**SMOOTH, "mass": (0, 1), "quantile": (0.5,)}.items():
        assert np.isnan(stored.truncation(query, *args)).all()
    error = stored.standard_error("mass", 0, 0.1) * stats.t.ppf(0.975, 3)
    expected = stored.mass(0, 0.1) + error * np.array([-1, 1])
    np.testing.assert_allclose(stored.interval("mass", 0, 0.1), expected, rtol=1e-12)


# -- intervals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("query", [*SMOOTH, "mass", "count", "energy", "negative_fraction"])
def test_an_interval_is_students_quantile_and_half_the_truncation_in_quadrature(query, level):
    args = {**SMOOTH, "negative_fraction": (0.0,)}.get(query, (0.3, 1.1))
    measure = hs.spectral_density(Diagonal(SPECTRA["Marchenko-Pastur"]), 4, 5)
    noise = stats.t.ppf((1 + level) / 2, 3) * measure.standard_error(query, *args)
    half = np.sqrt(noise**2 + (0.5 * measure.truncation(query, *args)) ** 2)
    centre = value(measure, query, *args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measure.interval(query, *args, level=level)
    most = {"mass": 1.0, "count": N, "energy": np.inf, "negative_fraction": 1.0}
    ends = [centre - half, centre + half]
    if query in most:  # what is a share, a number or a sum of squares stays one
        ends = np.clip(ends, 0.0, most[query])
    np.testing.assert_allclose(found, ends, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("q", [0.05, 0.5, 0.95])
def test_the_interval_of_a_quantile_is_read_off_the_error_of_the_mass_below_it(q):
    operator = Diagonal(SPECTRA["Marchenko-Pastur"])
    measure = hs.spectral_density(operator, 6, 4, estimator="slq")
    middle = measure.quantile(q)
    noise = stats.t.ppf(0.975, 5) * measure.standard_error("mass", -np.inf, middle)
    half = math.hypot(noise, 0.5 * measure.truncation("mass", -np.inf, middle))
    if q != 0.5:  # beyond an end of [0, 1], where the other end stays as far away
        assert half > min(q, 1 - q)
    expected = [measure.quantile(max(q - half, 0)), measure.quantile(min(q + half, 1))]
    np.testing.assert_array_equal(measure.interval("quantile", q), expected)
    assert expected[0] <= middle <= expected[1] and expected[0] < expected[1]


def test_the_truncation_of_a_quantile_is_half_the_width_that_the_bound_leaves():
    measure, q = hs.spectral_density(Diagonal(SPECTRA["Marchenko-Pastur"]), 6, 10), 0.7
    middle = measure.quantile(q)
    bound = measure.truncation("mass", -np.inf, middle)
    expected = (measure.quantile(min(q + bound, 1)) - measure.quantile(q - bound)) / 2
    assert measure.truncation("quantile", q) == pytest.approx(expected)
    # Both ends stay in the spectrum.
    assert measure.interval("quantile", 0.0)[0] == measure.support[0]
    assert measure.interval("quantile", 1.0)[1] == measure.support[1]


def test_an_interval_is_wider_with_fewer_probes_and_at_a_higher_level():
    operator = Diagonal(SPECTRA["Marchenko-Pastur"])
    widths = []
    for b in (3, 6, 24):
        measures = [hs.spectral_density(operator, b, 12, s, estimator="slq") for s in range(3)]
        widths.append(np.mean([np.diff(m.interval("trace")) for m in measures]))
    assert widths[0] > 1.5 * widths[1] > 2 * widths[2]
    measure = measures[0]
    levels = [np.diff(measure.interval("trace", level=level))[0] for level in (0.5, 0.95, 0.999)]
    assert levels == sorted(levels) and levels[0] > 0


@pytest.mark.parametrize("query, args", [("mass", (0, 1)), ("trace", ()), ("quantile", (0.5,))])
def test_one_probe_has_no_interval(query, args):
    measure = hs.spectral_density(Diagonal(SPECTRA["power law"]), 1, 8)
    assert np.isnan(measure.interval(query, *args)).all()
    assert np.isfinite(measure.truncation(query, *args))


@pytest.mark.parametrize("level", [0.0, 1.0, 95, math.nan])
def test_a_level_that_is_no_probability_is_refused(level):
    measure = hs.spectral_density(Diagonal(SPECTRA["power law"]), 2, 3)
    for query, args in (("trace", ()), ("quantile", (0.5,))):
        with pytest.raises(InputError, match="expected a probability"):
            measure.interval(query, *args, level=level)


# -- the error of a density ------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", ["outliers", "power law", "Marchenko-Pastur"])
def test_the_error_of_a_density_is_about_the_l1_distance_to_the_true_one(name, estimator):
    exact, sigma2 = SPECTRA[name], 0.01
    found, said = [], []
    for seed in range(8):
        measure = hs.spectral_density(Diagonal(exact), 6, 15, seed, estimator=estimator)
        found.append(l1(measure, exact, sigma2))
        error = measure.density_error(sigma2)
        said.append(error.noise)
        assert error.total == pytest.approx(math.hypot(error.noise, error.truncation / 2))
    assert 0.5 < np.mean(said) / np.mean(found) < 2


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_error_of_a_density_does_not_depend_on_the_unit_of_the_eigenvalues(scale):
    errors = [
        hs.spectral_density(Diagonal(s * SPECTRA["Marchenko-Pastur"]), 4, 8).density_error()
        for s in (1.0, scale)
    ]
    np.testing.assert_allclose(*errors, rtol=1e-5)


def test_truncation_says_when_the_steps_are_too_few_and_noise_does_not():
    operator, sigma2 = Diagonal(SPECTRA["Marchenko-Pastur"]), 1e-3
    few, many = (hs.spectral_density(operator, 12, m).density_error(sigma2) for m in (3, 24))
    assert few.truncation > 0.5 and few.truncation > 3 * few.noise
    assert many.truncation < 0.05 * few.truncation
    assert few.total > 2 * many.total
    assert math.isnan(hs.spectral_density(operator, 12, 1).density_error(sigma2).truncation)
    assert math.isnan(hs.spectral_density(operator, 1, 12).density_error(sigma2).noise)


def test_a_target_ends_a_run_as_soon_as_the_error_is_there():
    operator = Diagonal(SPECTRA["outliers"])
    states = []
    options = {"num_probes": 8, "num_steps": 40, "sigma2": 0.01}
    measure = hs.spectral_density(operator, **options, target_error=0.02, on_step=states.append)
    assert 4 <= len(states) < 40
    assert measure.density_error(0.01).total <= 0.02
    full = hs.spectral_density(operator, 8, len(states))
    np.testing.assert_array_equal(full.nodes, measure.nodes)
    # A target out of reach takes all that may be spent, and not more.
    states.clear()
    options = {"num_products": 60, "target_error": 1e-9}
    hs.spectral_density(operator, **options, on_step=states.append)
    assert len(states[-1].first) * len(states) in range(50, 61)
    with pytest.raises(InputError, match="sigma2 without target_error changes nothing"):
        hs.spectral_density(operator, 2, 2, sigma2=0.01)
    with pytest.raises(InputError, match=r"sigma2=0\.0: expected a variance"):
        hs.spectral_density(operator, 2, 2, sigma2=0.0, target_error=0.1)


# -- one step less ---------------------------------------------------------------------------------


def check_same(rule, other):
    """The same nodes, and the same weights of each probe."""
    ours, others = (SpectralMeasure.of_rules([r], N) for r in (rule, other))
    np.testing.assert_allclose(ours.nodes, others.nodes, atol=1e-12)
    for node in ours.nodes:
        near = [np.abs(m.nodes - node) < 1e-9 for m in (ours, others)]
        masses = [m.weights[:, which].sum(1) for m, which in zip((ours, others), near)]
        np.testing.assert_allclose(*masses, atol=1e-10)
    np.testing.assert_allclose(ours.residuals, others.residuals, atol=1e-10)
    assert rule.num_steps == other.num_steps


@pytest.mark.parametrize("b", [1, 4])
@pytest.mark.parametrize("name", ["outliers", "multiplicities", "low rank", "Marchenko-Pastur"])
def test_the_shorter_rule_is_that_of_a_run_with_one_step_less(name, b):
    operator = Diagonal(SPECTRA[name])
    for m in (2, 3, 5):
        rule, before = (rule_of(operator, b, steps, 0) for steps in (m, m - 1))
        if rule.is_exact:
            assert rule.shorter is rule
        else:
            check_same(rule.shorter, before)
    assert before.shorter.shorter.num_steps == 2 if not before.is_exact else True


def test_where_probes_leave_the_block_the_shorter_rule_still_is_one_step_less():
    # Six nonzero eigenvalues: of five probes' new directions only one is left after a step.
    exact = np.r_[np.zeros(N - 6), np.arange(1.0, 7)]
    rules = [rule_of(Diagonal(exact), 5, m, 0) for m in (1, 2, 3)]
    assert [len(rule.t) for rule in rules] == [5, 10, 11]
    assert [rule.is_exact for rule in rules] == [False, False, True]
    check_same(rules[1].shorter, rules[0])
    assert rules[0].shorter is None


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_exact_rule_is_its_own_shorter_one_and_nothing_is_truncated(estimator):
    operator = Diagonal(SPECTRA["low rank"])
    measure = hs.spectral_density(operator, 3, 20, estimator=estimator)
    for rule in measure.rules:
        assert rule.is_exact and rule.shorter is rule
        assert not rule.largest_mass(0.5).any()
    assert measure.truncation("mass", 0.0, 2.5) == 0
    assert measure.truncation("trace") == 0
    assert measure.density_error().truncation == 0
    few = hs.spectral_density(operator, 2, 2, estimator=estimator)
    assert not any(rule.is_exact for rule in few.rules)
    assert few.truncation("mass", 0.0, 2.5) > 0
