"""Lengths and positions of points given by weights and inner products. NumPy only."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def arc_length(points: Array) -> Array:
    """(p, d) -> (p,), the length of the chain from its first point to each."""
    with np.errstate(over="ignore"):
        steps = np.linalg.norm(np.diff(np.asarray(points, float), axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def chain_length(weights: Array, gram: Array) -> Array:
    """Arc length at each point of a chain: point i is weights[i] @ edges from an origin.

    Args:
        weights: (p, k).
        gram: (k, k), inner products of the edges.
    """
    steps = np.diff(weights, axis=0)
    squares = np.einsum("pj,jk,pk->p", steps, gram, steps)
    return np.concatenate([[0.0], np.cumsum(np.sqrt(np.maximum(squares, 0.0)))])


def plane_positions(weights: Array, gram: Array) -> Array:
    """(p, 2) combinations of two edges -> (p, 2), by an orthonormal basis of their plane.

    The first axis is along edge 0; edge 1 has a second coordinate of at least 0.

    Args:
        gram: (2, 2), inner products of the edges.
    """
    length = np.sqrt(max(gram[0, 0], 0.0))
    along = gram[0, 1] / length if length else 0.0
    across = np.sqrt(max(gram[1, 1] - along**2, 0.0))
    return weights @ np.array([[length, 0.0], [along, across]])
