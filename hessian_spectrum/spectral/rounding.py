"""What rounding of products and vectors adds to an answer, to first order. NumPy only.

A product with A + E in place of A changes tr f(A) / n by tr(f'(A) E) / n, at most

    (|f'(A)|_F / sqrt(n)) (|E|_F / sqrt(n)),

the root mean square of f' over the spectrum times that of |E z| over unit vectors z. Krylov vectors
that are rounded to u change the weights by as much: u times the root mean square of f.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hessian_spectrum.spectral.atoms import Atoms
from hessian_spectrum.spectral.functionals import OF_MEASURE, MeasureQuery, at_nodes, evaluate
from hessian_spectrum.spectral.quadrature import Array

STEP = 1e-7  # of the largest eigenvalue in size: difference quotients
NODES = 64  # whose values are held at once


def of_query(measure: Atoms, row: MeasureQuery, *args: Any) -> Array | float:
    """How far rounding may move the answer.

    Of a query with thresholds what moves inside them; what may cross them is in their margins.

    Cost: O(nodes * points), twice.
    """
    known = measure.arithmetic
    if known is None:
        return 0.0
    if row.square is not None:  # the delta method
        norm, (name, at) = evaluate(measure, row.name, *args), row.square
        return of_query(measure, OF_MEASURE[name], *at) / (2 * norm) if norm else 0.0
    step, weights = STEP * np.abs(measure.nodes).max() or 1.0, measure.weights.mean(axis=0)
    crossing = _crossing(measure, row, step, *args)
    slopes: Any = 0.0
    sizes: Any = 0.0
    for start in range(0, len(weights), NODES):
        here = slice(start, start + NODES)
        values = at_nodes(measure, row, *args, here=here)
        slope = (at_nodes(measure, row, *args, here=here, shift=step) - values) / step
        slope[crossing[here]] = 0.0
        slopes = slopes + np.tensordot(weights[here], slope**2, 1)
        sizes = sizes + np.tensordot(weights[here], values**2, 1)
    return known.product_error * np.sqrt(slopes) + known.vector_rounding * np.sqrt(sizes)


def _crossing(measure: Atoms, row: MeasureQuery, step: float, *args: Any) -> Array:
    """(s,), nodes that a step takes across a threshold."""
    if row.thresholds is None:
        return np.zeros(len(measure.nodes), dtype=bool)
    a, b, *_ = row.thresholds(measure, *args)
    inside, after = ((a <= nodes) & (nodes <= b) for nodes in (measure.nodes, measure.nodes + step))
    return inside != after
