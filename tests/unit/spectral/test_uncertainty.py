"""What a measure says of its own error: bounds that hold, intervals, the error of a density."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from diagonal_operators import OUTLIERS, SPECTRA, Diagonal, N, l1, rule_of
from scipy import stats

import hessian_spectrum as hs
from hessian_spectrum import InputError, SpectralMeasure
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.spectral import probe_variance
from hessian_spectrum.spectral.functionals import OF_MEASURE
from hessian_spectrum.spectral.quadrature import BlockRule

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


# -- what can lie below a threshold ----------------------------------------------------------------


def width(rule, x):
    low, high = rule.bracket(x)
    return high - low


@pytest.mark.parametrize("m", [1, 2, 5, 20])
def test_the_bounds_of_one_probe_differ_by_the_christoffel_number(m):
    x = np.linspace(-1.5, 1.5, 101)
    expected = 1 / np.square(legendre_values(m, x)).sum(1)
    found = np.array([width(legendre(m), t)[0] for t in x])
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-15)


def test_at_a_node_the_bounds_are_the_masses_below_it_without_and_with_its_gauss_weight():
    nodes, weights = np.polynomial.legendre.leggauss(9)
    up_to = np.cumsum(weights / 2)
    found = np.array([legendre(9).bracket(x) for x in nodes])[..., 0]
    np.testing.assert_allclose(found, np.stack([up_to - weights / 2, up_to], 1), atol=1e-13)


@pytest.mark.parametrize("m", [1, 2, 5, 20])
def test_the_uniform_measure_lies_within_the_bounds_of_its_rule(m):
    x = np.linspace(-1.5, 1.5, 61)
    low, high = np.array([legendre(m).bracket(t) for t in x])[..., 0].T
    true = np.clip((x + 1) / 2, 0, 1)
    assert (low <= true + 1e-12).all() and (true <= high + 1e-12).all()
    assert low[0] == pytest.approx(0, abs=1e-12) and high[-1] == pytest.approx(1)


def some_spectra(count):
    """Of 60 eigenvalues: a bulk, outliers, multiplicities, in any place and of any width."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        bulk = generator.uniform(-0.5, 0.5) + generator.exponential() * generator.random(40)
        few = generator.normal(size=8)
        yield np.sort(np.r_[bulk, 3 * generator.normal(size=4), np.repeat(few[:4], 4)])


def shares(b, seed):
    """(b, 60), the squared components of the unit probes of a diagonal matrix."""
    z = gaussian_probes(Layout.of_size(60), range(b), seed, torch.float64).numpy()
    return np.square(z) / np.square(z).sum(1, keepdims=True)


def masses_below(x, places, weights):
    """(probe, thresholds) twice: of the atoms below x, and of those at it, too."""
    return [weights @ (places[:, None] < x), weights @ (places[:, None] <= x)]


def brackets(rules, x):
    """(2, probe, thresholds)"""
    per_rule = [np.moveaxis([rule.bracket(t) for t in x], 0, -1) for rule in rules]
    return np.concatenate(per_rule, axis=1)


def runs_on_some_spectra(estimator):
    """Each time thresholds, the bounds of each probe's mass below them, and the two true masses."""
    generator = np.random.default_rng(1)
    for seed, exact in enumerate(some_spectra(12)):
        b, m = int(generator.integers(1, 6)), int(generator.integers(2, 12))
        measure = hs.spectral_density(Diagonal(exact), b, m, seed, estimator=estimator)
        x = np.r_[generator.uniform(exact[0] - 0.1, exact[-1] + 0.1, 40), exact[::6] + 1e-7]
        bounds = brackets(measure.rules, x)
        assert bounds.shape == (2, b, len(x)) and (bounds[0] <= bounds[1]).all()
        yield measure, x, bounds, masses_below(x, exact, shares(b, seed))


def test_each_probes_mass_below_any_threshold_lies_within_the_bounds_of_its_rule():
    near = []
    for measure, x, (low, high), true in runs_on_some_spectra("slq"):
        usual = SpectralMeasure.of_rules(measure.rules, 60)  # has the same moments
        for mass in true + masses_below(x, usual.nodes, usual.weights):
            assert (low <= mass + 1e-12).all() and (mass <= high + 1e-12).all()
        wide = high - low > 1e-3
        near.append([((mass - low)[wide] / (high - low)[wide]) for mass in true])
    near = np.concatenate([np.concatenate(run) for run in near])
    assert near.min() < 0.1 and near.max() > 0.9  # neither bound could be a tenth nearer


def test_the_mean_mass_of_a_blocks_probes_lies_within_the_mean_bounds():
    """Not for every spectrum that one could think of, nor for each probe, which share a space."""
    beyond = []
    for _, _, (low, high), true in runs_on_some_spectra("block"):
        for mass in true:
            assert (low.mean(0) <= mass.mean(0) + 1e-12).all()
            assert (mass.mean(0) <= high.mean(0) + 1e-12).all()
            beyond.append(np.maximum(low - mass, mass - high).ravel())
    beyond = np.concatenate(beyond)
    assert np.mean(beyond > 1e-9) < 0.01 and beyond.max() < 5e-3


@pytest.mark.parametrize("estimator", ["block", "slq"])
def test_no_eigenvalue_weighs_more_for_a_probe_than_its_bounds_leave_room_for(estimator):
    near = 0.0
    for seed, exact in enumerate(some_spectra(12)):
        b, m = seed % 5 + 1, seed % 4 + 2
        rules = hs.spectral_density(Diagonal(exact), b, m, seed, estimator=estimator).rules
        places = np.unique(exact)
        low, high = brackets(rules, places)
        weight = shares(b, seed) @ (exact[:, None] == places)
        assert (weight <= high - low + 1e-12).all()
        near = max(near, np.median(weight[:, [0, -1]] / (high - low)[:, [0, -1]]))
    assert near > 0.9  # at a resolved outlier there is no room for more


def test_the_bounds_of_a_block_differ_by_its_christoffel_matrix():
    """The least |sum_k p_k(A) z_k|^2 over polynomials of degree m - 1 with p(x) = e_i."""
    b, m, seed = 3, 3, 0
    exact = next(some_spectra(1))
    (rule,) = hs.spectral_density(Diagonal(exact), b, m, seed).rules
    z = gaussian_probes(Layout.of_size(60), range(b), seed, torch.float64).numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    for x in (-1.0, 0.1, 0.7, 2.0):
        free = np.concatenate([z * (exact - x) ** k for k in range(1, m)]).T
        least = z.T - free @ np.linalg.lstsq(free, z.T, rcond=None)[0]
        np.testing.assert_allclose(width(rule, x), np.square(least).sum(0), rtol=1e-7)


@pytest.mark.parametrize("estimator", ["block", "slq"])
def test_between_resolved_outliers_a_threshold_is_certain(estimator):
    measure = hs.spectral_density(Diagonal(SPECTRA["outliers"]), 8, 20, estimator=estimator)
    for x in (OUTLIERS[1:-1] + OUTLIERS[2:]) / 2:
        assert max(width(rule, x).max() for rule in measure.rules) < 1e-12
        assert measure.truncation("mass", -np.inf, x) < 1e-12
    assert measure.truncation("count", 0.2, 4.0) < 1e-9
    assert measure.truncation("negative_fraction", 0.0) > 1e-3  # inside the bulk
    # Beside a resolved outlier all of its weight is on one side.
    assert measure.truncation("mass", -np.inf, 3.0 + 1e-4) < 1e-6


@pytest.mark.parametrize("estimator", ["block", "slq"])
def test_at_a_resolved_outlier_all_of_its_weight_is_in_doubt(estimator):
    measure = hs.spectral_density(Diagonal(SPECTRA["outliers"]), 8, 20, estimator=estimator)
    usual = SpectralMeasure.of_rules(measure.rules, N)
    for x in OUTLIERS:
        low, high = brackets(measure.rules, [x])[..., 0]
        np.testing.assert_allclose(low, usual.masses(-np.inf, x - 1e-2), atol=1e-9)
        np.testing.assert_allclose(high, usual.masses(-np.inf, x + 1e-2), atol=1e-9)


def margins(measure, x, strictly=False):
    """By how much less and more than the Gauss rules say may be below x, mean over the probes."""
    usual = SpectralMeasure.of_rules(measure.rules, N)
    below = (usual.nodes < x) if strictly else (usual.nodes <= x)
    mass = usual.weights[:, below].sum(1).mean()
    reach = max(1e-9 * np.abs(usual.nodes).max(), *(rule.tolerance for rule in measure.rules))
    low = brackets(measure.rules, [x - reach])[0].mean()
    high = brackets(measure.rules, [x + reach])[1].mean()
    return np.array([mass - low, high - mass])


THRESHOLDS = {  # how much a share counts at 0.45 and at 1.1
    "mass": (1, 1),
    "count": (N, N),
    "energy": (N * 0.45**2, N * 1.1**2),
}


def threshold_margins(measure, query):
    """(2,), down and up."""
    if query == "negative_fraction":
        return margins(measure, np.nextafter(-0.02, -1))
    at_a, at_b = THRESHOLDS[query]
    at_a, at_b = at_a * margins(measure, 0.45, strictly=True), at_b * margins(measure, 1.1)
    return np.array([at_b[0] + at_a[1], at_b[1] + at_a[0]])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_count_is_in_doubt_at_both_its_ends_and_an_energy_by_the_square(estimator):
    exact = SPECTRA["Marchenko-Pastur"]
    measure = hs.spectral_density(Diagonal(exact), 3, 4, estimator=estimator)
    at_a, at_b = margins(measure, 0.45, strictly=True), margins(measure, 1.1)
    assert min(*at_a, *at_b) > 1e-3 and abs(at_a[0] - at_a[1]) > 1e-2
    for query in THRESHOLDS:
        expected = threshold_margins(measure, query).max()
        assert measure.truncation(query, 0.45, 1.1) == pytest.approx(expected)
    assert measure.truncation("mass", 0.45, np.inf) == pytest.approx(at_a.max())
    assert measure.truncation("mass", -np.inf, 1.1) == pytest.approx(at_b.max())
    energy = N * 1.1**2 * at_b.max()
    assert measure.truncation("energy", -np.inf, 1.1) == pytest.approx(energy)
    assert measure.truncation("mass", -np.inf, np.inf) == 0
    measure = hs.spectral_density(Diagonal(exact - 0.5), 3, 4, estimator=estimator)
    below = threshold_margins(measure, "negative_fraction").max()
    assert below > 1e-3
    assert measure.truncation("negative_fraction", 0.02) == pytest.approx(below)


def test_bounds_hold_without_reorthogonalization_and_close_in_spite_of_ghosts():
    """Each probe's own mass, after 60 steps in which every outlier came back many times."""
    values = np.sort(np.r_[np.linspace(-0.01, 0.01, 300), OUTLIERS])
    measure = hs.spectral_density(Diagonal(values), 4, 60, estimator="lean")
    rule = measure.rules[0]
    assert (np.abs(measure.nodes - OUTLIERS[0]) < 1e-6).sum() > 1  # ghosts
    z = gaussian_probes(Layout.of_size(len(values)), range(4), 0, torch.float64).numpy() ** 2
    z /= z.sum(axis=1, keepdims=True)
    for x in (-0.3, -0.005, 0.0, 0.003, 0.1, 0.4, 0.9, 2.5):
        exact, (low, high) = z[:, values < x].sum(axis=1), rule.bracket(x)
        assert (low <= exact + 1e-9).all() and (exact <= high + 1e-9).all()
        if abs(x) > 0.05:  # between eigenvalues that are resolved
            assert (high - low).max() < 1e-6


def test_a_closed_interval_has_a_node_at_its_lower_end():
    rules = [legendre(5)]
    measure = SpectralMeasure.of_rules(rules, N)
    a = measure.nodes[1]
    down = measure.weights[0, 1]  # all of it may lie above the lower end of [-1, a] or below a
    assert measure.truncation("mass", -np.inf, a) == pytest.approx(down)
    assert measure.truncation("mass", a, np.inf) == pytest.approx(down)
    np.testing.assert_allclose(margins(measure, a), [down, 0], atol=1e-8)
    np.testing.assert_allclose(margins(measure, a, strictly=True), [0, down], atol=1e-8)


# -- what the last third of the steps has changed --------------------------------------------------

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


def bias_of_held_out(measure, query, args):
    """The change where the other probes know less, and a standard error; none to degree 3."""
    if measure.held_out is None or query in ("moment", "trace", "frobenius_norm"):
        return 0.0
    own, found = measure.answers(query, *args), [0.0]
    for weights in measure.held_out.fewer_known:
        moved = replace(measure, weights=weights).answers(query, *args) - own
        error = measure.scatter * moved.std(axis=0, ddof=1) / len(own) ** 0.5
        found.append(np.abs(moved.mean(axis=0)) + error)
    return np.max(np.broadcast_arrays(*found), axis=0)


@pytest.mark.parametrize("m, back", [(2, 1), (3, 1), (4, 2), (7, 3)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("query", SMOOTH)
def test_the_truncation_of_a_smooth_query_is_the_most_the_last_third_of_the_steps_changed(
    query, estimator, m, back
):
    operator, args = Diagonal(SPECTRA["Marchenko-Pastur"]), SMOOTH[query]
    runs = [hs.spectral_density(operator, 3, m - k, estimator=estimator) for k in range(back + 1)]
    now, *before = (value(SpectralMeasure.of_rules(r.rules, N), query, *args) for r in runs)
    expected = np.max([np.abs(now - earlier) for earlier in before], axis=0)
    expected = np.maximum(expected, bias_of_held_out(runs[0], query, args))
    found = runs[0].truncation(query, *args)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-11)
    if query in ("density", "effective_dimension", "log_determinant"):
        assert np.max(found) > 1e-8
    if back > 1 and query == "density":  # more than the last step
        assert (found > 2 * np.abs(now - before[0])).any()


@pytest.mark.parametrize("query", SMOOTH)
def test_after_one_step_no_truncation_is_known(query):
    measure = hs.spectral_density(Diagonal(SPECTRA["Marchenko-Pastur"]), 3, 1)
    assert np.isnan(measure.truncation(query, *SMOOTH[query])).all()


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
    for query, args in {**SMOOTH, "mass": (0, 1), "negative_fraction": ()}.items():
        assert np.isnan(stored.truncation(query, *args)).all()
    error = stored.standard_error("mass", 0, 0.1) * stats.t.ppf(0.975, 3)
    expected = stored.mass(0, 0.1) + error * np.array([-1, 1])
    np.testing.assert_allclose(stored.interval("mass", 0, 0.1), expected, rtol=1e-11)
    assert np.isfinite(stored.interval("quantile", 0.5)).all()


# -- noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator, factor", [("block", 1.25), ("slq", 1.0), ("lean", 1.0)])
def test_probes_that_share_what_they_know_err_more_than_their_scatter_says(
    estimator, factor, tmp_path
):
    measure = hs.spectral_density(Diagonal(SPECTRA["power law"]), 4, 5, estimator=estimator)
    assert measure.scatter == factor
    mass = measure.weights[:, measure.nodes >= 0.1].sum(1)
    error = factor * mass.std(ddof=1) / 2
    # Independent ones err as points on the sphere do, where that is more (the next section).
    alone = measure if estimator == "block" else replace(measure, rules=())
    assert alone.standard_error("mass", 0.1, np.inf) == pytest.approx(error, rel=1e-12)
    for query, args in SMOOTH.items():
        expected = factor * measure.answers(query, *args).std(axis=0, ddof=1) / 2
        np.testing.assert_allclose(alone.standard_error(query, *args), expected, rtol=1e-12)
    t = np.linspace(-1, 2, 3001)
    scatter = factor * measure.answers("density", t, 0.01).std(axis=0, ddof=1) / 2
    expected = np.sqrt(2 / np.pi) * scatter.sum() * (t[1] - t[0])
    assert alone.density_error(0.01).noise == pytest.approx(expected, rel=1e-3)
    half = replace(measure, rules=()).interval("mass", 0.1, np.inf)[1] - mass.mean()
    assert half == pytest.approx(stats.t.ppf(0.975, 3) * error, rel=1e-9)
    hs.save(tmp_path / "run.h5", measure)
    with hs.open(tmp_path / "run.h5") as run:
        assert run["density"].scatter == factor
        found, expected = (m.interval("mass", 0, 0.1) for m in (run["density"], measure))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_one_probe_of_a_block_shares_nothing():
    assert hs.spectral_density(Diagonal(SPECTRA["power law"]), 1, 5).scatter == 1.0


# -- independent probes on the sphere --------------------------------------------------------------


@pytest.mark.parametrize("name", ["outliers", "power law", "Marchenko-Pastur"])
@pytest.mark.parametrize("query", [*SMOOTH, "count"])
def test_the_variance_of_independent_probes_is_that_of_points_on_the_sphere(query, name):
    """Var(z^T F z) of unit z, against the answers of many, whose mean measure is nearly exact."""
    args = {**SMOOTH, "count": (0.5, 9.0)}[query]
    exact, b = SPECTRA[name], 2000
    z = np.random.default_rng(1).standard_normal((b, N))
    weights = z**2 / (z**2).sum(axis=1, keepdims=True)
    measure = SpectralMeasure(np.sort(exact), weights, N, np.zeros(N), np.zeros(N, dtype=bool))
    found = probe_variance.on_the_sphere(measure, OF_MEASURE[query], *args)
    scatter = measure.answers(query, *args).std(axis=0, ddof=1) / b**0.5
    known = np.asarray(scatter) > 1e-9 * np.max(scatter)
    # Measured: 8 % at most; the relative error of a standard deviation of 2,000 skewed numbers.
    np.testing.assert_allclose(np.asarray(found)[known], np.asarray(scatter)[known], rtol=0.15)


@pytest.mark.parametrize("estimator", ["slq", "lean"])
def test_where_independent_probes_scatter_little_by_chance_they_err_as_theory_says(estimator):
    operator = Diagonal(SPECTRA["outliers"])
    measure = hs.spectral_density(operator, 4, 12, estimator=estimator)
    inside = (measure.nodes > 1.2) & (measure.nodes < 5)
    seen = measure.weights[:, inside].sum(axis=1)
    theory = np.sqrt(2 / (N + 2) * seen.mean() * (1 - seen.mean()) / 4)
    expected = max(seen.std(ddof=1) / 2, theory)
    assert measure.standard_error("mass", 1.2, 5) == pytest.approx(expected, rel=1e-9)
    same = replace(measure, weights=np.repeat(measure.weights[:1], 4, axis=0))
    own = measure.weights[0, inside].sum()
    theory = np.sqrt(2 / (N + 2) * own * (1 - own) / 4)
    assert same.standard_error("mass", 1.2, 5) == pytest.approx(theory, rel=1e-9)
    assert replace(same, rules=()).standard_error("mass", 1.2, 5) == 0  # not known to be random


@pytest.mark.parametrize("estimator", ["slq", "lean"])
def test_intervals_of_independent_probes_cover_where_a_few_eigenvalues_have_most(estimator):
    exact = np.random.default_rng(0).standard_t(1.5, N)
    found = {"moment": [], "frobenius_norm": [], "count": []}
    for seed in range(60):
        measure = hs.spectral_density(Diagonal(exact), 6, 12, seed, estimator=estimator)
        largest = np.sort(exact)[-2:].mean()  # above it there is one
        for query, args, truth in (
            ("moment", (4,), np.mean(exact**4)),
            ("frobenius_norm", (), np.linalg.norm(exact)),
            ("count", (largest, np.inf), 1.0),
        ):
            low, high = measure.interval(query, *args)
            found[query].append(low <= truth <= high)
    for query, covered in found.items():
        # Measured: 97 to 98 %; by the scatter alone, 87 % of the moments.
        assert np.mean(covered) >= 0.92, query


# -- intervals -------------------------------------------------------------------------------------


def half_widths(measure, query, args, level):
    """(2, ...), down and up, by hand."""
    noise = measure.standard_error(query, *args)
    noise = stats.t.ppf((1 + level) / 2, measure.num_probes - 1) * noise
    if query in SMOOTH:
        unknown = np.stack(2 * [measure.truncation(query, *args)])
    else:
        unknown = threshold_margins(measure, query)
        assert abs(unknown[0] - unknown[1]) > 1e-3 * unknown.max()  # the two sides differ
    return np.sqrt(noise**2 + unknown**2) + 1e-12 * np.abs(value(measure, query, *args))


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("query", [*SMOOTH, *THRESHOLDS, "negative_fraction"])
@pytest.mark.parametrize("estimator", ["block", "slq"])
def test_an_interval_is_students_quantile_and_the_truncation_of_each_side_in_quadrature(
    estimator, query, level
):
    args = {**SMOOTH, "negative_fraction": (0.02,)}.get(query, (0.45, 1.1))
    operator = Diagonal(SPECTRA["Marchenko-Pastur"] - (query == "negative_fraction") * 0.5)
    measure = hs.spectral_density(operator, 4, 5, estimator=estimator)
    centre = value(measure, query, *args)
    down, up = half_widths(measure, query, args, level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measure.interval(query, *args, level=level)
    most = {"mass": 1.0, "count": N, "energy": np.inf, "negative_fraction": 1.0}
    most |= {"density": np.inf, "frobenius_norm": np.inf, "effective_dimension": N}
    ends = np.stack([centre - down, centre + up])
    if query in most:  # what is a share, a number or a sum of squares stays one
        ends = np.clip(ends, 0.0, most[query])
    np.testing.assert_allclose(found, ends, rtol=1e-9, atol=1e-300)


def test_no_interval_is_narrower_than_rounding():
    nodes, weights = np.array([1.0, 3.0]), np.full((4, 2), 0.5)
    known = SpectralMeasure(nodes, weights, 10, np.zeros(2), np.zeros(2, dtype=bool))
    assert known.standard_error("trace") == 0
    low, high = known.interval("trace")
    assert 20 - low == pytest.approx(20e-12, rel=1e-3)
    assert high - 20 == pytest.approx(20e-12, rel=1e-3)
    negative = SpectralMeasure(-nodes[::-1], weights, 10, np.zeros(2), np.zeros(2, dtype=bool))
    np.testing.assert_array_equal(negative.interval("trace"), [-high, -low])


def quantiles(measure, q, down, up):
    """Where the mass reaches q - up, and exceeds q + down; as far again as a node may be off."""
    up_to = np.cumsum(measure.weights.mean(axis=0))
    first = np.flatnonzero(up_to >= max(q - up, 0) - 1e-12)[0]
    last = np.r_[np.flatnonzero(up_to > min(q + down, 1) + 1e-12), len(up_to) - 1][0]
    low = measure.nodes[first] - measure.residuals[first]
    return [low, measure.nodes[last] + measure.residuals[last]]


@pytest.mark.parametrize("estimator", ["block", "slq"])
@pytest.mark.parametrize("q", [0.02, 0.5, 0.98])
def test_the_interval_of_a_quantile_is_read_off_the_error_of_the_mass_below_it(q, estimator):
    operator = Diagonal(SPECTRA["Marchenko-Pastur"])
    measure = hs.spectral_density(operator, 6, 4, estimator=estimator)
    middle = measure.quantile(q)
    noise = stats.t.ppf(0.975, 5) * measure.standard_error("mass", -np.inf, middle)
    down, up = np.hypot(noise, np.clip(margins(measure, middle), 0, None))
    if q < 0.1:  # beyond an end of [0, 1], where the other end stays as far away
        assert up > q
    assert abs(down - up) > 1e-3
    expected = quantiles(measure, q, down, up)
    np.testing.assert_array_equal(measure.interval("quantile", q), expected)
    assert expected[0] <= middle <= expected[1] and expected[0] < expected[1]


@pytest.mark.parametrize("estimator", ["block", "slq"])
def test_the_truncation_of_a_quantile_is_what_the_bounds_alone_leave(estimator):
    operator = Diagonal(SPECTRA["Marchenko-Pastur"])
    measure = hs.spectral_density(operator, 6, 10, estimator=estimator)
    for q in (0.3, 0.7):
        middle = measure.quantile(q)
        low, high = quantiles(measure, q, *np.clip(margins(measure, middle), 0, None))
        expected = max(middle - low, high - middle)
        assert measure.truncation("quantile", q) == pytest.approx(expected)
    # Beyond the spectrum there is nothing but what the extreme nodes may be off.
    first, last = measure.nodes[[0, -1]] + measure.residuals[[0, -1]] * [-1, 1]
    assert measure.interval("quantile", 0.0)[0] == first
    assert measure.interval("quantile", 1.0)[1] == last


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
        for x, strictly, up_to in ((0.5, 0.5, 0.5), (2.0, 1.5, 2.5), (2.5, 2.5, 2.5)):
            # Below it, and at or below it: at an eigenvalue they differ by its weight.
            ours = SpectralMeasure.of_rules([rule], N)
            low, high = rule.bracket(x)
            np.testing.assert_allclose(low, ours.masses(-np.inf, strictly), atol=1e-12)
            np.testing.assert_allclose(high, ours.masses(-np.inf, up_to), atol=1e-12)
            assert (high - low > 1e-9).all() == (high > low).any() == (x == 2.0)
    assert measure.truncation("mass", -0.5, 2.5) < 1e-14
    assert measure.truncation("trace") == 0
    assert measure.density_error().truncation == 0
    few = hs.spectral_density(operator, 2, 2, estimator=estimator)
    assert not any(rule.is_exact for rule in few.rules)
    assert few.truncation("mass", 0.0, 2.5) > 0


# -- arguments, and thresholds where eigenvalues are -----------------------------------------------


def test_errors_take_the_arguments_of_the_query_by_name_too():
    measure = hs.spectral_density(Diagonal(SPECTRA["power law"]), 4, 5)
    for of in (measure.standard_error, measure.truncation, measure.interval):
        for named, placed in (
            (of("quantile", q=0.5), of("quantile", 0.5)),
            (of("density", t=0.1, sigma2=1e-4), of("density", 0.1, 1e-4)),
            (of("count", b=1.0, a=0.2), of("count", 0.2, 1.0)),
            (of("negative_fraction"), of("negative_fraction", threshold=0.0)),
        ):
            np.testing.assert_array_equal(named, placed)
        with pytest.raises(InputError, match="count takes a, b"):
            of("count", 1.0)
        with pytest.raises(InputError, match="the lower end must not exceed the upper"):
            of("count", 1.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_eigenvalue_at_a_threshold_may_be_on_either_side(dtype):
    """Rounding puts a node on one of them."""
    exact = np.r_[np.zeros(49), 5.0]
    measure = hs.spectral_density(Diagonal(exact, dtype), 6, 10)
    for query, args, truth in (
        ("count", (5.0, np.inf), 1),
        ("count", (5.0, 5.0), 1),
        ("count", (0.0, 0.0), 49),
        ("negative_fraction", (), 0),
    ):
        low, high = measure.interval(query, *args)
        assert low - 1e-9 <= truth <= high + 1e-9
