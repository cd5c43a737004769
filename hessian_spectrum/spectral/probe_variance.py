"""How much answers of independent random probes vary, by the spectrum that they see. NumPy only.

A few probes do not show their variance where few eigenvalues have most of an answer: that of one
eigenvalue is chi-squared with one degree of freedom for each probe, and where all probes happen to
see little of it, they also scatter little. But the variance is known: for z uniform on the sphere

    Var(z^T F z) = 2 / (n + 2) (tr F^2 / n - (tr F / n)^2),

and with F = f(A) both traces are integrals over the spectral measure.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hessian_spectrum.spectral.atoms import Atoms
from hessian_spectrum.spectral.functionals import (
    OF_MEASURE,
    MeasureQuery,
    at_nodes,
    evaluate,
    per_probe,
)
from hessian_spectrum.spectral.quadrature import Array

NODES = 64  # whose values are held at once


def on_the_sphere(measure: Atoms, row: MeasureQuery, *args: Any) -> Array | float:
    """Standard error of a query's mean over independent probes on the sphere.

    Of a query that is a function of another one's answer, by the delta method.

    Cost: O(nodes * points).
    """
    if row.square is not None:
        norm, (name, at) = evaluate(measure, row.name, *args), row.square
        return on_the_sphere(measure, OF_MEASURE[name], *at) / (2 * norm) if norm else 0.0
    mean = per_probe(measure, row, *args).mean(axis=0)
    variance, weights = np.zeros_like(mean), measure.weights.mean(axis=0)
    for start in range(0, len(weights), NODES):
        here = slice(start, start + NODES)
        away = at_nodes(measure, row, *args, here=here) - mean
        variance = variance + np.tensordot(weights[here], away**2, 1)
    return np.sqrt(2 * variance / (measure.n + 2) / measure.num_probes)
