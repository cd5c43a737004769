"""Record the operations of a linear function that depend on its argument.

A dispatch mode sees each operation as it is executed with real tensors. Results that do not depend
on the argument become constants. This takes tens of microseconds for each operation, where make_fx
(and so torch.func.linearize) takes milliseconds and evaluates the constants once more.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten


@dataclass
class Record:
    """A linear function as a graph."""

    graph: fx.Graph  # nodes carry their results' shape and dtype in meta
    constants: dict[str, Tensor]
    out: Tensor  # the function's value at the argument that it was recorded with


_SHAPE_ONLY = {
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty.default,
}
_VIEWS = {aten.view.default, aten._unsafe_view.default}
_IDENTITIES = _VIEWS | {  # if shape and dtype stay the same
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh.default,
    aten.clone.default,
    aten._to_copy.default,
    aten.expand.default,
    aten.reshape.default,
}


def record(function: Callable[[Tensor], Tensor], v: Tensor) -> Record:
    """The operations of function(v) that depend on v; the function must be linear.

    Raises:
        RuntimeError: an operation changes its arguments in place, and cannot be recorded.
    """
    with torch.no_grad(), _Recorder(v) as recorder:
        out = function(v)
    return recorder.finish(out)


class _Recorder(TorchDispatchMode):
    def __init__(self, v: Tensor):
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.nodes = WeakTensorKeyDictionary()
        self._names: dict[tuple, tuple[str, int]] = {}
        self._bind(v, self.graph.placeholder("v"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """As of ``loss.casts.Casts``."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._efficientzerotensor.default:
            # Arithmetic with it crashes the process under a dispatch mode (mse_loss; torch 2.13).
            return torch.zeros(*args, **kwargs)
        out = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func in _SHAPE_ONLY or not any(t in self.nodes for t in given):
            return out
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            return out
        if func._schema.is_mutable:
            raise RuntimeError(f"{func} changes its arguments and cannot be recorded")
        source = args[1] if func is aten.copy.default else args[0]
        if func in _IDENTITIES or func is aten.copy.default:
            same = out.shape == source.shape and out.dtype == source.dtype
            if same and out.device == source.device and source in self.nodes:
                self.nodes[out] = self.nodes[source]
                return out
        # Under vmap, or after a change of strides, a view may have to copy.
        target = aten.reshape.default if func in _VIEWS else func
        node = self.graph.call_function(target, *tree_map(self._node, (args, kwargs)))
        if isinstance(out, Tensor):
            self._bind(out, node)
        else:
            for i, part in enumerate(out):
                if isinstance(part, Tensor):
                    self._bind(part, self.graph.call_function(operator.getitem, (node, i)))
        return out

    def finish(self, out: Tensor) -> Record:
        self.graph.output(self._node(out))
        for name, version in self._names.values():
            if self.constants[name]._version != version:
                raise RuntimeError("a constant was changed after its use; it cannot be recorded")
        return Record(self.graph, self.constants, out)

    def _bind(self, t: Tensor, node: fx.Node) -> None:
        self.nodes[t] = node
        node.meta.update(shape=tuple(t.shape), dtype=t.dtype)

    def _node(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return self.nodes[leaf] if leaf in self.nodes else self._constant(leaf)

    def _constant(self, t: Tensor) -> fx.Node:
        key = t.data_ptr(), tuple(t.shape), t.stride(), t.dtype, t.is_neg(), t.is_conj()
        if key not in self._names:
            self._names[key] = f"c{len(self.constants)}", t._version
            self.constants[self._names[key][0]] = t
        return constant(self.graph, self._names[key][0], self.constants)


def constant(graph: fx.Graph, name: str, constants: dict[str, Tensor]) -> fx.Node:
    """A node for a constant."""
    value = constants[name]
    node = graph.create_node("get_attr", name)
    node.meta.update(shape=tuple(value.shape), dtype=value.dtype)
    return node
