"""Orthonormal rows from Gram matrices: at rounding level, whatever the block is like."""

import numpy as np
import pytest
import torch
from prescribed_spectra import with_spectrum

import hessian_spectrum as hs
from hessian_spectrum.krylov import block_gram_schmidt, block_lanczos, small_dense

K, N = 6, 400


def block_of(lengths, seed=0):
    """(k, N) with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    k = len(lengths)
    left = torch.linalg.qr(torch.randn(k, k, generator=generator).double())[0]
    right = torch.linalg.qr(torch.randn(N, k, generator=generator).double())[0]
    return left * torch.tensor(lengths, dtype=torch.float64) @ right.T


BLOCKS = {
    "even": np.ones(K),
    "graded": np.logspace(0, -12, K),
    "one short": [1, 1, 1, 1, 1, 1e-9],
    "cluster of short ones": [1, *[1e-10] * (K - 1)],
    "clusters": [1, 1, 1, 1e-4, 1e-4, 1e-4],
    "rank 3": [1, 0.5, 1e-3, 0, 0, 0],
}


def orthonormalized(rows, basis, most=N):
    """As ``block.step`` does it: rows without the basis, and what has been counted."""
    world, calls = hs.World(), []
    along = (rows @ basis.T).double()
    size = rows.double().norm(dim=1).max().item()
    known = (small_dense.gram(rows) - along @ along.T).numpy()
    tolerance = 10 * torch.finfo(rows.dtype).eps * size
    real = hs.World.sum
    try:
        hs.World.sum = lambda self, tensor: (calls.append(tensor), real(self, tensor))[1]
        r = rows - along.to(rows) @ basis
        q, out, c = block_gram_schmidt.orthonormalized(r, basis, known, world, tolerance, most)
    finally:
        hs.World.sum = real
    return q, out, along.numpy() + c, len(calls)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_are_orthonormal_and_span_what_was_given(name, dtype, scale):
    eps = torch.finfo(dtype).eps
    basis = torch.linalg.qr(torch.randn(N, 30).double())[0].T.to(dtype)
    outside = block_of(BLOCKS[name])
    outside -= outside @ basis.double().T @ basis.double()
    rows = (scale * (outside + torch.randn(K, 30).double() @ basis.double())).to(dtype)
    q, out, along, reductions = orthonormalized(rows, basis)
    every = torch.cat([basis, q]).double()
    loss = (every @ every.T - torch.eye(len(every))).abs().max().item()
    assert loss < 50 * eps  # measured: 8 eps
    again = torch.from_numpy(out) @ q.double() + torch.from_numpy(along) @ basis.double()
    size = rows.double().norm(dim=1).max().item()
    assert (again - rows.double()).abs().max() < 10 * eps * size  # measured: 0.4 eps
    lengths = np.linalg.svd(outside.numpy(), compute_uv=False)
    known = (lengths > 100 * eps * size / scale).sum()
    possible = (lengths > eps * size / scale).sum()
    assert known <= len(q) <= max(possible, known)
    assert np.linalg.svd(out, compute_uv=False)[:known] == pytest.approx(
        scale * lengths[:known], rel=0.05, abs=20 * eps * size
    )
    assert reductions <= 2
    if name == "even" or (name == "clusters" and dtype == torch.float64):
        assert reductions == 1


def test_no_more_than_there_is_room_for_are_kept_and_they_are_the_longest():
    rows = block_of(np.logspace(0, -3, K))
    q, out, _, reductions = orthonormalized(rows, rows[:0], most=4)
    assert len(q) == 4 and reductions == 2
    assert np.linalg.svd(out, compute_uv=False) == pytest.approx(np.logspace(0, -3, K)[:4])


@pytest.mark.parametrize("seed", range(3))
def test_a_large_block_keeps_as_many_rows_as_its_rank(seed):
    """Shifted factors lengthen rounding: what counts is the length that is measured after them."""
    rows = block_of([*np.ones(10), *np.zeros(70)], seed)
    q, out = block_gram_schmidt.orthonormal(rows, hs.World(), N)
    assert len(q) == 10  # 80 without
    assert (torch.from_numpy(out) @ q - rows).abs().max() < 1e-14  # measured: 1e-15


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_are_nearly_in_the_basis_are_of_unit_length(seed):
    """Rounding along the basis, of short rows much, is taken from their Gram matrix."""
    torch.manual_seed(seed)
    eps, dim = torch.finfo(torch.float32).eps, 300
    basis = torch.linalg.qr(torch.randn(N, dim).double())[0].T.float()
    outside = block_of(np.full(K, 1600 * eps * dim**0.5), seed)  # short, but not for a third pass
    outside -= outside @ basis.double().T @ basis.double()
    rows = (outside + torch.randn(K, dim).double() @ basis.double()).float()
    q = block_gram_schmidt.extension(rows, basis, hs.World(), 0.0, 0.0, N).rows
    assert len(q) == K
    every = torch.cat([basis, q]).double()
    loss = (every @ every.T - torch.eye(len(every))).abs().max().item()
    assert loss < 10 * eps  # measured: 1 eps; 90 eps and more without


def test_a_third_pass_is_made_where_directions_are_short_and_only_there():
    assert [
        orthonormalized(block_of(x), torch.zeros(0, N).double())[3] for x in BLOCKS.values()
    ] == [
        1,  # even
        2,  # graded
        1,  # one short: 1e-9 is known from a Gram matrix that nothing was subtracted from
        2,
        1,
        2,
    ]


def test_factors_are_those_of_lapack():
    rows = np.random.default_rng(0).standard_normal((9, 9))
    a = rows @ rows.T
    lower = small_dense.cholesky(a)
    np.testing.assert_allclose(lower, np.linalg.cholesky(a), atol=1e-12)
    inverse = np.linalg.norm(np.linalg.inv(lower))
    assert small_dense.smallest(lower) == pytest.approx(1 / inverse, rel=1e-12)
    np.testing.assert_allclose(small_dense.product(rows, a), rows @ a, atol=1e-12)
    assert small_dense.cholesky(-a) is None
    shifted = small_dense.shifted_cholesky(np.ones((4, 4)), 1e-16)
    np.testing.assert_allclose(shifted @ shifted.T, np.ones((4, 4)), atol=1e-12)


@pytest.mark.parametrize("k", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("lengths", ["even", "graded", "deficient"])
def test_jacobis_rotations_give_the_singular_values(k, lengths):
    values = {"even": np.ones(k), "graded": np.logspace(0, -14, k), "deficient": np.arange(k) % 2}
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.standard_normal((k, k)))[0] for _ in range(2))
    b = left * values[lengths] @ right
    p, found, z = small_dense.singular(b)
    np.testing.assert_allclose(found, np.sort(values[lengths])[::-1], atol=3e-15 * max(k, 1))
    np.testing.assert_allclose(p * found @ z.T, b, atol=3e-14)
    np.testing.assert_allclose(z.T @ z, np.eye(k), atol=3e-14)


def test_gram_matrices_of_single_precision_are_sums_in_double(monkeypatch):
    monkeypatch.setattr(small_dense, "COLUMNS", 7)
    rows = torch.randn(3, 100)
    expected = rows.double() @ rows.double().T
    torch.testing.assert_close(small_dense.gram(rows), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_space_beside_large_outliers_stays_orthonormal(dtype):
    """Residuals a million times shorter than products: what Pythagoras cannot see."""
    bulk = (
        np.linspace(-1e-6, 1e-6, 200) if dtype == torch.float64 else np.linspace(-1e-4, 1e-4, 200)
    )
    matrix = with_spectrum(torch.tensor([*bulk, 1.0, 2.0, 3.0])).to(dtype)
    operator = hs.Dense(matrix)
    space = block_lanczos.start(operator, torch.randn(4, len(matrix), dtype=dtype), 25)
    for _ in range(25):
        space = space.step(operator)
    q = space.basis.double()
    assert space.sizes == (4,) * 26
    loss = (q @ q.T - torch.eye(len(q))).abs().max().item()
    assert loss < 30 * torch.finfo(dtype).eps  # measured: 6 eps
