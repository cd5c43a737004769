"""The stated residual of a damped system includes what float32 adds to it."""

import numpy as np
import pytest
import torch

import hessian_spectrum as hs
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import World
from hessian_spectrum.operators.base import SymmetricOperator

N = 300


def matrix():
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))[0]
    a = (q * torch.linspace(0.01, 1, N, dtype=torch.float64)) @ q.T
    return ((a + a.T) / 2).float()


class Products(SymmetricOperator):
    """A matrix in float32 without products in float64."""

    def __init__(self, a):
        self.a, self.dtype = a, a.dtype
        self.layout = Layout.of_size(len(a), World())

    def products(self, vectors):
        return vectors @ self.a


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("kind", [hs.Dense, Products])
def test_the_residual_is_the_true_one_or_more(kind, damping):
    a, b = matrix(), torch.ones(N)
    found = hs.solve(kind(a), b, damping, tol=1e-9, max_steps=200)
    exact = a.double() + damping * torch.eye(N, dtype=torch.float64)
    residual = (b.double() - exact @ found.x.double()).norm() / b.double().norm()
    if kind is hs.Dense:  # computed in float64
        assert found.residual == pytest.approx(residual.item(), rel=1e-6)
    else:
        assert residual.item() <= found.residual < 20 * residual.item()
    assert not found.converged and residual > 1e-8


def test_in_float64_one_product_is_taken():
    a = matrix().double()
    found = hs.solve(hs.Dense(a), torch.ones(N), 0.1, tol=1e-10)
    x = np.linalg.solve(a.numpy() + 0.1 * np.eye(N), np.ones(N))
    assert found.converged and np.linalg.norm(found.x.numpy() - x) < 1e-8 * np.linalg.norm(x)


@pytest.mark.parametrize("scale", [1e-160, 1e-80, 1e80, 1e160])
def test_the_scale_of_the_system_does_not_matter(scale):
    a, b = matrix().double(), torch.linspace(1, 2, N, dtype=torch.float64)
    expected = hs.solve(hs.Dense(a), b, 0.1)
    before = b.clone()
    for found, factor in (
        (hs.solve(hs.Dense(a * scale), b * scale, 0.1 * scale), 1.0),
        (hs.solve(hs.Dense(a * scale), b, 0.1 * scale), scale),
        (hs.solve(hs.Dense(a), b * scale, 0.1), 1 / scale),
    ):
        assert found.converged and found.num_products == expected.num_products
        np.testing.assert_allclose(found.x * factor, expected.x, rtol=1e-9)
        assert found.residual == pytest.approx(expected.residual, rel=1e-6)
    assert torch.equal(b, before)


@pytest.mark.parametrize("scale", [1e-160, 1e160])
def test_a_density_of_operators_whose_squares_are_no_numbers_is_refused(scale):
    a = hs.Dense(torch.diag(torch.linspace(-scale, scale, 60, dtype=torch.float64)))
    with pytest.raises((hs.InputError, FloatingPointError), match=r"squares|root of its range"):
        hs.spectral_density(a, 6, 8)
