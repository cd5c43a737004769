"""Ways to multiply by a curvature matrix of one minibatch, behind one interface.

A minibatch's part of the loss is a function ``loss(theta)`` of the flat parameters, shape
(n,) -> (), and a form selects the matrix A (the Gauss-Newton matrix and the covariance of gradients
need a ``minibatch_loss.Part``). A product mode turns it, once, into a linear map on blocks of rows,
which holds activations and first derivatives until it is dropped. In a deep network a Hessian
product of one vector then takes the operations of two gradients, a Gauss-Newton product of 4/3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps

import torch
from torch import Tensor
from torch.func import functionalize, vmap

from hessian_spectrum._core.errors import is_out_of_memory
from hessian_spectrum.loss import torch_state
from hessian_spectrum.loss.gradient import Loss
from hessian_spectrum.loss.minibatch_loss import Part
from hessian_spectrum.operators.curvature_products import HESSIAN, Form
from hessian_spectrum.operators.graph_passes import Simplifier
from hessian_spectrum.operators.tracing import record

Products = Callable[[Tensor], Tensor]  # V, shape (k, n) -> V A, shape (k, n)

KEPT_SIZES = 2  # numbers of rows whose recordings are kept: a full chunk, and the last one


def reverse(loss: Loss, theta: Tensor, form: Form = HESSIAN) -> Products:
    """V -> V A by backward passes over a first-order graph that is built once, here.

    Works wherever second derivatives do.
    """
    rows = form.graph(loss, theta)
    if rows is None:
        return torch.zeros_like
    # One row at a time: the batched backward pass of reverse_batched is often slower.
    return lambda vectors: torch.stack([rows(v) for v in vectors])


def reverse_batched(loss: Loss, theta: Tensor, form: Form = HESSIAN) -> Products:
    """As ``reverse``, all rows in one backward pass under vmap; memory for all of them."""
    rows = form.graph(loss, theta)
    if rows is None:
        return torch.zeros_like
    return lambda vectors: rows(vectors, is_grads_batched=True)


def forward(loss: Loss, theta: Tensor, form: Form = HESSIAN) -> Products:
    """V -> V A by directional derivatives, all rows under vmap.

    Keeps nothing between calls; each evaluates the primal again.
    """
    return lambda vectors: vmap(lambda v: form.product(loss, theta, v))(vectors)


def linearize(loss: Loss, theta: Tensor, form: Form = HESSIAN) -> Products:
    """V -> V A through one product, recorded once and simplified; all rows at once.

    Of the operations of one product by torch.func only those that depend on v are needed
    again (tracing.py); the rest are constants, about as much as a kept first-order graph, and
    what vmap needs for all rows. Each number of rows is recorded when it first occurs, and the
    recorded map is checked against the product that it was recorded from.

    Raises:
        RuntimeError: it cannot be recorded, or the record's product differs.
    """
    rounding = _rounding(loss, theta)
    single = linearized(loss, theta, form)
    if single is None:
        return torch.zeros_like
    ready: dict[int, Products] = {}

    def products(vectors: Tensor) -> Tensor:
        # Of one layout: a map that is recorded again, as after a resume, rounds in the same way.
        vectors, k = vectors.contiguous(), len(vectors)
        with torch.no_grad():
            if k in ready:
                return ready[k](vectors)
            if len(ready) == KEPT_SIZES:
                del ready[next(iter(ready))]
            ready[k], out = _for_rows(single, vectors, rounding)
            return out

    return products


def linearized(
    loss: Loss, theta: Tensor, form: Form = HESSIAN
) -> Callable[[Tensor], Tensor] | None:
    """v -> A v for one vector, (n,) -> (n,), in operations that vmap knows; None if it is zero."""
    theta = theta.detach()
    product = partial(form.product, loss)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(len(theta), generator=generator, dtype=torch.float64).to(theta)
    # functionalize: changes in place become new tensors.
    recorded = record(lambda v: functionalize(product, remove="mutations")(theta, v), v)
    graph = Simplifier(recorded)
    if not graph.depends():
        return None
    graph.drop_zeros()
    graph.join_equal_constants()
    graph.join_equal_calls()
    graph.turn_derivatives_into_factors()
    graph.merge_factors()
    graph.merge_factors()
    graph.join_many_products()
    graph.scale_kernels()
    graph.join_equal_constants()
    graph.widen_products()
    return _checked(graph.function(), v, recorded.out, rounding=_rounding(loss, theta))[0]


def _rounding(loss: Loss, theta: Tensor) -> float:
    """Of the lowest type in which the loss is computed: a part of a model may cast by itself."""
    eps = torch.finfo(theta.dtype).eps
    return max(eps, loss.rounding) if isinstance(loss, Part) else eps


def _for_rows(
    single: Callable[[Tensor], Tensor], vectors: Tensor, rounding: float
) -> tuple[Products, Tensor]:
    """The map of this many rows, and its products with these.

    Recorded through vmap, so that calls do not pay for vmap itself.
    """
    if len(vectors) == 1:
        module, out = _recorded_again(single, vectors[0], rounding)
        return lambda rows: module(rows[0])[None], out[None]
    try:
        return _recorded_again(vmap(single), vectors, rounding)
    except RuntimeError as error:  # an operation that vmap does not support
        if is_out_of_memory(error):
            raise
        return _one_by_one(single), _one_by_one(single)(vectors)


def _one_by_one(single: Callable[[Tensor], Tensor]) -> Products:
    return lambda rows: torch.stack([single(row) for row in rows])


def _recorded_again(
    function: Callable[[Tensor], Tensor], v: Tensor, rounding: float
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    recorded = record(function, v)
    graph = Simplifier(recorded)
    graph.join_equal_constants()
    graph.join_equal_calls()
    graph.add_into_products()
    graph.multiply_and_add()
    graph.reuse_memory()
    return _checked(graph.function(), v, recorded.out, function, rounding)


def _checked(
    module: Callable[[Tensor], Tensor],
    v: Tensor,
    expected: Tensor,
    function: Callable[[Tensor], Tensor] | None = None,
    rounding: float | None = None,
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The map and its product, after a check against the product it was recorded from.

    The map's own product is returned, so that the first call gives the same bits as later ones.

    Args:
        function: what was recorded, to be asked along another direction: Krylov vectors come to
            lie in the null space of the matrix, where a product is nothing but rounding.
        rounding: relative, of one operation. Default: eps of v's dtype.
    """
    with torch.no_grad():
        out = module(v)
    error, size = (out - expected).norm().item(), expected.norm().item()
    tolerance = (rounding or torch.finfo(v.dtype).eps) ** 0.5
    if function is not None and not error <= tolerance * size:
        generator = torch.Generator().manual_seed(0)
        other = torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v)
        other *= v.norm() / other.norm()
        with torch.no_grad():
            known = function(other)
            error = max(error, (module(other) - known).norm().item())
        size = known.norm().item()
    if not error <= tolerance * size:
        raise RuntimeError(f"the recorded linearization is wrong by {error:.1e}")
    return module, out


def _leaving_torch_unchanged(make: Callable[..., Products]) -> Callable[..., Products]:
    """The same mode; an attempt that fails leaves torch's state as it was."""

    @wraps(make)
    def guarded(loss: Loss, theta: Tensor, form: Form = HESSIAN) -> Products:
        with torch_state.unchanged():
            products = make(loss, theta, form)

        def guarded_products(vectors: Tensor) -> Tensor:
            with torch_state.unchanged():
                return products(vectors)

        return guarded_products

    return guarded


MODES: dict[str, Callable[..., Products]] = {
    name: _leaving_torch_unchanged(make)
    for name, make in {
        "reverse": reverse,
        "reverse-batched": reverse_batched,
        "forward": forward,
        "linearize": linearize,
    }.items()
}
