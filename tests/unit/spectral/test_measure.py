"""SpectralMeasure: every query against the eigenvalues it was made from, and its error by hand."""

import math

import numpy as np
import pytest

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.spectral.measure import SpectralMeasure

SCALES = (1e-8, 1.0, 1e8)
EIGENVALUES = np.array([-2.0, -0.5, -0.5, 0.0, 0.25, 1.0, 1.0, 1.0, 3.0, 8.0])


def exact(eigenvalues=EIGENVALUES):
    """The measure of diag(eigenvalues), as one probe that has seen everything."""
    nodes, counts = np.unique(eigenvalues, return_counts=True)
    weights = counts[None] / len(eigenvalues)
    sure = counts == 1
    return SpectralMeasure(nodes, weights, len(eigenvalues), np.zeros(len(nodes)), sure)


def noisy(num_probes=5, s=30, n=1000, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.random((num_probes, s))
    weights /= weights.sum(axis=1, keepdims=True)
    nodes = scale * np.sort(rng.normal(size=s))
    return SpectralMeasure(nodes, weights, n, np.zeros(s), np.zeros(s, bool))


def by_hand(per_probe):
    return np.std(per_probe, ddof=1) / math.sqrt(len(per_probe))


def integral(measure, sigma2):
    """Trapezoidal over ten standard deviations beyond the support: exact to rounding."""
    margin = 10 * math.sqrt(sigma2)
    t = np.arange(measure.nodes[0] - margin, measure.nodes[-1] + margin, math.sqrt(sigma2) / 4)
    return measure.density(t, sigma2).sum() * (t[1] - t[0])


# -- queries against the eigenvalues -----------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_the_whole_line_has_mass_one(scale):
    measure = noisy(scale=scale)
    assert measure.mass(-np.inf, np.inf) == pytest.approx(1, abs=1e-14)  # measured 2e-16
    assert measure.count(-np.inf, np.inf) == pytest.approx(measure.n, rel=1e-14)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("spread", [1e-3, 0.05, 3.0])
def test_the_density_integrates_to_one(scale, spread):
    measure = noisy(scale=scale)
    assert abs(integral(measure, (spread * scale) ** 2) - 1) < 1e-10  # measured 4e-15


def test_the_density_at_default_smoothing_integrates_to_one():
    measure = noisy()
    assert abs(integral(measure, measure.default_sigma2) - 1) < 1e-10


def test_the_density_is_the_sum_of_gaussians_and_keeps_the_shape_of_t(monkeypatch):
    measure, t, sigma2 = noisy(), np.linspace(-3, 3, 12).reshape(3, 4), 0.07
    gauss = np.exp(-((t[..., None] - measure.nodes) ** 2) / (2 * sigma2))
    expected = gauss @ measure.weights.mean(axis=0) / math.sqrt(2 * math.pi * sigma2)
    np.testing.assert_allclose(measure.density(t, sigma2), expected, rtol=1e-13)
    # The same, when the kernel does not fit and is made in blocks.
    monkeypatch.setattr("hessian_spectrum.spectral.atoms.KERNEL_ELEMENTS", 5 * len(measure.nodes))
    np.testing.assert_allclose(measure.density(t, sigma2), expected, rtol=1e-13)


@pytest.mark.parametrize(
    "a, b", [(-2, 8), (-0.5, 1), (1, 1), (0.3, 0.9), (-np.inf, 0), (3, np.inf)]
)
def test_counts_and_energies_are_exact_on_closed_intervals(a, b):
    inside = EIGENVALUES[(EIGENVALUES >= a) & (EIGENVALUES <= b)]
    assert exact().count(a, b) == pytest.approx(len(inside), abs=1e-12)
    assert exact().mass(a, b) == pytest.approx(len(inside) / 10, abs=1e-13)
    assert exact().energy(a, b) == pytest.approx((inside**2).sum(), abs=1e-12)


def test_an_interval_includes_its_ends_but_not_their_neighbours():
    assert exact().count(1, 3) == pytest.approx(4)
    assert exact().count(np.nextafter(1, 2), np.nextafter(3, 2)) == 0


def test_the_quantile_inverts_the_mass():
    measure = noisy()
    for node in measure.nodes:
        assert measure.quantile(measure.mass(-np.inf, node)) == node
    for q in np.linspace(0.01, 1, 37):
        t = measure.quantile(q)
        assert measure.mass(-np.inf, t) >= q - 1e-11
        assert measure.mass(-np.inf, np.nextafter(t, -np.inf)) < q
    assert measure.quantile(0) == measure.nodes[0]
    assert measure.quantile(1) == measure.nodes[-1]


@pytest.mark.parametrize("scale", SCALES)
def test_trace_norm_and_moments_are_those_of_the_eigenvalues(scale):
    eigenvalues = scale * EIGENVALUES
    measure = exact(eigenvalues)
    assert measure.trace == pytest.approx(eigenvalues.sum(), rel=1e-14)
    assert measure.frobenius_norm == pytest.approx(np.linalg.norm(eigenvalues), rel=1e-14)
    assert measure.energy(-np.inf, np.inf) == pytest.approx(measure.frobenius_norm**2, rel=1e-14)
    for p in range(5):
        assert measure.moment(p) == pytest.approx((eigenvalues**p).mean(), rel=1e-14)


def test_negative_fraction_is_strict_and_takes_a_threshold():
    assert exact().negative_fraction() == pytest.approx(0.3)
    assert exact().negative_fraction(0.5) == pytest.approx(0.1)  # -0.5 itself is not below
    assert exact().negative_fraction(2.0) == 0


def test_effective_dimension_clips_and_says_so():
    positive = np.maximum(EIGENVALUES, 0)
    with pytest.warns(UserWarning, match=r"0\.3 of the eigenvalues are negative \(down to -2\)"):
        value = exact().effective_dimension(0.1)
    assert value == pytest.approx((positive / (positive + 0.1)).sum(), rel=1e-14)


def test_effective_dimension_of_a_positive_spectrum_is_silent(recwarn):
    eigenvalues = np.array([0.0, 0.5, 2.0])
    assert exact(eigenvalues).effective_dimension(0.5) == pytest.approx(0.5 + 0.8)
    assert not recwarn.list


def test_log_determinant_is_exact_or_refused():
    expected = np.log(EIGENVALUES + 2.5).sum()
    assert exact().log_determinant(2.5) == pytest.approx(expected, rel=1e-14)
    for damping in (0.0, 2.0):  # at 2 the smallest eigenvalue becomes exactly 0
        with pytest.raises(InputError, match=r"lambda_min = -2.*use damping > 2$"):
            exact().log_determinant(damping)


@pytest.mark.parametrize("c", [1e-8, 1e8])
def test_rescaling_the_loss_rescales_every_query(c):
    one, scaled = noisy(), noisy(scale=c)
    t, sigma2 = np.linspace(-2, 2, 11), 0.02
    np.testing.assert_allclose(c * scaled.density(c * t, c * c * sigma2), one.density(t, sigma2))
    np.testing.assert_allclose(c * scaled.density(c * t), one.density(t))
    np.testing.assert_allclose(scaled.grid() / c, one.grid(), rtol=1e-12)
    assert scaled.mass(-c / 2, c) == pytest.approx(one.mass(-0.5, 1), rel=1e-13)
    assert scaled.quantile(0.4) == pytest.approx(c * one.quantile(0.4), rel=1e-13)
    assert scaled.trace == pytest.approx(c * one.trace, rel=1e-12)
    assert scaled.frobenius_norm == pytest.approx(c * one.frobenius_norm, rel=1e-13)
    assert scaled.log_determinant(3 * c) == pytest.approx(
        one.log_determinant(3) + one.n * math.log(c), rel=1e-12
    )
    for query, args, factor in [
        ("trace", (), c),
        ("frobenius_norm", (), c),
        ("moment", (2,), c * c),
    ]:
        error = scaled.standard_error(query, *args)
        assert error == pytest.approx(factor * one.standard_error(query, *args), rel=1e-12)


# -- standard errors ---------------------------------------------------------------------------


def test_standard_errors_are_the_scatter_of_the_probes():
    m = noisy()
    n, x, w = m.n, m.nodes, m.weights
    inside = (x >= -0.5) & (x <= 1)
    positive = np.maximum(x, 0)
    per_probe = {
        ("mass", -0.5, 1): w @ inside,
        ("count", -0.5, 1): n * (w @ inside),
        ("moment", 3): w @ x**3,
        ("energy", -0.5, 1): n * (w @ (x**2 * inside)),
        ("trace",): n * (w @ x),
        ("effective_dimension", 0.3): n * (w @ (positive / (positive + 0.3))),
        ("negative_fraction", 0.2): w @ (x < -0.2),
        ("log_determinant", 4.0): n * (w @ np.log(x + 4)),
    }
    for (query, *args), values in per_probe.items():
        assert m.standard_error(query, *args) == pytest.approx(by_hand(values), rel=1e-12), query
    gauss = np.exp(-((0.3 - x) ** 2) / 0.02) / math.sqrt(0.02 * math.pi)
    assert m.standard_error("density", 0.3, 0.01) == pytest.approx(by_hand(w @ gauss), rel=1e-12)


def test_the_error_of_the_norm_is_that_of_its_square_by_the_delta_method():
    m = noisy(num_probes=8)
    square = m.n * (m.weights @ m.nodes**2)
    expected = by_hand(square) / (2 * m.frobenius_norm)
    assert m.standard_error("frobenius_norm") == pytest.approx(expected, rel=1e-12)


def test_the_error_of_a_quantile_is_read_off_the_error_of_the_mass():
    m, q = noisy(), 0.4
    delta = by_hand(m.weights @ (m.nodes <= m.quantile(q)))
    expected = (m.quantile(q + delta) - m.quantile(q - delta)) / 2
    assert expected > 0
    assert m.standard_error("quantile", q) == pytest.approx(expected, rel=1e-12)


def test_identical_probes_leave_no_error():
    m = noisy(num_probes=1)
    m = SpectralMeasure(m.nodes, np.repeat(m.weights, 4, axis=0), m.n, m.residuals, m.certified)
    assert m.standard_error("trace") == pytest.approx(0, abs=1e-12)


QUERIES = {
    "density": (0.3,),
    "mass": (0, 1),
    "count": (0, 1),
    "quantile": (0.5,),
    "moment": (1,),
    "energy": (0, 1),
    "trace": (),
    "frobenius_norm": (),
    "effective_dimension": (1.0,),
    "negative_fraction": (),
    "log_determinant": (5.0,),
}


@pytest.mark.parametrize("query", QUERIES)
def test_one_probe_cannot_know_its_error(query):
    assert np.isnan(noisy(num_probes=1).standard_error(query, *QUERIES[query]))
    assert np.isfinite(noisy(num_probes=2).standard_error(query, *QUERIES[query]))


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda m: m.mass(1, 0), r"interval \[1, 0\].*lower end"),
        (lambda m: m.mass(math.nan, 0), r"interval \[nan, 0\]"),
        (lambda m: m.quantile(1.5), r"quantile\(1\.5\).*\[0, 1\]"),
        (lambda m: m.quantile(math.nan), r"quantile\(nan\)"),
        (lambda m: m.moment(-1), r"moment\(-1\).*whole number"),
        (lambda m: m.moment(0.5), r"moment\(0\.5\).*whole number"),
        (lambda m: m.density(0.0, 0.0), r"sigma2=0\.0.*positive"),
        (lambda m: m.density(0.0, math.nan), r"sigma2=nan.*positive"),
        (lambda m: m.effective_dimension(0.0), r"damping=0\.0.*positive"),
        (lambda m: m.negative_fraction(-1.0), r"threshold=-1\.0.*at least 0"),
        (lambda m: m.standard_error("support"), r"'support'; expected one of .*density.*trace"),
    ],
)
def test_questions_without_an_answer_are_refused_on_one_line(ask, message):
    with pytest.raises(InputError, match=message) as caught:
        ask(noisy())
    assert "\n" not in str(caught.value)


def test_arrays_that_do_not_belong_together_are_refused():
    m = noisy()
    with pytest.raises(InputError, match=r"weights \(30,\).*expected \(s,\), \(probes, s\)"):
        SpectralMeasure(m.nodes, m.weights[0], m.n, m.residuals, m.certified)
    with pytest.raises(InputError, match=r"residuals \(29,\)"):
        SpectralMeasure(m.nodes, m.weights, m.n, m.residuals[1:], m.certified)
    with pytest.raises(InputError, match="all of them finite"):
        SpectralMeasure(m.nodes * np.nan, m.weights, m.n, m.residuals, m.certified)
    with pytest.raises(InputError, match="at least one node"):
        SpectralMeasure(*(np.zeros(s) for s in [(0,), (1, 0)]), 3, np.zeros(0), np.zeros(0, bool))
