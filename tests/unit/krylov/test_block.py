"""Block Lanczos: the recurrence, orthogonality, deflation, at every scale."""

import math

import numpy as np
import pytest
import torch
from prescribed_spectra import BULK, OUTLIERS, space_of, with_spectrum

import hessian_spectrum as hs
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.krylov import block_lanczos


def residual_of(space, matrix):
    """|Q A - T Q - E_m C Q_{m+1}| and |Q Q^T - I|, relative to the scale."""
    rank = sum(space.sizes)
    q = space.basis[:rank].double().numpy()
    known = q[: space.order]
    expected = space.t @ known
    last = space.sizes[space.num_steps - 1]
    expected[-last:] += space.off[-1] @ q[space.order :]
    error = np.abs(known @ matrix.numpy() - expected).max()
    return error / space.scale, np.abs(q @ q.T - np.eye(rank)).max()


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize(("b", "steps"), [(1, 30), (4, 12), (10, 6)])
def test_the_lanczos_relation_holds_and_the_basis_is_orthonormal_at_every_scale(scale, b, steps):
    matrix = scale * with_spectrum(torch.tensor([*BULK, *OUTLIERS]))
    space, probes = space_of(matrix, b, steps)
    error, loss = residual_of(space, matrix)
    assert error < 1e-13 and loss < 1e-13  # measured: 2e-15, 2e-15
    assert np.allclose(space.first @ space.basis[: space.sizes[0]].numpy(), probes.numpy())
    again, _ = space_of(matrix / scale, b, steps)
    nodes = (np.linalg.eigvalsh(s.t) for s in (space, again))
    np.testing.assert_allclose(next(nodes) / scale, next(nodes), atol=1e-11)
    assert space.sizes == again.sizes


def test_outliers_appear_as_often_as_they_are_eigenvalues_after_a_hundred_steps():
    spectrum = [*np.linspace(-0.01, 0.01, 400), *OUTLIERS]
    space, _ = space_of(with_spectrum(torch.tensor(spectrum)), 2, 100)
    nodes = np.linalg.eigvalsh(space.t)
    found = nodes[np.abs(nodes) > 0.1]
    np.testing.assert_allclose(found, OUTLIERS, atol=1e-12)  # 0.5 is there twice: b = 2


def test_in_float32_the_basis_stays_orthonormal_and_no_ghost_appears():
    spectrum = [*np.linspace(-0.01, 0.01, 400), *OUTLIERS]
    matrix = with_spectrum(torch.tensor(spectrum))
    space, _ = space_of(matrix, 4, 60, dtype=torch.float32)
    error, loss = residual_of(space, matrix)
    assert error < 1e-5 and loss < 1e-5  # measured: 4e-7, 1e-6
    nodes = np.linalg.eigvalsh(space.t)
    np.testing.assert_allclose(nodes[np.abs(nodes) > 0.1], OUTLIERS, atol=1e-5)


def test_a_block_shrinks_where_the_space_is_exhausted_and_the_spectrum_is_exact():
    spectrum = torch.tensor([0.0] * 17 + [1.0, 2.0, 2.0, 2.0])
    matrix = with_spectrum(spectrum)
    space, _ = space_of(matrix, 3, 21)
    assert space.is_finished
    # Of each eigenvalue as many vectors as probes can tell apart: 3, 1, 3.
    expected = [0.0] * 3 + [1.0] + [2.0] * 3
    np.testing.assert_allclose(np.linalg.eigvalsh(space.t), expected, atol=1e-13)


@pytest.mark.parametrize("b", [4, 7, 50])
def test_as_many_vectors_as_the_matrix_has_find_all_of_it(b):
    spectrum = torch.linspace(-1, 2, 20)
    matrix = with_spectrum(spectrum)
    space, probes = space_of(matrix, b, 20)
    assert space.is_finished and space.order == 20
    np.testing.assert_allclose(np.linalg.eigvalsh(space.t), spectrum, atol=1e-12)
    assert np.allclose(space.first @ space.basis[: space.sizes[0]].numpy(), probes.numpy())


def test_a_zero_matrix_ends_at_once():
    space, _ = space_of(torch.zeros(9, 9), 2, 5)
    assert space.is_finished and space.num_steps == 1 and np.abs(space.t).max() == 0


def test_equal_probes_count_once():
    matrix = with_spectrum(torch.linspace(0, 1, 12))
    probes = torch.randn(2, 12, dtype=torch.float64)
    space = block_lanczos.start(hs.Dense(matrix), probes[[0, 1, 0]], 2)
    assert space.sizes == (2,)
    np.testing.assert_allclose(space.first @ space.basis[:2].numpy(), probes[[0, 1, 0]])


def test_a_product_that_is_not_finite_is_an_error():
    operator = hs.Dense(torch.eye(4, dtype=torch.float64))
    operator._columns[:] = math.nan
    with pytest.raises(FloatingPointError, match="block step 1"):
        hs.spectral_density(operator, 2, 2)


@pytest.mark.parametrize("steps", [0, 13, 2.5])
def test_steps_that_cannot_be_made_are_refused(steps):
    with pytest.raises(hs.InputError, match="num_steps"):
        block_lanczos.start(hs.Dense(torch.eye(12)), torch.randn(2, 12), steps)


# -- lean: without reorthogonalization -------------------------------------------------------------

FAR = [*np.linspace(-0.01, 0.01, 400), *OUTLIERS]


def lean_and_full(matrix, b, steps, seed=0):
    """Both after each step, and the probes."""
    operator = hs.Dense(matrix)
    probes = gaussian_probes(operator.layout, range(b), seed, torch.float64)
    lean = block_lanczos.start(operator, probes, steps, lean=True)
    full = block_lanczos.start(operator, probes, steps)
    spaces = []
    for _ in range(steps):
        lean, full = lean.step(operator), full.step(operator)
        spaces.append((lean, full))
    return spaces, probes.numpy()


def test_lean_coefficients_are_those_of_the_full_form_until_something_has_converged():
    spaces, _ = lean_and_full(with_spectrum(torch.tensor(BULK + OUTLIERS)), 3, 6)
    lean, full = spaces[2]
    np.testing.assert_allclose(lean.t, full.t, atol=1e-11)
    assert lean.sizes == full.sizes and lean.first.tolist() == full.first.tolist()
    # A block that is orthonormalized once more is the same up to a rotation.
    lean, full = spaces[-1]
    np.testing.assert_allclose(*(np.linalg.eigvalsh(s.t) for s in (lean, full)), atol=1e-11)
    assert (lean.scale, lean.noise) == pytest.approx((full.scale, full.noise), rel=1e-12)


def test_lean_holds_two_blocks_and_makes_a_third():
    steps, b = 60, 4
    spaces, _ = lean_and_full(with_spectrum(torch.tensor(FAR)), b, steps)
    for k, (lean, full) in enumerate(spaces, 1):
        assert len(lean.basis) == lean.num_vectors == 2 * b
        assert lean.window == ((k - 1) * b, (k + 1) * b)
        assert len(full.basis) == min(b * (steps + 1), len(FAR)) and full.window[0] == 0
        # The two blocks alone are orthonormal.
        gram = lean.basis @ lean.basis.T - torch.eye(2 * b).double()
        assert gram.abs().max() < 1e-13  # measured: 1e-15


def test_ghosts_share_the_weight_of_their_eigenvalue_and_the_moments_stand():
    b, steps = 4, 60
    matrix = with_spectrum(torch.tensor(FAR))
    spaces, z = lean_and_full(matrix, b, steps)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(matrix.numpy())
    operator = hs.Dense(matrix)
    measure = hs.spectral_density(operator, b, steps, estimator="lean")
    assert len(measure.nodes) == b * steps
    for value in set(OUTLIERS):
        near = np.abs(measure.nodes - value) < 1e-6
        assert near.sum() > OUTLIERS.count(value)
        exact = np.square(z @ vectors[:, np.abs(values - value) < 1e-6]).sum(1)
        np.testing.assert_allclose(measure.weights[:, near].sum(1), exact, atol=1e-6)
    # One that is still on its way weighs nothing.
    distance = np.abs(measure.nodes[:, None] - np.array(OUTLIERS)).min(axis=1)
    stray = (distance > 1e-6) & (np.abs(measure.nodes) > 0.0101)
    assert measure.weights[:, stray].max(initial=0) < 1e-12
    for p in range(8):
        exact = np.square(z @ vectors) @ values**p
        np.testing.assert_allclose(measure.weights @ measure.nodes**p, exact, rtol=1e-10)
    assert not measure.certified.any()
    full = spaces[-1][1]  # has no ghost
    assert (np.abs(np.linalg.eigvalsh(full.t)) > 0.1).sum() == len(OUTLIERS)


def test_lean_ends_where_the_space_is_exhausted():
    matrix = with_spectrum(torch.tensor([0.0] * 17 + [1.0, 2.0, 2.0, 2.0]))
    operator = hs.Dense(matrix)
    measure = hs.spectral_density(operator, 3, 21, estimator="lean")
    assert measure.rules[0].is_exact and measure.rules[0].num_steps == 3
    np.testing.assert_allclose(measure.nodes, [0.0] * 3 + [1.0] + [2.0] * 3, atol=1e-13)
    zero = hs.spectral_density(hs.Dense(torch.zeros(9, 9)), 2, 5, estimator="lean")
    assert zero.support == (0.0, 0.0)
