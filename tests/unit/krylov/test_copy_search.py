"""The bound on a missing eigenvector's part of a random vector, against parts that are known."""

import numpy as np
import pytest
import torch

import hessian_spectrum as hs
from hessian_spectrum.krylov import copy_search, krylov_schur
from hessian_spectrum.krylov.copy_search import CopySearch
from hessian_spectrum.krylov.ritz import outside_window, ritz

N = 300
VALUES = np.linspace(-1.0, 1.0, N)


def searched(values, w, steps, capacity=None):
    """(search, Ritz pairs) after so many steps from w, restarted whenever ``capacity`` is full."""
    operator = hs.Dense(torch.diag(torch.tensor(values)))
    space = krylov_schur.start(operator, torch.tensor(w)[None], capacity or steps + 2)
    search, restarts = CopySearch(0, np.zeros(0), np.zeros(0), 0.0), 0
    for _ in range(steps):
        space = space.step(operator)
        search = search.extended(1)
        found = ritz(space.h, space.coupling, space.leak, N)
        if space.is_full:
            kept = outside_window(found.values, -np.inf, 2.0, capacity // 2)
            space = krylov_schur.restarted(space, found.coordinates[:, kept])
            search = search.restarted(found, kept[:0], kept)
            restarts += 1
            found = ritz(space.h, space.coupling, space.leak, N)
    return search, found, restarts


@pytest.mark.parametrize("capacity", [None, 12])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("mass", [1e-1, 1e-4, 1e-8])
def test_the_bound_is_at_least_the_mass_that_is_there(mass, scale, capacity):
    """An eigenvector with an eigenvalue of 1.5 that has this mass in w, before it is noticed."""
    w = np.random.default_rng(0).standard_normal(N)
    w[-1] = 0.0
    w *= np.sqrt(1 - mass) / np.linalg.norm(w)
    w[-1] = np.sqrt(mass)
    checked = 0
    for steps in range(2, 40):
        search, found, _ = searched(scale * np.r_[VALUES[:-1], 1.5], w, steps, capacity)
        if found.values[-1] < 1.4999 * scale:
            assert search.log_mass(found, 1.5 * scale) >= np.log(mass) - 1e-9
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("capacity", [None, 12])
def test_the_bound_falls_as_chebyshevs_polynomials_grow(capacity):
    """No mass beyond 1: at x the bound is at most 1 / T_m(x)^2 without restarts, and of that
    order with them."""
    w = np.random.default_rng(1).standard_normal(N)
    w /= np.linalg.norm(w)
    for steps in (10, 20, 40):
        search, found, restarts = searched(VALUES, w, steps, capacity)
        assert (restarts > 0) == (capacity is not None and steps >= capacity)
        for x in (1.1, 1.5, 3.0):
            chebyshev = -2 * np.log(np.cosh((steps - 1) * np.arccosh(x)))
            assert search.log_mass(found, x) <= (1.0 if capacity is None else 0.6) * chebyshev


def test_bounds_do_not_depend_on_the_scale_or_on_restarts_that_drop_nothing():
    w = np.random.default_rng(2).standard_normal(N)
    w /= np.linalg.norm(w)
    search, found, _ = searched(VALUES, w, 15)
    other, scaled, _ = searched(1e6 * VALUES, w, 15)
    every = np.arange(len(found.values))
    same = search.restarted(found, every[:0], every)
    turned = ritz(np.diag(found.values), np.zeros((15, 1)), np.zeros(15), N)
    assert abs(search.log_mass(found, 1.2) - other.log_mass(scaled, 1.2e6)) <= 1e-6
    assert abs(search.log_mass(found, 1.2) - same.log_mass(turned, 1.2)) <= 1e-6


def test_an_eigenvector_is_missed_as_rarely_as_stated():
    """Of 2,000 normal vectors, |u w| is below CHANCE / sqrt(n) in 0.8 CHANCE of the cases."""
    w = np.random.default_rng(3).standard_normal((20000, N))
    masses = w[:, 0] ** 2 / (w**2).sum(1)
    rare = (masses <= copy_search.CHANCE**2 / N).mean()
    assert 0.5 * copy_search.CHANCE <= rare <= 1.1 * copy_search.CHANCE
