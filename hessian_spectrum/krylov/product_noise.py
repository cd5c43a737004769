"""The error of products, measured by the asymmetry of a matrix that should be symmetric."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum.krylov.small_dense import inner
from hessian_spectrum.krylov.state import Array
from hessian_spectrum.operators.base import SymmetricOperator


def asymmetry(operator: SymmetricOperator, q: Tensor, aq: Tensor) -> float:
    """Relative error of a product, from the asymmetry of q_i^T A q_j for b unit vectors.

    An error e of A q, in no particular direction, has q_i^T e of variance |e|^2 / n, and two
    of them make an asymmetry. One small reduction; 0.0 for a single vector.
    """
    if len(q) < 2:
        return 0.0
    squares = torch.linalg.vector_norm(aq, dim=1, dtype=torch.float64).square()
    gram, sums = operator.layout.world.sum_together(inner(q, aq), squares)
    largest = sums.max().item()
    pairs = len(q) * (len(q) - 1)
    variance = (gram - gram.T).square().sum().item() / pairs
    return (variance * operator.n / 2 / largest) ** 0.5 if largest else 0.0


def asymmetry_of_rows(h: Array, n: int, scale: float) -> float:
    """Relative error of a product, from what a Lanczos recurrence finds where zeros should be.

    q_i^T A q_j is 0 for j > i + 1 in a space of one starting vector: what is computed of it is
    q_i^T e for the error e of A q_j, of variance |e|^2 / n.

    Args:
        h: (r, r), row j: A q_j in coordinates of the basis as it was computed.
        scale: the largest |A q|.
    """
    zeros = h[np.tril_indices(len(h), -2)]
    return float((n * np.square(zeros / scale).mean()) ** 0.5) if len(zeros) and scale else 0.0


def not_finite(operator: SymmetricOperator, where: str) -> FloatingPointError:
    """The error for a product that is not finite, with the ranks where it is not; on every rank."""
    ranks, size = operator.not_finite_on(), operator.layout.world.size
    who = f" on rank {', '.join(map(str, ranks))} of {size}" if ranks and size > 1 else ""
    return FloatingPointError(
        f"a product with the operator is not finite{who} at {where}; are the derivatives of the "
        f"loss finite at these parameters in {operator.dtype}, and below the root of its range?"
    )
