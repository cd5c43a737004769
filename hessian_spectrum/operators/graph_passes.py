"""Rewrite a recorded linear map into fewer and larger operations.

The passes use what a general compiler does not know: the values of the constants, and that the map
is linear.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx
from torch.fx.node import Argument, Target

from hessian_spectrum.operators.tracing import Record, constant

aten = torch.ops.aten

Operations = dict[Callable[..., Any], Callable[..., Any]]

MANY = 2  # a sum of more matrix products than this becomes one product of concatenations
GLANCE = 8  # entries along each dimension, enough to tell most tensors apart
NARROW = 32  # matrices with fewer free columns are multiplied together for all vectors


_PRODUCTS = {aten.mul.Tensor, aten.mm.default, aten.bmm.default, aten.convolution.default}
_REARRANGEMENTS = {
    aten.t.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.expand.default,
    aten.sum.dim_IntList,
    aten.mul.Scalar,
    aten.neg.default,
}
_DERIVATIVES = (  # f'(x) times their first argument
    aten.tanh_backward.default,
    aten.sigmoid_backward.default,
    aten.gelu_backward.default,
    aten.silu_backward.default,
    aten.threshold_backward.default,
)
_IN_PLACE: Operations = {
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.addcmul.default: aten.addcmul_.default,
    aten.addmm.default: aten.addmm_.default,
    aten.baddbmm.default: aten.baddbmm_.default,
}
_FRESH: set[Callable[..., Any]] = {  # their result is new memory, of the result's own shape
    *_IN_PLACE,
    *_IN_PLACE.values(),
    aten.mm.default,
    aten.bmm.default,
    aten.convolution.default,
}


class _Wide(torch.autograd.Function):
    """a @ b with one constant factor: under vmap one product with a k times wider matrix.

    vmap itself multiplies the constant by each of the k matrices in turn. Here the batch dimension
    is merged into the dimension that is not contracted, in the order that needs no copy.
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def vmap(info, in_dims, a: Tensor, b: Tensor) -> tuple[Tensor, int]:
        left, right = in_dims
        if left is not None and right is not None:
            return a.movedim(left, 0) @ b.movedim(right, 0), 0
        if left is not None:
            flat, k_last, sizes = _merged(a.movedim(left, 0))
            return (flat @ b).unflatten(-2, sizes), flat.ndim - 1 if k_last else flat.ndim - 2
        flat, k_last, sizes = _merged(b.movedim(right, 0).transpose(-1, -2))
        out = (a @ flat.transpose(-1, -2)).unflatten(-1, sizes)
        return out, flat.ndim if k_last else flat.ndim - 1


def _merged(a: Tensor) -> tuple[Tensor, bool, tuple[int, int]]:
    """(k, ..., M, C) -> (..., k M, C) or (..., M k, C), whether k is last, and the two sizes.

    A view if either order is one.
    """
    k, rows, columns = a.shape[0], a.shape[-2], a.shape[-1]
    first, last = a.movedim(0, -3), a.movedim(0, -2)
    for arranged, k_last, sizes in ((first, False, (k, rows)), (last, True, (rows, k))):
        try:
            return arranged.view(*arranged.shape[:-3], k * rows, columns), k_last, sizes
        except RuntimeError:  # strides that do not merge
            continue
    return first.reshape(*first.shape[:-3], k * rows, columns), False, (k, rows)


def wide(a: Tensor, b: Tensor) -> Tensor:
    return _Wide.apply(a, b)


class Simplifier:
    """A recorded linear map, with passes that rewrite its graph in place."""

    def __init__(self, record: Record):
        self.graph, self.constants = record.graph, record.constants
        self._zero: dict[str, bool] = {}
        self._numbers = count()  # of the constants that are made here

    def depends(self) -> bool:
        """Does the result depend on v?"""
        return _varies(next(iter(reversed(self.graph.nodes))).args[0])

    def function(self) -> Callable[[Tensor], Tensor]:
        """The map v -> result, compiled to Python, with the constants that are still used.

        Neither the map nor the nodes of the graph may hold constants in reference cycles, as a
        GraphModule does: kept maps are gigabytes, and would stay until Python collects garbage.
        """
        self._drop_unused()
        used = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        code = self.graph.python_code("self")
        scope = dict(code.globals)
        exec(compile(code.src, "<recorded product>", "exec"), scope)
        held = SimpleNamespace(**{name: self.constants[name] for name in used})
        return partial(scope["forward"], held)

    # -- values ----------------------------------------------------------------------------

    def drop_zeros(self) -> None:
        """x + 0 = x and x 0 = 0: inputs of the network have no tangent."""
        for node in self._calls():
            args = node.args
            if node.target in _PRODUCTS and any(map(self._is_zero, args[:2])):
                if node.target is not aten.convolution.default or args[2] is None:
                    self._replace(node, self._zeros(node))
            elif node.target in (aten.add.Tensor, aten.sub.Tensor) and not node.kwargs:
                x, y = args[:2]
                if self._is_zero(y) and _like(x, node):
                    self._replace(node, x)
                elif node.target is aten.add.Tensor and self._is_zero(x):
                    if _like(y, node):
                        self._replace(node, y)
            elif node.target in _REARRANGEMENTS and self._is_zero(args[0]):
                self._replace(node, self._zeros(node))
        self._drop_unused()

    def join_equal_constants(self) -> None:
        """Keep constants of equal values once."""
        found: dict[tuple, list[fx.Node]] = {}
        for node in [node for node in self.graph.nodes if node.op == "get_attr"]:
            value = self._value(node)
            same = found.setdefault((value.shape, value.stride(), value.dtype, _glance(value)), [])
            for other in same:
                if other.target == node.target or torch.equal(self._value(other), value):
                    self._replace(node, other)
                    break
            else:
                same.append(node)
        # To the front, so that each stands before its first use.
        first = next(iter(self.graph.nodes))
        for node in [node for nodes in found.values() for node in nodes]:
            first.append(node)
        self._drop_unused()

    def join_equal_calls(self) -> None:
        """Compute equal calls once; cancel double transpositions."""
        seen: dict[tuple, fx.Node] = {}
        for node in self._calls():
            x = node.args[0]
            if node.target is aten.t.default and _is_call(x, aten.t.default):
                self._replace(node, _node(x.args[0]))
                continue
            if node.target is aten.reshape.default:
                if _is_call(x, aten.reshape.default):
                    node.args = x.args[0], node.args[1]
                x = node.args[0]
                if _like(x, node):
                    self._replace(node, x)
                    continue
            key = node.target, repr((node.args, sorted(node.kwargs.items())))
            if key in seen:
                self._replace(node, seen[key])
            else:
                seen[key] = node

    def turn_derivatives_into_factors(self) -> None:
        """Multiply by the constant f'(x) instead of evaluating f' in each product."""
        for node in self._calls(*_DERIVATIVES):
            x, point = node.args[:2]
            if _varies(x) and _is_constant(point):
                at, derivative = self._value(point), _operation(node)
                factor = derivative(torch.ones_like(at), at, *node.args[2:], **node.kwargs)
                new = self._call(aten.mul.Tensor, (x, self._constant(factor, node)), node)
                self._replace(node, new)

    def merge_factors(self) -> None:
        """(x a) b = x (a b) for constants a and b."""
        kinds = aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.neg.default
        for node in self._calls(*kinds):
            if node.target is aten.mul.Tensor and _is_constant(node.args[0]):
                node.args = node.args[1], node.args[0]
            x, others = node.args[0], node.args[1:]
            if not _only_used_here(x, aten.mul.Tensor) or any(map(_varies, others)):
                continue
            y, a = x.args
            if not (_varies(y) and _is_constant(a) and _like(y, node)):
                continue
            b = [self._value(o) if isinstance(o, fx.Node) else o for o in others]
            factor = self._constant(_operation(node)(self._value(a), *b), node)
            self._replace(node, self._call(aten.mul.Tensor, (y, factor), node))
            self.graph.erase_node(x)

    # -- products --------------------------------------------------------------------------

    def join_many_products(self) -> None:
        """Replace a sum of many a_i @ b_i by one product of concatenations.

        The gradients of a recurrent network's weights are such sums over its steps.
        """
        for node, terms in self._sums():
            found = [(term, self._factors(term, node)) for term in terms]
            pairs = [(term, factors) for term, factors in found if factors]
            for left_varies in (True, False):
                group = [(t, f) for t, f in pairs if _varies(f[0]) == left_varies]
                if len(group) <= MANY:
                    continue
                a = self._concatenated([factors[0] for _, factors in group], 1, node)
                b = self._concatenated([factors[1] for _, factors in group], 0, node)
                taken = {term for term, _ in group}
                terms = [term for term in terms if term not in taken]
                terms.append(self._call(aten.mm.default, (a, b), node))
                total = terms[0]
                for term in terms[1:]:
                    total = self._call(aten.add.Tensor, (total, term), node)
                node.replace_all_uses_with(total)
                node = total
        self._drop_unused()

    def scale_kernels(self) -> None:
        """Move a factor for each channel after a convolution (BatchNorm) into its kernel."""
        for node in self._calls(aten.mul.Tensor):
            x, factor = node.args
            if not (_is_constant(factor) and len(node.meta["shape"]) == 4):
                continue
            if factor.meta["shape"] != (1, node.meta["shape"][1], 1, 1):
                continue
            is_sum = _only_used_here(x, aten.add.Tensor) and not x.kwargs
            summands = _node(x).args if is_sum else (x,)
            terms = [term for term in summands if _is_plain_convolution(term)]
            if len(terms) < len(summands):
                continue
            scale = self._value(factor).reshape(-1, 1, 1, 1)
            for term in terms:
                kernel = _node(term.args[1])
                if _is_constant(kernel):
                    kernel = self._constant(self._value(kernel) * scale, term)
                else:
                    kernel = self._call(
                        aten.mul.Tensor, (kernel, self._constant(scale, term)), term, kernel
                    )
                term.args = term.args[0], kernel, *term.args[2:]
            self._replace(node, _node(x))

    def widen_products(self) -> None:
        """Multiply narrow matrices for all vectors at once: one at a time they are slow."""
        for node in self._calls(aten.mm.default, aten.bmm.default):
            a, b = map(_node, node.args)
            if (a.meta["shape"][-2] if _varies(a) else b.meta["shape"][-1]) < NARROW:
                node.target = wide

    def add_into_products(self) -> None:
        """x + a @ b in one call."""
        fused: Operations = {
            aten.mm.default: aten.addmm.default,
            aten.bmm.default: aten.baddbmm.default,
        }
        for node in self._calls(aten.add.Tensor):
            if node.kwargs or not all(isinstance(x, fx.Node) for x in node.args):
                continue
            for x, y in (node.args, node.args[::-1]):
                if _only_used_here(y, *fused) and _like(y, node):
                    self._replace(node, self._call(fused[_operation(y)], (x, *y.args), node))
                    break
        self._drop_unused()

    def multiply_and_add(self) -> None:
        """x + y c in one call."""
        for node in self._calls(aten.add.Tensor):
            if node.kwargs or not all(isinstance(x, fx.Node) for x in node.args):
                continue
            for x, y in (node.args, node.args[::-1]):
                if _only_used_here(y, aten.mul.Tensor) and isinstance(y.args[1], fx.Node):
                    self._replace(node, self._call(aten.addcmul.default, (x, *y.args), node))
                    break
        self._drop_unused()

    def reuse_memory(self) -> None:
        """Write results into an argument that nothing else uses. vmap does not support this."""
        for node in self._calls(*_IN_PLACE):
            order: list[tuple[Argument, ...]] = [node.args]
            if node.target is aten.add.Tensor and not node.kwargs:
                order.append(node.args[::-1])
            for args in order:
                if _only_used_here(args[0], *_FRESH) and _like(args[0], node):
                    node.args, node.target = tuple(args), _IN_PLACE[_operation(node)]
                    break

    # -- inside ----------------------------------------------------------------------------

    def _calls(self, *targets: Target) -> list[fx.Node]:
        calls = (node for node in self.graph.nodes if node.op == "call_function")
        return [node for node in calls if not targets or node.target in targets]

    def _sums(self) -> list[tuple[fx.Node, list[fx.Node]]]:
        """The last addition of each sum of tensors of one shape, and its terms."""
        found: list[tuple[fx.Node, list[fx.Node]]] = []
        inside: set[fx.Node] = set()
        for node in reversed(self._calls(aten.add.Tensor)):
            if node in inside or node.kwargs:
                continue
            terms: list[Argument] = []
            open_ = list(node.args)
            while open_:
                x = open_.pop()
                if _only_used_here(x, aten.add.Tensor) and not x.kwargs and _like(x, node):
                    inside.add(x)
                    open_ += x.args
                else:
                    terms.append(x)
            tensors = [term for term in terms if isinstance(term, fx.Node)]
            if len(tensors) == len(terms):
                found.append((node, tensors))
        return found

    def _factors(self, term: fx.Node, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """a and b of a term a @ b or (b.T @ a.T).T that is used nowhere else."""
        if _only_used_here(term, aten.mm.default) and _like(term, node):
            a, b = term.args
            return _node(a), _node(b)
        if _only_used_here(term, aten.t.default):
            product = term.args[0]
            if _only_used_here(product, aten.mm.default):
                a, b = map(_node, product.args)
                return self._transposed(b, node), self._transposed(a, node)
        return None

    def _transposed(self, x: fx.Node, before: fx.Node) -> fx.Node:
        if _is_constant(x):
            return self._constant(self._value(x).t(), before)
        if _is_call(x, aten.t.default):
            return _node(x.args[0])
        node = self._call(aten.t.default, (x,), before)
        node.meta["shape"] = x.meta["shape"][::-1]
        return node

    def _concatenated(self, parts: list[fx.Node], dim: int, before: fx.Node) -> fx.Node:
        if all(map(_is_constant, parts)):
            return self._constant(torch.cat([self._value(x) for x in parts], dim), before)
        node = self._call(aten.cat.default, (parts, dim), before)
        shape = list(parts[0].meta["shape"])
        shape[dim] = sum(x.meta["shape"][dim] for x in parts)
        node.meta["shape"] = tuple(shape)
        return node

    def _value(self, node: fx.Node) -> Tensor:
        """The value of a constant's node."""
        return self.constants[str(node.target)]

    def _is_zero(self, x: Argument) -> bool:
        if not _is_constant(x):
            return False
        name = str(x.target)
        if name not in self._zero:
            value = self._value(x)
            self._zero[name] = not _glance(value) and not value.any().item()
        return self._zero[name]

    def _zeros(self, like: fx.Node) -> fx.Node:
        device = next(iter(self.constants.values())).device
        zero = torch.zeros((), dtype=like.meta["dtype"], device=device)
        return self._constant(zero.expand(like.meta["shape"]), like)

    def _constant(self, value: Tensor, before: fx.Node) -> fx.Node:
        name = f"d{next(self._numbers)}"
        self.constants[name] = value
        with self.graph.inserting_before(before):
            return constant(self.graph, name, self.constants)

    def _call(
        self,
        target: Callable[..., Any],
        args: tuple[Argument, ...],
        before: fx.Node,
        like: fx.Node | None = None,
    ) -> fx.Node:
        """A call whose result looks like ``like``, by default like the node before which it is."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args)
        node.meta.update((like or before).meta)
        return node

    def _replace(self, node: fx.Node, new: fx.Node) -> None:
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def _drop_unused(self) -> None:
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        used = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        for name in [name for name in self.constants if name not in used]:
            del self.constants[name]


def _glance(value: Tensor) -> float:
    """The sum of a few entries spread over a tensor: a cheap hash of its values."""
    spread = tuple(slice(None, None, max(1, size // GLANCE)) for size in value.shape)
    return value[spread].sum(dtype=torch.float64).item()


def _node(x: Argument) -> fx.Node:
    """An argument that is known to be a tensor."""
    assert isinstance(x, fx.Node)
    return x


def _operation(node: fx.Node) -> Callable[..., Any]:
    """The function that a call node calls."""
    assert callable(node.target)
    return node.target


def _is_constant(x: Argument) -> TypeGuard[fx.Node]:
    return isinstance(x, fx.Node) and x.op == "get_attr"


def _varies(x: Argument) -> TypeGuard[fx.Node]:
    return isinstance(x, fx.Node) and x.op != "get_attr"


def _is_call(x: Argument, *targets: Target) -> TypeGuard[fx.Node]:
    return isinstance(x, fx.Node) and x.op == "call_function" and x.target in targets


def _only_used_here(x: Argument, *targets: Target) -> TypeGuard[fx.Node]:
    return _is_call(x, *targets) and len(x.users) == 1


def _like(x: Argument, node: fx.Node) -> TypeGuard[fx.Node]:
    """Does x have the shape and dtype of the node?"""
    return isinstance(x, fx.Node) and all(
        x.meta.get(key) == node.meta.get(key) for key in ("shape", "dtype")
    )


def _is_plain_convolution(x: Argument) -> TypeGuard[fx.Node]:
    """Is it a convolution without transposition, groups and bias?"""
    if not _only_used_here(x, aten.convolution.default):
        return False
    bias, is_transposed, groups = x.args[2], x.args[6], x.args[8]
    return bias is None and not is_transposed and bool(groups == 1)
