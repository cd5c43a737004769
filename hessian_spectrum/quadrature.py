"""Gauss quadrature from tridiagonal matrices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh_tridiagonal


class GaussRule(NamedTuple):
    """The k-point Gauss rule of the measure that a Lanczos recurrence belongs to."""

    nodes: np.ndarray  # (k,), Ritz values, ascending
    weights: np.ndarray  # (k,), sum to 1
    residuals: np.ndarray  # (k,), |A y - node y| of the Ritz vector y


def gauss_rule(alpha: np.ndarray, beta: np.ndarray) -> GaussRule:
    """Nodes and weights of the k-point Gauss rule of T (Golub and Welsch 1969).

    The nodes are T's eigenvalues, the weights the squared first entries of its
    eigenvectors, a residual |beta_k s_k| the last entry times the coefficient that leads
    out of the space (Paige). Exact for polynomials of degree 2k - 1. O(k^2) work a node.

    Args:
        alpha: (k,), T's diagonal.
        beta: (k,), T's off-diagonal, then the coefficient beta_k that leads out of the space.
    """
    nodes, vectors = eigh_tridiagonal(alpha, beta[:-1])
    return GaussRule(nodes, vectors[0] ** 2, np.abs(beta[-1] * vectors[-1]))
