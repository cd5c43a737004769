"""Gauss quadrature and the density estimate: exactness, moments, invariances."""

import numpy as np
import pytest
import torch
from prescribed_spectra import marchenko_pastur, with_spectrum

import hessian_spectrum as hs
from hessian_spectrum.algorithms import spectral_density as spectrum
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.spectral.quadrature import BlockRule


def test_the_gauss_rule_of_the_legendre_recurrence_is_that_of_legendre():
    k = np.arange(1, 13)
    beta = k / np.sqrt(4.0 * k**2 - 1)
    t = np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    rule = BlockRule(t, np.ones((1, 1)), beta[None, -1:], num_steps=12)
    measure = hs.SpectralMeasure.of_rules([rule], n=100)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    np.testing.assert_allclose(measure.nodes, nodes, atol=1e-14)
    np.testing.assert_allclose(measure.weights[0], weights / 2, atol=1e-14)


def test_quadrature_is_exact_to_degree_2m_minus_1_for_each_probe():
    matrix, m = marchenko_pastur(), 6
    operator = hs.Dense(matrix)
    measure = hs.spectral_density(operator, 3, m, seed=5, estimator="slq")
    z = gaussian_probes(operator.layout, range(3), 5, torch.float64)
    z = z / z.norm(dim=1, keepdim=True)
    power = z.clone()
    for p in range(2 * m + 1):
        exact = (z * power).sum(1).numpy()
        estimate = measure.weights @ measure.nodes**p
        error = np.abs(estimate / exact - 1).max()
        assert error < 1e-11 if p < 2 * m else error > 1e-8
        power = power @ matrix


@pytest.mark.parametrize("estimator", ["block", "slq", "lean"])
def test_moments_lie_within_three_standard_errors(estimator):
    matrix = marchenko_pastur()
    values = torch.linalg.eigvalsh(matrix).numpy()
    measure = hs.spectral_density(hs.Dense(matrix), 10, 12, seed=1, estimator=estimator)
    for p in range(1, 5):
        exact = np.mean(values**p)
        error = abs(measure.moment(p) - exact)
        # A block that spans the space knows the moments to rounding.
        assert error < 3 * measure.standard_error("moment", p) + 1e-13 * exact
    error = abs(measure.trace - values.sum())
    assert error < 3 * measure.standard_error("trace") + 1e-13 * values.sum()
    norm = np.linalg.norm(values)
    error = abs(measure.frobenius_norm - norm)
    assert error < 3 * measure.standard_error("frobenius_norm") + 1e-13 * norm
    assert measure.mass(-np.inf, np.inf) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("estimator", ["block", "slq"])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scaling_the_operator_scales_the_answer_and_changes_nothing_else(scale, estimator):
    matrix = marchenko_pastur()
    plain, scaled = (
        hs.spectral_density(hs.Dense(s * matrix), 4, 100, estimator=estimator) for s in (1.0, scale)
    )
    assert plain.nodes.shape == scaled.nodes.shape  # breakdown at the same steps
    np.testing.assert_allclose(scaled.nodes, scale * plain.nodes, atol=1e-10 * scale)
    t = np.linspace(-1, 5, 50)
    np.testing.assert_allclose(
        scaled.density(scale * t, 1e-2 * scale**2) * scale, plain.density(t, 1e-2), rtol=1e-7
    )


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scaling_the_loss_of_a_network_scales_its_spectrum(scale):
    x, y = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
    ).double()
    cross_entropy = torch.nn.functional.cross_entropy
    plain, scaled = (
        hs.spectral_density(
            hs.Hessian(hs.Evaluator(model, lambda out, y, s=s: s * cross_entropy(out, y), (x, y))),
            3,
            40,
        )
        for s in (1.0, scale)
    )
    np.testing.assert_allclose(scaled.nodes, scale * plain.nodes, atol=1e-9 * scale)


def test_extremes_are_the_ends_of_the_spectrum_within_their_residuals():
    matrix = with_spectrum(torch.cat([torch.tensor([-3.0, 7.0]), torch.rand(98)]).double())
    pairs = spectrum.extremes(hs.spectral_density(hs.Dense(matrix), 3, 25))
    exact = torch.linalg.eigvalsh(matrix)[[0, -1]].numpy()
    assert (np.abs(pairs.values - exact) <= pairs.residuals + 1e-13).all()
    assert pairs.converged.all()
    few = spectrum.extremes(hs.spectral_density(hs.Dense(marchenko_pastur()), 1, 3))
    assert not few.converged.all()
    inside = torch.linalg.eigvalsh(marchenko_pastur())[[0, -1]].numpy()
    assert few.values[0] >= inside[0] and few.values[1] <= inside[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_node_keeps_its_own_weight_and_residual_and_none_is_below_rounding(dtype):
    operator = hs.Dense(marchenko_pastur().to(dtype))
    states = []
    measure = hs.spectral_density(operator, 3, 20, estimator="slq", on_step=states.append)
    state = states[-1]
    floor = max(torch.finfo(dtype).eps, state.noise) * state.scale
    for i in range(3):
        own = measure.weights[i] > 0
        off = state.beta[i, :-1]
        t = np.diag(state.alpha[i]) + np.diag(off, 1) + np.diag(off, -1)
        nodes, vectors = np.linalg.eigh(t)
        np.testing.assert_array_equal(measure.nodes[own], nodes)
        np.testing.assert_allclose(measure.weights[i, own], vectors[0] ** 2, rtol=1e-12)
        expected = np.maximum(state.beta[i, -1] * np.abs(vectors[-1]), floor)
        np.testing.assert_allclose(measure.residuals[own], expected, rtol=1e-12)
    spread = measure.residuals.max() / measure.residuals.min()
    assert spread > 1e3  # else any order would do


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_residual_is_at_least_the_rounding_error_of_a_product(scale, dtype):
    # One step from an eigenvector ends the recurrence: its computed residual is exactly zero.
    measure = hs.spectral_density(hs.Dense(scale * torch.eye(9, dtype=dtype)), 1, 4)
    rounding = torch.finfo(dtype).eps * scale
    assert measure.residuals.tolist() == [pytest.approx(rounding, rel=1e-6)]


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_an_end_is_converged_relative_to_the_largest_absolute_eigenvalue(scale):
    nodes = scale * np.array([-1e-3, 1.0, 7.0])
    weights, certified = np.full((1, 3), 1 / 3), np.zeros(3, dtype=bool)
    for share, converged in ((0.99, True), (1.01, False)):
        # A bound for both ends, though the smaller one is far below it.
        residuals = np.full(3, share * 1e-3 * 7 * scale)
        pairs = spectrum.extremes(hs.SpectralMeasure(nodes, weights, 100, residuals, certified))
        assert pairs.converged.tolist() == [converged, converged]
        flipped = hs.SpectralMeasure(-nodes[::-1], weights, 100, residuals, certified)
        assert spectrum.extremes(flipped).converged.tolist() == [converged, converged]
        twice = spectrum.extremes(flipped, tol=2e-3)
        assert twice.converged.all()


def test_seed_and_probes_are_checked():
    with pytest.raises(hs.InputError, match="seed=-1"):
        hs.spectral_density(hs.Dense(torch.eye(3)), 1, 1, seed=-1)
    with pytest.raises(hs.InputError, match="num_probes=0"):
        hs.spectral_density(hs.Dense(torch.eye(3)), 0, 1)
