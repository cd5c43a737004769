"""Certified weights: exact where the spectrum is resolved, unbiased everywhere, never worse."""

import numpy as np
import pytest
import torch
from conftest import with_spectrum

import hessian_spectrum as hs
from hessian_spectrum import certified
from hessian_spectrum.quadrature import BlockRule
from hessian_spectrum.krylov import block
from hessian_spectrum.layout import Layout

N = 400


class Diagonal(hs.SymmetricOperator):
    """Gaussian probes make every matrix of this spectrum equivalent."""

    def __init__(self, values, dtype=torch.float64):
        self.values = torch.as_tensor(values).to(dtype)
        self.layout, self.dtype = Layout.of_size(len(self.values)), dtype

    def products(self, vectors):
        return vectors * self.values


def rng():
    return np.random.default_rng(0)


OUTLIERS = np.array([-0.6, 0.3, 0.5, 0.8, 1.0, 1.7, 2.0, 3.0])
SPECTRA = {
    "outliers": np.r_[0.005 * rng().standard_normal(N - 8), OUTLIERS],
    "a gap": np.r_[np.linspace(-0.1, 0.1, N // 2), np.linspace(1, 1.2, N - N // 2)],
    "clusters": np.r_[np.zeros(N - 40), 1 + 1e-4 * rng().standard_normal(40)],
    "multiplicities": np.r_[np.zeros(N - 9), [0.5] * 3, [1.0] * 6],
    "all zero": np.zeros(N),
    "low rank": np.r_[np.zeros(N - 5), [1.0, 2.0, 3.0, 4.0, 5.0]],
    "power law": np.arange(1, N + 1) ** -1.2,
    "no outliers": np.sort(rng().standard_normal((N, 2 * N)) @ np.ones(2 * N)) / N,
    "Marchenko-Pastur": np.linalg.eigvalsh(np.cov(rng().standard_normal((N, 2 * N)))),
}
SIGMA2 = 1e-3


def l1(measure, exact, sigma2=SIGMA2):
    t = measure.grid(sigma2, 3000)
    true = np.exp(-((t[:, None] - exact) ** 2) / (2 * sigma2)).mean(1) / np.sqrt(2 * np.pi * sigma2)
    return np.trapezoid(np.abs(measure.density(t, sigma2) - true), t)


def rules(values, b, m, seeds):
    operator = Diagonal(values)
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(b, len(values), generator=generator, dtype=torch.float64)
        space = block.start(operator, z, m)
        while space.num_steps < m and not space.is_invariant:
            space = block.step(operator, space)
        yield BlockRule(space.t, space.first, space.off[-1], space.num_steps)


@pytest.mark.parametrize("name", SPECTRA)
def test_it_is_nowhere_worse_than_the_plain_rule_by_more_than_its_standard_error(name):
    exact = SPECTRA[name]
    plain, ours = [], []
    for rule in rules(exact, 6, 10, 12):
        plain.append(l1(certified.plain(rule, N), exact))
        ours.append(l1(certified.certified(rule, N, SIGMA2**0.5), exact))
    allowed = np.std(plain, ddof=1) / len(plain) ** 0.5
    assert np.mean(ours) <= np.mean(plain) + allowed + 1e-12


def test_outliers_weigh_exactly_one_each():
    for rule in rules(SPECTRA["outliers"], 8, 12, 3):
        measure = certified.certified(rule, N, SIGMA2**0.5)
        for value in OUTLIERS:
            assert measure.count(value - 0.01, value + 0.01) == pytest.approx(1, abs=1e-3)
        assert certified.plain(rule, N).count(0.2, 4) != pytest.approx(7, abs=0.01)
        np.testing.assert_allclose(measure.weights.sum(1), 1, atol=1e-12)
        assert measure.certified.any() and not measure.certified.all()


def test_the_measure_is_unbiased_where_a_cluster_is_half_resolved():
    """12 of 40 equal eigenvalues are seen by 6 probes in the others' space; all 40 must count."""
    exact = np.r_[0.002 * rng().standard_normal(N - 40), np.full(40, 1.0)]
    counts = [
        certified.certified(rule, N, SIGMA2**0.5).count(0.9, 1.1) for rule in rules(exact, 6, 8, 60)
    ]
    error = np.std(counts, ddof=1) / len(counts) ** 0.5
    assert abs(np.mean(counts) - 40) < 4 * error
    assert error < 1.5


def test_one_probe_is_the_plain_rule():
    rule = next(rules(SPECTRA["outliers"], 1, 20, 1))
    ours, plain = certified.certified(rule, N, 0.03), certified.plain(rule, N)
    np.testing.assert_array_equal(ours.weights, plain.weights)


def test_moments_of_the_plain_rule_are_those_of_the_probes():
    exact = SPECTRA["power law"]
    rule = next(rules(exact, 3, 5, 1))
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, N, generator=generator, dtype=torch.float64).numpy()
    measure = certified.plain(rule, N)
    for p in range(2 * 5):  # exact to degree 2m - 1
        expected = ((z**2) @ exact**p / (z**2).sum(1)).mean()
        assert measure.moment(p) == pytest.approx(expected, rel=1e-10)


def test_acceptance_is_continuous_and_full_only_for_what_is_resolved_and_off_zero():
    sigma = 0.1
    residuals = np.linspace(0, 0.1, 1001)
    share = acceptance(np.ones(1001), residuals, sigma)
    assert share[0] == 1 and share[-1] == 0
    assert np.abs(np.diff(share)).max() < 0.005 and (np.diff(share) <= 0).all()
    values = np.linspace(-0.3, 0.3, 1001)
    near = acceptance(values, np.zeros(1001), sigma)
    assert near[500] == 0 and near[0] == near[-1] == 1
    assert np.abs(np.diff(near)).max() < 0.02


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_scaling_the_operator_scales_the_measure(scale):
    matrix = with_spectrum(torch.as_tensor(SPECTRA["outliers"][-60:]))
    measure = hs.spectral_density(hs.Dense(scale * matrix), 4, 8, estimator="block")
    same = hs.spectral_density(hs.Dense(matrix), 4, 8, estimator="block")
    assert measure.certified.sum() == same.certified.sum() > 0
    np.testing.assert_allclose(measure.nodes / scale, same.nodes, atol=1e-10)
    t = same.grid()
    np.testing.assert_allclose(scale * measure.density(scale * t), same.density(t), atol=1e-7)


def test_noisy_products_certify_nothing_that_is_not_resolved():
    """Relative noise of 1e-2: residuals below it are not known to be real."""

    class Noisy(Diagonal):
        def products(self, vectors):
            exact = super().products(vectors)
            noise = torch.randn_like(exact)
            return exact + 1e-2 * exact.norm(dim=1, keepdim=True) * noise / N**0.5

    measure = hs.spectral_density(Noisy(SPECTRA["outliers"]), 6, 10, estimator="block", sigma2=1e-6)
    assert not measure.certified.any()
    assert measure.residuals.min() > 1e-3


def test_it_can_be_interrupted_and_gone_on_with():
    operator = Diagonal(SPECTRA["outliers"])
    states = []
    straight = hs.spectral_density(operator, 4, 9, estimator="block", on_step=states.append)
    assert [s.num_steps for s in states] == list(range(1, 10))
    fresh = []
    hs.spectral_density(operator, 4, 9, estimator="block", on_step=fresh.append)
    resumed = hs.spectral_density(operator, 4, 9, estimator="block", state=fresh[4])
    np.testing.assert_array_equal(resumed.nodes, straight.nodes)
    np.testing.assert_array_equal(resumed.weights, straight.weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"estimator": "kpm"}, "expected 'slq' or 'block'"), ({"sigma2": 0.0}, "more than 0")],
)
def test_what_is_no_estimator_is_refused(options, message):
    with pytest.raises(hs.InputError, match=message):
        hs.spectral_density(Diagonal(np.ones(3)), 1, 1, **options)
