"""This rank's part of a curvature matrix at one point, as a linear map formed by a plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from hessian_spectrum._core.errors import (
    InputError,
    in_one_line,
    is_out_of_memory,
    require_whole,
)
from hessian_spectrum.distributed.memory import available
from hessian_spectrum.loss.backends import PRECISIONS, check_precision
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.minibatch_loss import Part
from hessian_spectrum.operators.curvature_products import HESSIAN, Form
from hessian_spectrum.operators.product_modes import MODES, Products

T = TypeVar("T")

_log = logging.getLogger("hessian_spectrum")
KEPT_SHARE = 0.5  # of the available memory: what maps may take that are kept without a plan


@dataclass(frozen=True)
class ProductPlan:
    """How V A is formed. It is stored with a run and used again when the run is resumed."""

    mode: str = "reverse"  # a name in product_modes.MODES
    chunk: int | None = None  # vectors multiplied at once; None: all
    batch_size: int | None = None  # minibatches are cut to this size; None: as they are
    keep: bool = False  # each minibatch's linear map is kept between products
    precision: str | None = None  # arithmetic, a name in backends.PRECISIONS; None: the vectors'

    def __post_init__(self):
        if self.mode not in MODES:
            raise InputError(f"product mode {self.mode!r}: expected one of {', '.join(MODES)}")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise InputError(
                f"precision {self.precision!r}: expected one of {', '.join(PRECISIONS)}"
            )
        sizes = {"chunk": self.chunk, "batch_size": self.batch_size}
        require_whole(1, **{name: size for name, size in sizes.items() if size is not None})

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the vectors inside a product; None: the evaluator's."""
        return PRECISIONS[self.precision][0] if self.precision else None


class Linearization:
    """This rank's part of V A at theta, shape (k, n) -> (k, n). The sum over ranks is V A.

    A is the curvature matrix of ``form`` without weight decay. The model's buffers and the
    parameters that are not in theta are read when a minibatch's map is formed: in each call, or,
    for kept maps, once.

    Cost of a call: one pass over this rank's minibatches; each minibatch's first-order graph is
    formed once for all k vectors, or, where the plan keeps it, once for all calls.

    Args:
        first: the first minibatch's map, if it was formed by this plan already.
        falls_back: a minibatch for which the plan's mode fails is done by reverse over reverse.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        theta: Tensor,
        plan: ProductPlan,
        form: Form = HESSIAN,
        first: Products | None = None,
        falls_back: bool = False,
    ):
        if plan.precision:
            check_precision(plan.precision, evaluator.device)
        self.evaluator, self.plan, self.form = evaluator, plan, form
        self.statistics = evaluator.statistics(theta)
        self.theta = theta.to(plan.dtype or theta.dtype)
        self._keeps, self._falls_back = plan.keep, falls_back
        self._reserve: float | None = None  # bytes that maps kept without a plan leave available
        self._kept: list[Products] | None = None
        self._first = first if plan.keep else None
        self._sum: Tensor | None = None  # of all entries of the latest product

    @property
    def was_used(self) -> bool:
        """Has a product been formed?"""
        return self._sum is not None

    def keep_what_fits(self) -> None:
        """Keep each minibatch's map from the next call on, if all of them together fit.

        The products are the same to the last bit: each map is formed as before, but once. Where the
        maps take more than ``KEPT_SHARE`` of the memory that is available now, or where the memory
        runs out, they are dropped and from then on formed in each call.
        """
        if not self._keeps and self._reserve is None:
            self._keeps = True
            self._reserve = (1 - KEPT_SHARE) * available(self.evaluator.world)

    @property
    def is_finite(self) -> bool:
        """Has this rank's part of the latest product neither NaNs nor infinities?"""
        return self._sum is None or bool(self._sum.isfinite())

    def __call__(self, vectors: Tensor) -> Tensor:
        try:
            return self._products(vectors)
        except Exception as error:
            if not (self._keeps and self._reserve is not None and is_out_of_memory(error)):
                raise
        # Outside of the handler: the error is freed, and with it the tensors in its traceback.
        self._drop_kept()
        return self._products(vectors)

    def _products(self, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        vectors = vectors.to(self.theta.dtype)
        counts = self.evaluator.counts
        # Around the products too, since mode "forward" calls the model in each.
        with self.evaluator.evaluation_mode(self.plan.precision):
            for products in self._maps():
                for rows in self._chunks(len(vectors)):
                    total[rows] += products(vectors[rows])
        counts.passes += 1
        counts.products += len(vectors)
        self._require_some(vectors, total)
        self._sum = total.sum()  # its value is not read here, which would synchronize a GPU
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
            products = products or self._formed(part)
            if self._keeps:
                made.append(products)
                if self._is_short():
                    made.clear()
                    self._drop_kept()
            yield products
        if self._keeps:
            self._kept = made

    def _formed(self, part: Part) -> Products:
        """The part's map by the plan's mode; by reverse over reverse where that may fail, and does.

        A mode was tried on one minibatch. Others may take a branch that it cannot form.
        """
        mode = self.plan.mode
        if mode == "reverse":
            return MODES[mode](part, self.theta, self.form)
        if not self._falls_back:
            return _explained(self.evaluator, mode, MODES[mode], part, self.theta, self.form)

        def attempt(action: Callable[[], T]) -> T | None:
            try:
                return action()
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                text = in_one_line(error)[:200]
            _log.warning("products by %s fail for a minibatch; they are by reverse: %s", mode, text)
            return None

        def by_reverse() -> Products:
            return MODES["reverse"](part, self.theta, self.form)

        made = attempt(lambda: MODES[mode](part, self.theta, self.form))
        if made is None:
            return by_reverse()
        current: Products = made

        def products(vectors: Tensor) -> Tensor:
            nonlocal current
            if current is not made:
                return current(vectors)
            found = attempt(lambda: made(vectors))
            if found is None:
                current = by_reverse()
                found = current(vectors)
            return found

        return products

    def _require_some(self, vectors: Tensor, total: Tensor) -> None:
        """FloatingPointError if the first product is exactly zero, but not that of the check."""
        if self.was_used or self.form is not HESSIAN or total.any():
            return
        curved = self.evaluator.verification.curved
        if curved is None or curved[0] is not self.evaluator.batches:
            return
        # Not for the block of some parameters, nor for other parameters.
        if bool(vectors.all()) and torch.equal(curved[1].to(self.theta), self.theta):
            raise FloatingPointError(
                f"products by {self.plan.mode} are exactly zero, but the gradient changes with the "
                "parameters; use another --hvp, in Python plan=hs.ProductPlan('reverse')"
            )

    def _is_short(self) -> bool:
        """Do maps that are kept without a plan leave too little memory?"""
        return self._reserve is not None and available(self.evaluator.world) <= self._reserve

    def _drop_kept(self) -> None:
        self._keeps, self._kept = False, None

    def _chunks(self, k: int) -> Iterator[slice]:
        size = self.plan.chunk or max(k, 1)
        return (slice(start, start + size) for start in range(0, k, size))


def _explained(
    evaluator: Evaluator, mode: str, make: Callable[..., Products], *arguments: Any
) -> Products:
    """The map by a mode that the user has chosen; where it fails, the cause and what to do."""

    def explained(action: Callable[[], T]) -> T:
        try:
            return action()
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            cause = _hooks(evaluator, error)
            kind = InputError if cause else RuntimeError
            raise kind(
                f"products by {mode} cannot be formed: {cause or in_one_line(error)}; leave the "
                "form of products to the program (no --hvp, no plan=), or use --hvp reverse, in "
                "Python plan=hs.ProductPlan('reverse')"
            ) from error

    products = explained(lambda: make(*arguments))
    return lambda vectors: explained(lambda: products(vectors))


def _hooks(evaluator: Evaluator, error: Exception) -> str | None:
    """In words: the hook on gradients that fails under torch.func, or may; None if it is none."""
    text = in_one_line(error)
    # torch's hooks on modules are an autograd.Function that torch.func does not take.
    if "setup_context" not in text and "Batching rule" not in text:
        return None
    for name, module in evaluator.function.modules():
        if module._backward_hooks or module._backward_pre_hooks:
            where = name.removeprefix("model.") if name != "model" else "given as model"
            return (
                f"the module {where} ({type(module).__name__}) has a hook on gradients "
                "(register_full_backward_hook), which torch.func does not support; remove it by "
                "its handle, handle.remove()"
            )
    if "Batching rule" in text:
        return (
            f"{text} (does a hook on gradients, Tensor.register_hook, or a custom backward make "
            "plain numbers or arrays of gradients?)"
        )
    return f"{text} (a custom autograd.Function of the model)"
