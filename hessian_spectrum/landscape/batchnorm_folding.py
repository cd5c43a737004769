"""BatchNorm with fixed statistics, folded into the convolution before it: one pass less.

With statistics mu, sigma and scale gamma, shift beta: BN(W x + b) = (gamma / sigma) W x
+ (gamma / sigma) (b - mu) + beta. The same function up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

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
    """Convolutions whose output goes into one BatchNorm with fixed statistics and nowhere else.

    Found in one evaluation of a sample, in which each of the two is called once. None with
    ``batch_norm="train"``. To be called inside ``evaluation_mode``.
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
    """Convolutions do what their BatchNorm does as well, and it passes on what it is given."""
    with (
        replaced_forward(found, lambda conv: _convolution(conv, found[conv])),
        replaced_forward(found.values(), lambda norm: lambda x: x),
    ):
        yield


def _convolution(conv: nn.Module, norm: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        # Read at each call: functional_call puts this point's tensors in.
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
    """How many functions make a tensor of a tensor."""

    def __init__(self):
        super().__init__()
        self._count: dict[int, int] = {}
        self._alive: list[Tensor] = []  # else another tensor could have the same id

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
