"""BatchNorm with fixed statistics, folded into the convolution before it: one operation fewer.

With statistics mu and sigma, scale gamma and shift beta, BN(W x + b) = (gamma / sigma) W x +
(gamma / sigma) (b - mu) + beta. This is the same function up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from hessian_spectrum.loss import batch_norm
from hessian_spectrum.loss.backends import replaced_forward
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.minibatch_loss import Part

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Pairs = dict[nn.Module, nn.Module]  # convolution -> the BatchNorm that alone uses its output


def pairs(ev: Evaluator, part: Part, theta: Tensor) -> Pairs:
    """Convolutions whose output only a single BatchNorm with fixed statistics uses.

    Found by evaluating one sample; both modules of a pair are called exactly once. Empty with
    ``batch_norm="train"``. Call it inside ``evaluation_mode``.
    """
    if ev.is_whole or not batch_norm.layers(ev.model):
        return {}
    found: dict[nn.Module, list[Tensor]] = {}
    inputs: dict[nn.Module, list[Tensor]] = {}
    with ExitStack() as stack, _Uses() as uses:
        for module in ev.model.modules():
            if type(module) in CONVOLUTIONS:
                hook = module.register_forward_hook(
                    lambda m, _, out: found.setdefault(m, []).append(out)
                )
                stack.callback(hook.remove)
            elif type(module) in NORMS and module.running_mean is not None:
                hook = module.register_forward_pre_hook(
                    lambda m, given: inputs.setdefault(m, []).append(given[0])
                )
                stack.callback(hook.remove)
        part.first_sample().network_outputs(theta)
    by_input = {id(given[0]): norm for norm, given in inputs.items() if len(given) == 1}
    return {
        conv: by_input[id(out[0])]
        for conv, out in found.items()
        if len(out) == 1 and id(out[0]) in by_input and uses.of(out[0]) == 1
    }


@contextmanager
def folded(found: Pairs) -> Iterator[None]:
    """Within the context convolutions include their BatchNorm, which becomes the identity."""
    with (
        replaced_forward(found, lambda conv: _convolution(conv, found[conv])),
        replaced_forward(found.values(), lambda norm: lambda x: x),
    ):
        yield


def _convolution(conv: Any, norm: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        # Read at each call, since functional_call sets the tensors of the point.
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
        shift = shift * scale
        if norm.bias is not None:
            shift = shift + norm.bias
        weight = conv.weight * scale.view(-1, *[1] * (conv.weight.ndim - 1))
        return conv._conv_forward(x, weight, shift)

    return forward


class _Uses(TorchFunctionMode):
    """Counts the functions that take a tensor and return one."""

    def __init__(self) -> None:
        super().__init__()
        self._count: dict[int, int] = {}
        self._alive: list[Tensor] = []  # keeps ids unique

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self._alive.append(leaf)
                    self._count[id(leaf)] = self._count.get(id(leaf), 0) + 1
        return result

    def of(self, tensor: Tensor) -> int:
        return self._count.get(id(tensor), 0)
