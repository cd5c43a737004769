"""The channels of every value and every tensor of a network, read from its traced graph.

Each operation that is known here treats all channels alike, so that permuting the channels of its
arguments permutes those of its result. What is not known is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.symmetries.union import Classes

Axis = tuple[str, int]  # a tensor of the state by name, and one of its axes

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
    *(nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink),
)
CHANNEL_BY_CHANNEL = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
ACTIVATION_CALLS = {
    *(torch.relu, torch.tanh, torch.sigmoid, F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu),
    *(F.mish, F.tanh, F.sigmoid, F.softplus, F.hardtanh, F.hardswish),
    *("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_"),
}
CHANNEL_BY_CHANNEL_CALLS = {
    *(F.dropout, F.dropout2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
    *("contiguous", "clone"),
}
SUMS = {
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul),
    *(torch.add, torch.sub, torch.mul, "add", "add_", "sub", "sub_", "mul", "mul_"),
}


@dataclass(frozen=True)
class Value:
    """A value (N, C, ...): the channel at each index of its axis 1."""

    channels: np.ndarray | None  # (C,); None: the network's input, whose channels are all fixed
    spatial: int | None  # number of axes behind the channels, None: not known
    is_activation: bool = False  # what an activation function returns
    is_flat: bool = False  # behind Flatten: each channel is followed by its pixels, however many

    def flattened(self) -> Value:
        """The channels and pixels along one axis."""
        is_flat = self.is_flat or self.spatial != 0
        return replace(self, spatial=0, is_activation=False, is_flat=is_flat)


@dataclass(frozen=True)
class Traced:
    """A network's graph, and the classes of channels along axes of tensors and of values."""

    graph: fx.GraphModule
    axes: Mapping[Axis, np.ndarray]  # class of the channel at each index
    values: Mapping[str, np.ndarray]  # the same of values, by the name of their node
    activations: frozenset[str]  # which of these are what an activation function returns


def trace(model: nn.Module) -> Traced:
    """The channels of a network along every axis of its tensors.

    Raises:
        InputError: the network cannot be traced, or has an operation that is not known here.
    """
    try:
        graph = fx.GraphModule(model, fx.Tracer().trace(model))
    except Exception as error:  # whatever a network's own code raises when it is traced
        raise InputError(
            f"the symmetries of a network that cannot be traced are not known: {error}; expected "
            "layers, activations, pooling and sums, without branches that depend on data"
        ) from error
    return _Reader(graph).read()


class _Reader:
    """Goes through the graph once and joins the channels that are the same."""

    def __init__(self, graph: fx.GraphModule):
        self.graph, self.classes = graph, Classes()
        self.modules = dict(graph.named_modules())
        self.names = {id(p): name for name, p in graph.named_parameters()}
        self.axes: dict[Axis, np.ndarray] = {}
        self.values: dict[fx.Node, Any] = {}

    def read(self) -> Traced:
        for node in self.graph.graph.nodes:
            self.values[node] = self._value(node)
        axes = {axis: self.classes.of(channels) for axis, channels in self.axes.items()}
        values, activations = {}, []
        for node, value in self.values.items():
            if isinstance(value, Value) and value.channels is not None and not value.is_flat:
                values[node.name] = self.classes.of(value.channels)
                activations += [node.name] * value.is_activation
        return Traced(self.graph, axes, values, frozenset(activations))

    # -- nodes ------------------------------------------------------------------------------------

    def _value(self, node: fx.Node) -> Any:
        args = fx.node.map_arg(node.args, lambda n: self.values[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: self.values[n])
        if node.op == "placeholder":
            return Value(None, None)
        if node.op == "output":
            fx.node.map_arg(node.args, lambda n: self._fix(self.values[n]))
            return None
        if node.op == "call_module":
            return self._module(str(node.target), args)
        if node.op in ("call_function", "call_method"):
            return self._call(node.target, args, kwargs)
        raise self._unknown(f"the tensor {node.target}, which no layer owns")

    def _module(self, name: str, args: tuple[Any, ...]) -> Value:
        module, (value, *more) = self.modules[name], args
        if more or not isinstance(value, Value):
            raise self._unknown(f"{name} of several arguments")
        kind = type(module)  # exactly: a subclass may do anything
        if kind in LINEAR:
            return self._linear(name, module, value)
        if kind in NORMS:
            return self._norm(name, module, value)
        if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            return value.flattened()
        if kind in ACTIVATIONS:
            return replace(value, is_activation=True)
        if kind in CHANNEL_BY_CHANNEL:
            return replace(value, is_activation=False)
        raise self._unknown(f"{name}, a {kind.__name__}")

    def _call(
        self, target: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        first = args[0] if args else None
        if target == "size" or target is getattr or (target is operator.getitem and first is None):
            return None  # a size; what is done with it says whether it is known
        if target is torch.cat:
            return self._concatenated(*args, **kwargs)
        if not isinstance(first, Value) and target in SUMS:
            args, first = args[::-1], args[-1]  # 2 * x
        if not isinstance(first, Value):
            raise self._unknown(_called(target))
        if target in ACTIVATION_CALLS:
            return replace(first, is_activation=True)
        if target in CHANNEL_BY_CHANNEL_CALLS:
            return replace(first, is_activation=False)
        if target in SUMS:
            return self._sum(first, args[1] if len(args) > 1 else kwargs.get("other"))
        if target in (torch.flatten, "flatten") and self._flattens(*args[1:], **kwargs):
            return first.flattened()
        if target in ("view", "reshape") and args[1:] == (None, -1):
            return first.flattened()
        if target is operator.getitem and self._keeps_channels(args[1]):
            return replace(first, is_activation=False)
        if target in (torch.mean, "mean"):
            return self._mean(first, *args[1:], **kwargs)
        if target is F.pad:
            return self._padded(first, *args[1:], **kwargs)
        raise self._unknown(_called(target))

    # -- layers -----------------------------------------------------------------------------------

    def _linear(self, name: str, module: Any, value: Value) -> Value:
        out, fan_in = module.weight.shape[:2]
        groups = getattr(module, "groups", 1)
        spatial = module.weight.ndim - 2
        if value.spatial not in (None, spatial):
            raise self._unknown(f"{name}, a {type(module).__name__} along another axis than 1")
        produced = self._axis(module.weight, f"{name}.weight", 0, out)
        if groups == 1:
            self._join(name, self._axis(module.weight, f"{name}.weight", 1, fan_in), value)
        elif groups == out and fan_in == 1:  # depthwise, one filter a channel
            self._join(name, produced, value)
        else:
            raise self._unknown(f"{name}, a convolution of {groups} groups")
        if module.bias is not None:
            bias = self._axis(module.bias, f"{name}.bias", 0, out)
            self.classes.join(bias, produced)
        return Value(produced, spatial)

    def _norm(self, name: str, module: Any, value: Value) -> Value:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        channels = self.classes.new(module.num_features)
        self._join(name, channels, value)
        for key, tensor in tensors.items():
            if tensor.ndim == 1:  # not the number of batches
                axis = self._axis(tensor, f"{name}.{key}", 0, module.num_features)
                self.classes.join(axis, channels)
        return Value(channels, value.spatial)

    def _axis(self, tensor: Tensor, name: str, axis: int, size: int) -> np.ndarray:
        """The channels along an axis of a tensor, the same for all layers that share it."""
        key = self.names.get(id(tensor), name), axis
        if key not in self.axes:
            self.axes[key] = self.classes.new(size)
        return self.axes[key]

    def _join(self, name: str, channels: np.ndarray, value: Value) -> None:
        """The entries along an axis of a layer are the channels of its input."""
        if value.channels is None:
            self.classes.fix(channels)
            return
        parts, rest = divmod(len(channels), len(value.channels))
        if rest or not parts or (parts > 1 and not value.is_flat):
            raise self._unknown(
                f"{name}, which takes {len(channels)} channels and gets {len(value.channels)}"
            )
        self.classes.join(channels, np.repeat(value.channels, parts))

    # -- calls ------------------------------------------------------------------------------------

    def _sum(self, first: Value, second: Any) -> Value:
        if not isinstance(second, Value):
            return replace(first, is_activation=False)  # a number
        if first.channels is None or second.channels is None:
            self._fix(first)
            self._fix(second)
            return Value(None, first.spatial)
        sizes = len(first.channels), len(second.channels)
        if sizes[0] != sizes[1] or first.spatial != second.spatial or first.is_flat:
            raise self._unknown(f"a sum of {sizes[0]} channels and {sizes[1]} of other shapes")
        self.classes.join(first.channels, second.channels)
        return Value(first.channels, first.spatial)

    def _concatenated(self, values: Any, dim: int = 0) -> Value:
        known = [v.channels for v in values if isinstance(v, Value) and v.channels is not None]
        if dim != 1 or len(known) != len(values) or any(value.is_flat for value in values):
            raise self._unknown(f"torch.cat of {len(values)} values along axis {dim}")
        return Value(np.concatenate(known), values[0].spatial)

    def _padded(
        self, first: Value, /, pad: Any, mode: str = "constant", value: float | None = None
    ) -> Value:
        axes, spatial = len(pad) // 2, first.spatial
        if spatial is None or first.is_flat or axes > spatial + 1 or mode != "constant":
            raise self._unknown(f"F.pad({pad}, mode={mode!r})")
        if axes <= spatial or first.channels is None:
            return replace(first, is_activation=False)
        # Every new channel holds the same constant, so that they may be permuted as well.
        before, after = (self.classes.new(count) for count in pad[-2:])
        return Value(np.concatenate([before, first.channels, after]), spatial)

    def _mean(self, value: Value, dim: Any = None, keepdim: bool = False) -> Value:
        dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
        spatial = value.spatial
        if spatial is None or {d % (spatial + 2) for d in dims} != set(range(2, spatial + 2)):
            raise self._unknown(f"a mean over axes {dim}")
        return Value(value.channels, spatial if keepdim else 0)

    @staticmethod
    def _flattens(start_dim: int = 0, end_dim: int = -1) -> bool:
        return (start_dim, end_dim) == (1, -1)

    @staticmethod
    def _keeps_channels(key: Any) -> bool:
        everything = slice(None)
        return isinstance(key, tuple) and all(
            isinstance(part, slice) and (i > 1 or part == everything) for i, part in enumerate(key)
        )

    def _fix(self, value: Any) -> None:
        if isinstance(value, Value) and value.channels is not None:
            self.classes.fix(value.channels)

    def _unknown(self, what: str) -> InputError:
        return InputError(
            f"the symmetries of {what} are not known; expected Linear, convolutions of one group "
            "or depthwise, BatchNorm, activations, dropout, pooling, Flatten, sums and "
            "concatenations of channels"
        )


def _called(target: Callable[..., Any] | str) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))
