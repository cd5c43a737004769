"""A curvature matrix at one point as a linear map on blocks of rows, formed as a plan says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss.backends import PRECISIONS, check_precision
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.curvature_products import HESSIAN, Form
from hessian_spectrum.operators.product_modes import MODES, Products


@dataclass(frozen=True)
class ProductPlan:
    """How V A is formed. Stored with a run and used again when it is resumed."""

    mode: str = "reverse"  # a name in products.MODES
    chunk: int | None = None  # vectors multiplied at once; None: all
    batch_size: int | None = None  # minibatches are cut to this size; None: as they are
    keep: bool = False  # each minibatch's linear map is kept between products
    precision: str | None = None  # arithmetic, a name in kernels.PRECISIONS; None: the vectors'

    def __post_init__(self):
        if self.mode not in MODES:
            raise InputError(f"product mode {self.mode!r}: expected one of {', '.join(MODES)}")

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the vectors inside a product; None: the evaluator's."""
        return PRECISIONS[self.precision][0] if self.precision else None


class Linearization:
    """V -> this rank's part of V A at theta, shape (k, n) -> (k, n); summed over ranks it is V A.

    A is the curvature matrix that ``form`` names, without the weight decay's term, which belongs
    to no rank. Buffers are those of the time of construction (kept maps) or of each call.

    Cost of a call: one pass over this rank's minibatches; each minibatch's first-order graph is
    formed once for all k vectors, or, where the plan keeps it, once for all calls.

    Args:
        first: the first minibatch's map, where it was formed as the plan says already.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        theta: Tensor,
        plan: ProductPlan,
        form: Form = HESSIAN,
        first: Products | None = None,
    ):
        if plan.precision:
            check_precision(plan.precision, evaluator.device)
        self.evaluator, self.plan, self.form = evaluator, plan, form
        self.statistics = evaluator.statistics(theta)
        self.theta = theta.to(plan.dtype or theta.dtype)
        self._kept: list[Products] | None = None
        self._first = first if plan.keep else None
        self._sum: Tensor | None = None  # of all entries of the latest product

    @property
    def is_finite(self) -> bool:
        """Has this rank's part of the latest product neither NaNs nor infinities?"""
        return self._sum is None or bool(self._sum.isfinite())

    def __call__(self, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        vectors = vectors.to(self.theta.dtype)
        counts = self.evaluator.counts
        # Also around the products: the forward mode calls the model in each.
        with self.evaluator.evaluation_mode(self.plan.precision):
            for products in self._maps():
                for rows in self._chunks(len(vectors)):
                    total[rows] += products(vectors[rows])
        counts.passes += 1
        counts.products += len(vectors)
        self._sum = total.sum()  # not looked at: that would make a GPU wait
        return total

    def forget(self) -> None:
        """Drop the kept maps; the next call forms them again."""
        self._kept = None

    def _maps(self) -> Iterator[Products]:
        if self._kept is not None:
            yield from self._kept
            return
        made = []
        for part in self.evaluator.parts(self.statistics, self.plan.batch_size, self.plan.dtype):
            self.evaluator.counts.graphs += 1
            products, self._first = self._first, None
            products = products or MODES[self.plan.mode](part, self.theta, self.form)
            if self.plan.keep:
                made.append(products)
            yield products
        if self.plan.keep:
            self._kept = made

    def _chunks(self, k: int) -> Iterator[slice]:
        size = self.plan.chunk or max(k, 1)
        return (slice(start, start + size) for start in range(0, k, size))
