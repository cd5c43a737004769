"""The Hessian of a sharded model: products by derivatives of gathers, or by differences."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.sharded.differences import Differences
from hessian_spectrum.sharded.evaluator import ShardedEvaluator
from hessian_spectrum.sharded.product_check import chosen

Products = Literal["auto", "exact", "differences"]


class ShardedHessian(SymmetricOperator):
    """The Hessian of the mean loss of a sharded model at theta.

    **Exact** products are reverse over reverse through gathers and reduce-scatters that have second
    derivatives. **Differences** are those of two gradients, extrapolated from two steps; they need
    no second derivative and the memory of a gradient, and state their error, which residuals, bars
    and the noise floor include.

    At construction products are compared with themselves, u^T H v = v^T H u, and with a difference
    of gradients. What does not agree is not believed: "exact" is refused, and "auto" takes
    differences, and says why.

    Args:
        evaluator: the loss; its weight decay is included.
        theta: this rank's entries, (n_local,); default: the model's parameters.
        products: "exact", "differences", or "auto": exact where the model has second derivatives
            and they are right, else differences.
        max_error: differences whose stated error is a larger share of the largest product so far
            are refused; at most 0.5.

    Raises:
        InputError: there are no second derivatives, or products do not agree with differences of
            the gradient, or differences are too coarse.

    Attributes:
        kind: "exact" or "differences".
        product_error: the error of a product with a unit vector, in units of eigenvalues, that is
            stated beside rounding: 0.0 of exact ones.

    Cost of a product: exact: one first-order graph for all vectors together, for which each block
    of weights is gathered twice, and for each vector a backward pass through it, in which each is
    gathered twice more, and the vector's part and that of the result are exchanged once.
    Differences: four gradients. Both: two exchanges of n / P entries.
    Memory: exact: activations and their derivatives of a minibatch of the whole model
    (``recompute`` frees those of a forward pass); differences: those of a gradient.
    """

    def __init__(
        self,
        evaluator: ShardedEvaluator,
        theta: Tensor | None = None,
        products: Products = "auto",
        *,
        max_error: float = 0.1,
    ):
        if not isinstance(evaluator, ShardedEvaluator):
            raise InputError(
                f"ShardedHessian of a {type(evaluator).__name__}; expected a ShardedEvaluator"
            )
        if products not in ("auto", "exact", "differences"):
            raise InputError(f"products={products!r}: expected 'auto', 'exact' or 'differences'")
        if not isinstance(max_error, (int, float)) or not 0 < max_error <= 0.5:
            raise InputError(f"max_error={max_error}: expected a number above 0, at most 0.5")
        self.evaluator, self.layout, self.dtype = evaluator, evaluator.layout, evaluator.dtype
        self.theta = evaluator.checked(theta)
        self.differences = Differences(evaluator, self.theta, max_error)
        self.kind, doubts = chosen(self, products)
        evaluator.verification.unverified += doubts

    def in_float64(self) -> ShardedHessian:
        """The same matrix with products in float64, of the same kind."""
        if self.evaluator.function.compute == torch.float64:
            return self
        other = copy.copy(self)
        other.evaluator = self.evaluator.in_float64()
        other.theta, other.dtype = self.theta.double(), torch.float64
        other.differences = Differences(other.evaluator, other.theta, self.differences.most)
        return other

    @property
    def product_error(self) -> float:
        return self.differences.error if self.kind == "differences" else 0.0

    def products(self, vectors: Tensor) -> Tensor:
        if self.kind == "differences":
            found = torch.stack([self.differences.product(v) for v in vectors])
        else:
            found = self.exact(vectors)
        self.evaluator.counts.products += len(vectors)
        return found.add_(vectors, alpha=self.evaluator.weight_decay)

    def exact(self, vectors: Tensor) -> Tensor:
        """Products by second derivatives, without the weight decay's part. One pass."""
        ev = self.evaluator
        with ev.at(self.theta) as shards:
            directions = [ev.to_units(v) for v in vectors]
            totals = [[torch.zeros_like(shard) for shard in shards] for _ in vectors]
            for part in ev.parts():
                gradient = torch.autograd.grad(part(), shards, create_graph=True, allow_unused=True)
                ev.counts.graphs += 1
                curved = [i for i, g in enumerate(gradient) if g is not None and g.requires_grad]
                for k, direction in enumerate(directions):
                    if not curved:
                        break
                    found = torch.autograd.grad(
                        [gradient[i] for i in curved],
                        shards,
                        [direction[i] for i in curved],
                        retain_graph=k + 1 < len(directions),
                        allow_unused=True,
                    )
                    for total, h in zip(totals[k], found):
                        if h is not None:
                            total += h
                del gradient
        return torch.stack([ev.to_theta(total) for total in totals])
