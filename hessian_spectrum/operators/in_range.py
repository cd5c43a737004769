"""Operators whose eigenvalues are so large or so small that their squares are no numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.transforms import Transform

# Scaling is by a multiple of this power of two, and none within half of it: an operator that is
# multiplied again, in a run that is continued, gets the same one unless its scale is at a border.
STEP = 64


class InRange(Transform):
    """A / unit, with a power of two as the unit: 1 where entries of A v are 3e-10 to 4e9 in size.

    Krylov methods sum the squares of A v, which overflow from 1e154 on and vanish below 1e-162.
    Multiplication by a power of two rounds nothing. Results are to be multiplied by ``unit``.

    Cost: one small reduction, with the first product, which decides the unit.

    Attributes:
        unit: 1.0 before the first product.
    """

    def __init__(self, base: SymmetricOperator):
        super().__init__(base)
        self.unit = 1.0
        self._decided = self.dtype != torch.float64  # float32 has no such numbers

    @property
    def product_error(self) -> float:
        return self.base.product_error / self.unit

    def products(self, vectors: Tensor) -> Tensor:
        found = self.base.products(vectors)
        if not self._decided:
            self.unit = self._unit_of(found)
            self._decided = True
        return found if self.unit == 1.0 else found / self.unit

    def _unit_of(self, found: Tensor) -> float:
        exponents = torch.full((2,), 0.0, dtype=torch.float64, device=found.device)
        largest = found.abs().max().item() if found.numel() else 0.0
        if 0 < largest < math.inf:
            exponents[0], exponents[1] = math.frexp(largest)[1], 1.0
        # The mean over ranks of their exponents is as good as the largest, and needs no maximum.
        total, ranks = self.layout.world.sum(exponents).tolist()
        return 2.0 ** (STEP * round(total / ranks / STEP)) if ranks else 1.0
