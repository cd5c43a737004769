"""Operators derived from another one: a block of it, shifted, deflated, preconditioned."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import require_same_call
from hessian_spectrum.distributed.arrays import as_tensor
from hessian_spectrum.distributed.sharding import Layout, matches, require_matches
from hessian_spectrum.operators.base import SymmetricOperator


class Transform(SymmetricOperator):
    """An operator of the same size and layout as ``base``."""

    def __init__(self, base: SymmetricOperator):
        if not isinstance(base, SymmetricOperator):
            name = type(self).__name__
            raise InputError(
                f"{name} of a {type(base).__name__}; expected an operator, such as "
                f"hs.Hessian(evaluator)"
            )
        self.base, self.layout, self.dtype = base, base.layout, base.dtype

    @property
    def product_error(self) -> float:
        return self.base.product_error

    def in_float64(self) -> SymmetricOperator:
        base = self.base.in_float64()
        if base is self.base:
            return self
        other = copy.copy(self)
        other.base, other.dtype = base, base.dtype
        return other

    def forget(self) -> None:
        self.base.forget()

    def expect_repeats(self) -> None:
        self.base.expect_repeats()

    def not_finite_on(self) -> list[int]:
        return self.base.not_finite_on()

    def raise_failure(self) -> None:
        self.base.raise_failure()


class Restricted(Transform):
    """The diagonal block of a matrix that belongs to some parameters, S A S^T.

    Args:
        base: an operator whose layout has named parameters.
        parameters: shell-style name patterns, such as ``"layer1.*"`` or ``["*.weight"]``.
        entries: in place of patterns the block's entries of theta, ascending whole numbers, as
            ``parameter_blocks`` gives them for attention heads.

    Raises:
        InputError: no parameter matches; entries are none of the operator's, or not ascending.

    Cost: a product of ``base``, and two exchanges of the block's entries. For a single block,
    ``Evaluator(..., parameters=...)`` is cheaper: its products are of that block only.
    """

    def __init__(
        self,
        base: SymmetricOperator,
        parameters: str | Sequence[str] | None = None,
        *,
        entries: Tensor | np.ndarray | None = None,
    ):
        super().__init__(base)
        if (parameters is None) == (entries is None):
            raise InputError("Restricted: expected either name patterns or entries=")
        if parameters is None:
            self._of_entries(as_tensor(entries))
        else:
            self._of_patterns(parameters)

    def _of_entries(self, entries: Tensor) -> None:
        base = self.base
        fits = entries.ndim == 1 and not entries.is_floating_point() and len(entries)
        if not fits or not (0 <= entries.min() and entries.max() < base.n):
            raise InputError(
                f"entries of shape {tuple(entries.shape)}, {entries.dtype}; expected whole numbers "
                f"of shape (m,), from 0 to {base.n - 1}"
            )
        steps = entries.diff()
        if not (steps > 0).all():
            raise InputError("entries: expected ascending numbers, each once")
        self.layout = Layout.of_size(len(entries), base.layout.world)
        ends = [-1, *(steps > 1).nonzero()[:, 0].tolist(), len(entries) - 1]
        self._ranges = [
            (int(entries[a + 1]), int(entries[b]) + 1, a + 1) for a, b in pairwise(ends)
        ]

    def _of_patterns(self, parameters: str | Sequence[str]) -> None:
        base = self.base
        patterns = (parameters,) if isinstance(parameters, str) else tuple(parameters)
        names, shapes = base.layout.names, base.layout.shapes
        if not patterns:
            raise InputError("parameters=(): expected at least one name pattern")
        require_matches(names, patterns)
        chosen = [i for i, name in enumerate(names) if matches(name, patterns)]
        self.layout = Layout(
            tuple(names[i] for i in chosen), tuple(shapes[i] for i in chosen), base.layout.world
        )
        starts = list(accumulate(base.layout.sizes, initial=0))
        own = list(accumulate(self.layout.sizes, initial=0))
        # Of each parameter: its entries in the whole vector, and in the block's.
        self._ranges = [(starts[i], starts[i + 1], own[j]) for j, i in enumerate(chosen)]

    def products(self, vectors: Tensor) -> Tensor:
        return products_of_blocks([self], [vectors])[0]

    def embedded(self, vectors: Tensor) -> Tensor:
        """This rank's entries of the whole vectors that are zero outside the block."""
        block = self.layout.gather(vectors)
        local = block.new_zeros(len(block), self.base.layout.n_local)
        for here, there in self._owned():
            local[:, here] = block[:, there]
        return local

    def restricted(self, local: Tensor) -> Tensor:
        """This rank's share of the block's entries of whole vectors."""
        block = local.new_zeros(len(local), self.layout.n)
        for here, there in self._owned():
            block[:, there] = local[:, here]
        return self.layout.reduce(block)

    def _owned(self) -> list[tuple[slice, slice]]:
        """Where this rank's entries of the block are: in its share of the whole, in the block."""
        base = self.base.layout
        pairs = []
        for first, last, own in self._ranges:
            low, high = max(first, base.start), min(last, base.stop)
            if low < high:
                here = slice(low - base.start, high - base.start)
                pairs.append((here, slice(own + low - first, own + high - first)))
        return pairs


def products_of_blocks(blocks: Sequence[Restricted], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Each block's products with its own vectors, by one block product of their common base."""
    rows = torch.cat([block.embedded(v) for block, v in zip(blocks, vectors)])
    results = blocks[0].base.products(rows).split([len(v) for v in vectors])
    return [block.restricted(result) for block, result in zip(blocks, results)]


class Shifted(Transform):
    """A + shift I: a damped matrix, or one whose eigenvalues near -shift are at zero."""

    def __init__(self, base: SymmetricOperator, shift: float):
        super().__init__(base)
        if not isinstance(shift, (int, float)) or not math.isfinite(shift):
            raise InputError(f"shift={shift}: expected a finite number")
        self.shift = float(shift)

    def products(self, vectors: Tensor) -> Tensor:
        return self.base.products(vectors).add_(vectors, alpha=self.shift)


class Deflated(Transform):
    """(I - U^T U) A (I - U^T U) for orthonormal rows U: A restricted to their complement.

    If the rows are eigenvectors, their eigenvalues become 0 and the others stay.

    Args:
        vectors: U, whole, shape (k, n), on every rank; orthonormal to the root of rounding.

    Cost: a product of ``base``, two small reductions and 8 k n flops for each vector.
    """

    def __init__(self, base: SymmetricOperator, vectors: Tensor):
        super().__init__(base)
        rows = as_tensor(vectors)
        require_same_call(self.layout.world, "Deflated", vectors=rows)
        if rows.ndim != 2 or rows.shape[1] != self.n or not 0 < len(rows) <= self.n:
            raise InputError(
                f"vectors of shape {tuple(rows.shape)}; expected (k, {self.n}), 0 < k <= n"
            )
        gram = rows.double() @ rows.double().T
        error = (gram - torch.eye(len(rows), dtype=gram.dtype, device=gram.device)).abs().max()
        if not error <= torch.finfo(self.dtype).eps ** 0.5:
            raise InputError(
                f"the rows of vectors are not orthonormal: U U^T differs from I by {error:.1e}; "
                "orthonormalize them, as by torch.linalg.qr(U.T)[0].T"
            )
        self._rows = self.layout.local(rows.to(self.device, self.dtype)).contiguous()

    def products(self, vectors: Tensor) -> Tensor:
        return self._project(self.base.products(self._project(vectors)))

    def _project(self, vectors: Tensor) -> Tensor:
        rows = self._rows.to(vectors)
        along = self.layout.world.sum((vectors @ rows.T).double()).to(vectors)
        return vectors - along @ rows


class Preconditioned(Transform):
    """P^-1/2 A P^-1/2, P a positive diagonal: the curvature for an optimizer that divides by P.

    For Adam P is ``sqrt(exp_avg_sq / (1 - beta2^t)) + eps`` (Cohen et al. 2022, "Adaptive gradient
    methods at the edge of stability"). Its eigenvalues are those of P^-1 A.

    Args:
        diagonal: P, whole, shape (n,), on every rank; all entries positive.
    """

    def __init__(self, base: SymmetricOperator, diagonal: Tensor):
        super().__init__(base)
        diagonal = as_tensor(diagonal)
        require_same_call(self.layout.world, "Preconditioned", diagonal=diagonal)
        if tuple(diagonal.shape) != (self.n,):
            raise InputError(f"diagonal of shape {tuple(diagonal.shape)}; expected ({self.n},)")
        if not (diagonal > 0).all() or not diagonal.isfinite().all():
            raise InputError(
                f"a preconditioner must be positive and finite; its entries lie between "
                f"{diagonal.min():.3g} and {diagonal.max():.3g}: add a small number, as Adam does"
            )
        roots = diagonal.to(self.device, torch.float64).rsqrt().to(self.dtype)
        self._roots = self.layout.local(roots[None])

    def products(self, vectors: Tensor) -> Tensor:
        return self.base.products(vectors * self._roots) * self._roots
