"""Lengths and positions of points given by weights and inner products. NumPy only."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def arc_length(points: Array) -> Array:
    """Length of a chain of points from the first to each of them, (p, d) -> (p,)."""
    with np.errstate(over="ignore"):
        steps = np.linalg.norm(np.diff(np.asarray(points, float), axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def chain_length(weights: Array, gram: Array) -> Array:
    """Length of a chain of points from the first to each of them, (p,).

    Point i is origin + weights[i] @ edges.

    Args:
        weights: (p, k).
        gram: (k, k), inner products of the edges.
    """
    steps = np.diff(weights, axis=0)
    squares = np.einsum("pj,jk,pk->p", steps, gram, steps)
    return np.concatenate([[0.0], np.cumsum(np.sqrt(np.maximum(squares, 0.0)))])


def plane_positions(weights: Array, gram: Array) -> Array:
    """Coordinates of the points weights @ edges in an orthonormal basis of their plane, (p, 2).

    The first axis is along edge 0. The second coordinate of edge 1 is at least 0.

    Args:
        weights: (p, 2).
        gram: (2, 2), inner products of the edges.
    """
    length = np.sqrt(max(gram[0, 0], 0.0))
    along = gram[0, 1] / length if length else 0.0
    across = np.sqrt(max(gram[1, 1] - along**2, 0.0))
    return weights @ np.array([[length, 0.0], [along, across]])
