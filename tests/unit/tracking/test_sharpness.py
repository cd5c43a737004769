"""The ends of a spectrum, found again where the matrix has changed little."""

import numpy as np
import pytest
import torch

import hessian_spectrum as hs
from hessian_spectrum.operators.base import Dense
from hessian_spectrum.tracking.sharpness import EndsFinder, SpareTime, ends

N, ABOVE = 120, 2.0
VALUES = np.concatenate([np.linspace(-1.0, 1.0, N - 6), [2.5, 3.0, 4.0, 5.0, 7.0, 9.0]])


class Counted(Dense):
    """A dense matrix that counts its products."""

    spent = 0

    def products(self, vectors):
        self.spent += len(vectors)
        return super().products(vectors)


def matrix(turned: float = 0.0, values: np.ndarray = VALUES) -> Counted:
    """With these eigenvalues; its eigenvectors turned by about an angle."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))[0]
    skew = torch.randn(N, N, generator=generator, dtype=torch.float64)
    q = q @ torch.linalg.matrix_exp(turned * (skew - skew.T) / N**0.5)
    return Counted((q * torch.tensor(values)) @ q.T)


def test_eigenvalues_above_a_level_are_found_again_from_those_before():
    finder = EndsFinder(1e-3, 400, 0)
    cold, near = matrix(), matrix(0.003)
    for operator in (cold, near):
        found = ends(finder, operator, 1, 1, ABOVE)
        above = found.upper[found.upper > ABOVE]
        np.testing.assert_allclose(above, VALUES[VALUES > ABOVE], rtol=1e-5)
        assert found.values[0] == pytest.approx(-1.0, abs=2e-3)
    # One search for all, with a start: not one for each number of eigenvalues.
    unknown = matrix(0.003)
    alone = EndsFinder(1e-3, 400, 0)
    alone.values = VALUES[[0, -1]]  # the scale, without vectors
    alone.several(unknown, 1, 7, ABOVE)
    assert near.spent < unknown.spent < cold.spent


def test_none_above_a_level_far_below_the_largest_is_missed():
    values = np.concatenate([np.linspace(-1, 1, N - 20), np.geomspace(1.6, 300, 20)])
    for upper in (1, 5):
        finder = EndsFinder(1e-2, 400, 0)
        for turned in (0.0, 0.002):
            found = ends(finder, matrix(turned, values), 1, upper, 1.5)
            assert (found.upper > 1.5).sum() == 20


def test_none_is_missed_where_the_largest_has_grown_since():
    values = np.concatenate([np.linspace(-1, 1, N - 20), np.geomspace(1.6, 300, 20)])
    finder = EndsFinder(1e-2, 400, 0)
    ends(finder, matrix(values=np.minimum(values, 2.0 + 1e-3 * values)), 1, 20, 1.5)
    found = ends(finder, matrix(0.3, values), 1, 20, 1.5)
    assert (found.upper > 1.5).sum() == 20


def test_one_pair_of_each_end_starts_from_the_outermost_of_more():
    finder, alone = EndsFinder(1e-3, 400, 0), EndsFinder(1e-3, 400, 0)
    finder.several(matrix(), 1, 7)
    warm, cold = matrix(0.001), matrix(0.001)
    assert finder.outermost(warm, 1).values[-1] == pytest.approx(9.0, rel=1e-5)
    assert alone.outermost(cold, 1).values[-1] == pytest.approx(9.0, rel=1e-5)
    assert warm.spent < cold.spent


def test_without_spare_time_the_largest_is_all_that_is_looked_for():
    finder = EndsFinder(1e-3, 400, 0)
    cold, none, much, again = matrix(), matrix(0.001), matrix(0.001), matrix(0.001)
    ends(finder, cold, 1, 1, ABOVE)
    spare = SpareTime(0.0)
    found = ends(finder, none, 1, 1, ABOVE, spare)
    assert len(found.upper) == 1 and spare.taken == 0
    assert found.upper[0] == pytest.approx(9.0, rel=1e-5)
    # The others are remembered: with time again they are found at once, from where they were.
    spare = SpareTime(1e6)
    assert (ends(finder, much, 1, 1, ABOVE, spare).upper > ABOVE).sum() == 6
    assert spare.taken > 0
    ends(EndsFinder(1e-3, 400, 0), again, 1, 1, ABOVE, SpareTime(1e6))
    assert much.spent < again.spent / 2


@pytest.mark.parametrize("most", [12, 30])
def test_products_end_the_search_for_more(most):
    # All eigenvalues are above the level: the search would go on to the last one.
    finder, operator = EndsFinder(1e-3, most, 0), matrix(values=VALUES + 10)
    found = ends(finder, operator, 1, 1, 2.0)
    # The products of a check of residuals are not those of the search.
    assert operator.spent <= most + 8
    assert not found.converged or len(found.upper) < N - 1
    inside = np.abs(found.values[:, None] - VALUES - 10).min(1)
    assert (inside <= found.residuals + 1e-12).all()


def test_the_level_may_rise_above_all():
    finder = EndsFinder(1e-3, 400, 0)
    ends(finder, matrix(), 1, 1, ABOVE)
    found = ends(finder, matrix(), 1, 1, 100.0)
    assert len(found.upper) == 1 and found.upper[0] == pytest.approx(9.0, rel=1e-5)
    assert isinstance(found.pairs(), hs.EigenPairs)
