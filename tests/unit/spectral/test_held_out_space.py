"""The complement of some probes' Krylov space, against an orthonormal basis formed in full."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from hessian_spectrum.spectral.held_out_space import HeldOutSpace
from hessian_spectrum.spectral.quadrature import BlockRule

rng = np.random.default_rng(5)


def block_rule(b, m):
    """A random block Jacobi matrix, and the block that leads out of it."""
    t = np.zeros((b * m, b * m))
    for k in range(m):
        here = slice(k * b, (k + 1) * b)
        a = rng.normal(size=(b, b))
        t[here, here] = a + a.T
        if k + 1 < m:
            after = slice((k + 1) * b, (k + 2) * b)
            t[after, here] = np.triu(rng.normal(size=(b, b))) + 2 * np.eye(b)
            t[here, after] = t[after, here].T
    return BlockRule(t, rng.normal(size=(b, b)), np.eye(b), m)


def krylov(t, starts, steps):
    """Orthonormal rows of the Krylov space after so many steps; each orthogonalized three times."""
    basis, rows = np.empty((0, len(t))), starts
    for _ in range(steps):
        for _ in range(3):
            rows = np.linalg.qr((rows - (rows @ basis.T) @ basis).T)[0].T
        basis, rows = np.concatenate([basis, rows]), rows @ t
    return basis


@pytest.mark.parametrize("b, m, held", [(4, 6, 1), (5, 20, 2), (2, 12, 1), (3, 2, 1)])
def test_it_is_the_complement_and_remembers_the_last_steps(b, m, held):
    rule = block_rule(b, m)
    unknown, gained = HeldOutSpace(rule, 3).unknown_to(rule.starts[held:])
    vectors = rule.eigen[1]
    rows = np.concatenate([unknown, *gained]) @ vectors.T
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-12)

    steps = m - 1
    known = krylov(rule.t, rule.starts[held:], steps)
    assert len(unknown) == len(rule.t) - len(known)
    np.testing.assert_allclose(known @ (unknown @ vectors.T).T, 0, atol=1e-10)
    for back, rows in enumerate(reversed(gained)):
        if back < steps:
            before = krylov(rule.t, rule.starts[held:], steps - back - 1)
            after = krylov(rule.t, rule.starts[held:], steps - back)
            rows = rows @ vectors.T
            assert len(rows) == len(after) - len(before)
            assert subspace_angles(np.concatenate([before, rows]).T, after.T).max() < 1e-7


def test_a_space_that_is_whole_before_the_last_step_gains_nothing_more():
    t = np.diag(np.repeat([1.0, 2.0, 3.0], 2))
    # Two probes see three eigenvalues: T is of order 6 after three steps, which is exact.
    starts = rng.normal(size=(2, 6))
    basis = krylov(t, starts, 3)
    inside = basis @ t @ basis.T
    rule = BlockRule(
        np.where(abs(inside) > 1e-12, inside, 0), (starts @ basis.T)[:, :2], np.zeros((2, 0)), 3
    )
    unknown, gained = HeldOutSpace(rule, 2).unknown_to(rule.starts[:1])
    assert rule.is_exact and len(unknown) == 3 and [len(rows) for rows in gained] == [0, 0]
