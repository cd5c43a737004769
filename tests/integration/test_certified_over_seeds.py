"""Certified weights are unbiased over hundreds of seeds."""

import numpy as np
import pytest
from diagonal_operators import SPECTRA, N, Noisy, check_mean, rng, rules

import hessian_spectrum as hs
from hessian_spectrum.spectral.held_out_probes import certified

CLUSTERS = {
    "a multiplicity": np.full(40, 1.0),  # of which five probes know five
    "a cluster": 1 + np.linspace(-0.08, 0.08, 40),  # of which they know the ends
}


# After 12 steps rounding alone leads to further eigenvectors of a multiplicity.
@pytest.mark.parametrize(
    ("m", "name"), [(6, "a cluster"), (6, "a multiplicity"), (12, "a multiplicity")]
)
def test_the_measure_is_unbiased_where_a_cluster_is_half_resolved(m, name):
    exact = np.r_[0.002 * rng().standard_normal(N - 40), CLUSTERS[name]]
    found = []
    for rule in rules(exact, 6, m, 60):
        measure = certified(rule, N)
        found.append([measure.count(0.9, 1.1), measure.trace, measure.moment(2)])
    error = check_mean(found, [40, exact.sum(), np.mean(exact**2)])
    assert error[0] < 1.5


def test_noisy_products_leave_the_measure_unbiased():
    """Relative noise of 1e-2, in directions that are not known to be real."""
    exact = SPECTRA["outliers"]
    measures = [hs.spectral_density(Noisy(exact, seed), 6, 10, seed) for seed in range(60)]
    found = [[m.count(0.2, 4), m.count(-1, -0.2), m.trace] for m in measures]
    # No theorem forbids a bias of the order of the noise's square, 1e-4; measured: 3e-6.
    check_mean(found, [7, 1, sum(exact)], slack=1e-5)
    # The square of the noise is in A^2: a ten thousandth of it, and more where A is small.
    assert np.mean([m.moment(2) for m in measures]) == pytest.approx(np.mean(exact**2), rel=1e-3)
    assert min(m.residuals.min() for m in measures) > 1e-3
