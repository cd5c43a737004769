"""Both ends of a spectrum, cold and warm, against prescribed eigenvalues."""

import numpy as np
import pytest
import torch
from prescribed_spectra import with_spectrum

import hessian_spectrum as hs
from hessian_spectrum.krylov.extremal import Extremes, extremes

BULK = torch.linspace(-0.1, 0.1, 60, dtype=torch.float64)
EIGENVALUES = torch.cat([torch.tensor([-0.7, -0.5]).double(), BULK, torch.tensor([1.0, 2.0])])


def check(found, low, high, tol):
    scale = max(abs(low), abs(high))
    error = np.abs(found.values - (low, high))
    assert found.converged
    assert (found.residuals <= tol * scale).all()
    assert (error <= found.residuals + 1e-14 * scale).all()


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_both_ends_are_found_with_true_residuals(scale):
    matrix = scale * with_spectrum(EIGENVALUES)
    found = extremes(hs.Dense(matrix), tol=1e-6)
    check(found, -0.7 * scale, 2.0 * scale, 1e-6)
    true = found.vectors @ matrix - torch.tensor(found.values)[:, None] * found.vectors
    np.testing.assert_allclose(true.norm(dim=1), found.residuals, rtol=1e-3, atol=1e-13 * scale)
    assert found.products < 30


def test_a_warm_start_nearby_takes_fewer_products():
    crowded = torch.linspace(-0.6, 1.8, 150, dtype=torch.float64)
    matrix = with_spectrum(torch.cat([torch.tensor([-0.7, 2.0]).double(), crowded]))
    cold = extremes(hs.Dense(matrix), tol=1e-6)
    moved = matrix + 1e-4 * with_spectrum(torch.linspace(-1, 1, len(matrix)), seed=1)
    found = extremes(hs.Dense(moved), cold, tol=1e-6)
    exact = torch.linalg.eigvalsh(moved)
    check(found, exact[0].item(), exact[-1].item(), 1e-6)
    assert found.products < 0.8 * extremes(hs.Dense(moved), tol=1e-6).products


def test_a_warm_start_that_cannot_see_the_ends_finds_them():
    """Two exact eigenvectors from inside: they span an invariant space without the ends."""
    diagonal = torch.diag(EIGENVALUES)
    inside = torch.eye(len(diagonal), dtype=torch.float64)[[20, 30]]
    warm = Extremes(diagonal.diagonal()[[20, 30]].numpy(), np.zeros(2), inside, 0, True)
    check(extremes(hs.Dense(diagonal), warm, tol=1e-6), -0.7, 2.0, 1e-6)


@pytest.mark.parametrize("new", [-0.8, 2.3])
def test_a_new_end_is_found_from_exact_old_ones(new):
    """An eigenvalue that came up orthogonal to both old eigenvectors, which are still exact."""
    values = EIGENVALUES.clone()
    values[30] = new
    ends = torch.eye(len(values), dtype=torch.float64)[[0, -1]]
    warm = Extremes(np.array([-0.7, 2.0]), np.zeros(2), ends, 0, True)
    check(extremes(hs.Dense(torch.diag(values)), warm), min(new, -0.7), max(new, 2.0), 1e-5)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_largest_alone_takes_fewer_products(scale):
    """Warm and cold; the lower end, which is crowded, does not have to converge."""
    values = torch.cat([torch.linspace(-5.0, 1.0, 150), torch.tensor([2.0])]).double()
    matrix = scale * with_spectrum(values)
    both = extremes(hs.Dense(matrix), tol=1e-6)
    for warm in (None, extremes(hs.Dense(matrix), tol=1e-3, largest_only=True)):
        found = extremes(hs.Dense(matrix), warm, tol=1e-6, largest_only=True)
        assert found.values.shape == found.residuals.shape == (1,) and found.converged
        assert abs(found.values[0] - 2.0 * scale) <= found.residuals[0] <= 5e-6 * scale
        true = found.vectors[0] @ matrix - found.values[0] * found.vectors[0]
        np.testing.assert_allclose(true.norm(), found.residuals[0], rtol=1e-3)
        assert found.products < 0.7 * both.products


def test_restarts_bound_the_memory():
    found = extremes(hs.Dense(with_spectrum(EIGENVALUES)), tol=1e-4, max_steps=8)
    check(found, -0.7, 2.0, 1e-4)
    assert found.products > 8


def test_what_has_not_converged_says_so():
    found = extremes(hs.Dense(with_spectrum(EIGENVALUES)), tol=1e-6, max_products=5)
    assert not found.converged
    assert found.products == 5
    assert (found.residuals > 1e-6 * 2.0).any()


@pytest.mark.parametrize(
    "eigenvalues", [[0.0, 0.0, 0.0], [3.0], [-1.0, 1.0], [2.0, 2.0, 2.0, -1.0]]
)
def test_small_and_degenerate_matrices(eigenvalues):
    found = extremes(hs.Dense(with_spectrum(torch.tensor(eigenvalues))))
    assert found.converged
    np.testing.assert_allclose(found.values, [min(eigenvalues), max(eigenvalues)], atol=1e-12)


def test_nonsense_is_refused():
    with pytest.raises(hs.InputError, match="tol=0"):
        extremes(hs.Dense(torch.eye(3)), tol=0)
    operator = hs.Dense(torch.eye(3))
    operator.products = lambda v: v * torch.nan
    with pytest.raises(FloatingPointError):
        extremes(operator)
