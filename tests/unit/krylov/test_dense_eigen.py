"""Small decompositions are right also where LAPACK's divide and conquer does not converge."""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from numpy.linalg import LinAlgError

import hessian_spectrum as hs
from hessian_spectrum.krylov import dense_eigen

EPS = np.finfo(np.float64).eps


def graded(k, smallest, seed=0):
    """Symmetric, with entries that fall from 1 to ``smallest`` away from the diagonal."""
    rng = np.random.default_rng(seed)
    sizes = smallest ** (np.abs(np.subtract.outer(np.arange(k), np.arange(k))) / (k - 1))
    a = rng.standard_normal((k, k)) * sizes
    return a + a.T


def not_converging(*args, **kwargs):
    raise LinAlgError("Eigenvalues did not converge")


@pytest.fixture
def without_divide_and_conquer(monkeypatch):
    for name in ("eigh", "svd", "lstsq"):
        monkeypatch.setattr(np.linalg, name, not_converging)


@pytest.mark.parametrize("scale", [1e-160, 1.0, 1e160])
@pytest.mark.parametrize("smallest", [1e-2, 1e-34, 1e-150])
def test_eigenpairs_without_divide_and_conquer(scale, smallest, without_divide_and_conquer):
    a = scale * graded(32, smallest)
    values, v = dense_eigen.eigh(a)
    assert (np.diff(values) >= 0).all()
    assert np.abs(a @ v - v * values).max() <= 100 * EPS * np.abs(values).max()
    assert np.abs(v.T @ v - np.eye(32)).max() <= 100 * EPS


def test_a_method_that_fails_is_followed_by_the_next(monkeypatch, without_divide_and_conquer):
    a, whole = graded(12, 1e-30), scipy.linalg.eigh
    tried = []

    def only_the_last(matrix, driver, **options):
        tried.append(driver)
        return whole(matrix, driver=driver, **options) if driver == "evx" else not_converging()

    monkeypatch.setattr(scipy.linalg, "eigh", only_the_last)
    values, v = dense_eigen.eigh(a)
    assert tried == ["ev", "evr", "evx"]
    assert np.abs(a @ v - v * values).max() <= 100 * EPS * np.abs(values).max()


def test_values_that_are_not_finite_count_as_failure(monkeypatch):
    a = graded(12, 1e-30)
    monkeypatch.setattr(np.linalg, "eigh", lambda a: (np.full(12, np.nan), np.eye(12)))
    values, v = dense_eigen.eigh(a)
    assert np.abs(a @ v - v * values).max() <= 100 * EPS * np.abs(values).max()


@pytest.mark.parametrize("full", [True, False])
def test_singular_values_without_divide_and_conquer(full, without_divide_and_conquer):
    a = graded(9, 1e-20)[:, :4]
    u, lengths, vh = dense_eigen.svd(a, full=full)
    assert u.shape == (9, 9 if full else 4)
    assert np.abs(u[:, :4] * lengths @ vh - a).max() <= 100 * EPS * lengths[0]


def test_least_squares_of_less_than_full_rank_without_divide_and_conquer(
    without_divide_and_conquer,
):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((9, 2)) @ rng.standard_normal((2, 4))
    b = rng.standard_normal((9, 3))
    expected = scipy.linalg.pinv(a) @ b  # the shortest of all that fit as well
    assert np.abs(dense_eigen.least_squares(a, b) - expected).max() <= 1e-12


@pytest.mark.parametrize("solve", [dense_eigen.eigh, dense_eigen.svd])
def test_a_matrix_that_is_not_finite_is_an_error(solve):
    with pytest.raises(FloatingPointError, match="3 x 3, holds a NaN"):
        solve(np.full((3, 3), np.nan))


def test_no_other_module_calls_a_method_that_may_not_converge():
    root = Path(hs.__file__).parent
    calls = re.compile(r"linalg\.(eig\w*|svd\w*|lstsq|pinv\w*|matrix_rank|cond)\(")
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if calls.search(path.read_text())
    }
    assert found == {"krylov/dense_eigen.py"}
