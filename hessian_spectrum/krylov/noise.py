"""How wrong a product is, seen in what should be symmetric."""

from __future__ import annotations

import torch
from torch import Tensor

from hessian_spectrum.operators import SymmetricOperator


def asymmetry(operator: SymmetricOperator, q: Tensor, aq: Tensor) -> float:
    """Relative error of a product, from the asymmetry of q_i^T A q_j for b unit vectors.

    An error e of A q, in no particular direction, has q_i^T e of variance |e|^2 / n, and two
    of them make an asymmetry. One small reduction; 0.0 for a single vector.
    """
    if len(q) < 2:
        return 0.0
    squares = torch.linalg.vector_norm(aq, dim=1, dtype=torch.float64).square()
    gram, squares = operator.layout.world.sum_together(q @ aq.T, squares)
    squares = squares.max().item()
    pairs = len(q) * (len(q) - 1)
    variance = (gram - gram.T).square().sum().item() / pairs
    return (variance * operator.n / 2 / squares) ** 0.5 if squares else 0.0
