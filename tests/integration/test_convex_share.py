"""The share of a plane that is not convex, of functions for which it is known."""

import numpy as np
import pytest

import hessian_spectrum as hs
from benchmarks.studies.filter_normalization import share_not_convex

AXIS = np.linspace(-1, 1, 9)
A, B = AXIS[:, None], AXIS[None]


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 4])
@pytest.mark.parametrize(("smallest", "share"), [(2.0, 0.0), (0.0, 0.0), (-0.01, 1.0), (-3.0, 1.0)])
def test_a_quadratic_form_is_convex_where_its_smallest_eigenvalue_is_not_negative(
    angle, smallest, share
):
    u, v = np.cos(angle) * A + np.sin(angle) * B, np.cos(angle) * B - np.sin(angle) * A
    loss = 1 + 0.3 * A - B + (u**2 + smallest * v**2) / 2
    assert share_not_convex(hs.Surface(AXIS, AXIS, {"loss": loss})) == share


def test_points_beside_losses_that_are_not_finite_do_not_count():
    loss = np.where(A > 0, np.inf, A**2 - B**2)
    assert share_not_convex(hs.Surface(AXIS, AXIS, {"loss": loss})) == 1.0
    assert np.isnan(share_not_convex(hs.Surface(AXIS, AXIS, {"loss": np.full((9, 9), np.inf)})))


def test_half_of_a_cubic_is_not_convex():
    loss = A**3 + 0 * B  # second differences are those of 6 a exactly; 0 at a = 0
    assert share_not_convex(hs.Surface(AXIS, AXIS, {"loss": loss})) == 3 / 7
