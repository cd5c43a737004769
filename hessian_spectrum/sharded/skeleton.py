"""A model without weights of its own, whose modules find each parameter in ``Weights``.

The copy shares buffers and everything else with the model, and leaves out what FSDP2 and tensor
parallelism add to modules: classes, hooks on calls, parameters as DTensors.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.sharded.units import is_fsdp
from hessian_spectrum.sharded.weights import Weights

HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_OF_TORCH = "torch.distributed."  # whose hooks move parameters and inputs between placements


def skeleton(model: nn.Module) -> nn.Module:
    """The model's modules with parameters on the device meta, of the whole model's shapes.

    ``attach`` says where their values are.

    Raises:
        InputError: a layer keeps its weights outside of its parameters (LSTM, GRU, RNN).
    """
    memo: dict[int, Any] = {}
    for p in model.parameters():
        meta = torch.empty(p.shape, dtype=p.dtype, device="meta")
        memo[id(p)] = nn.Parameter(meta, requires_grad=p.requires_grad)
    copy = _copy(model, memo)
    for module in copy.modules():
        _redirect(module, memo)
    return copy


def attach(model: nn.Module, weights: Weights) -> None:
    """Let the modules of a skeleton find their parameters in ``weights``."""
    first = {id(p): name for name, p in model.named_parameters()}
    for module in model.modules():
        names = {n: first[id(p)] for n, p in module._parameters.items() if p is not None}
        if names:
            cls = type(module)
            found = {n: property(_getter(weights, name)) for n, name in names.items()}
            module.__class__ = type(cls.__name__, (cls,), {"__module__": cls.__module__, **found})


def _getter(weights: Weights, name: str) -> Callable[[nn.Module], Tensor]:
    return lambda module: weights[name]


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    if id(module) in memo:
        return memo[id(module)]
    if isinstance(module, nn.RNNBase):
        raise InputError(
            f"a layer is a {type(module).__name__}, which keeps its weights in a list of its own; "
            "models with it cannot be sharded: use Evaluator on a model that is whole on each rank"
        )
    cls = type(module)
    if is_fsdp(module):  # fully_shard has made this class of FSDPModule and the module's own one
        cls = next(c for before, c in pairwise(cls.__mro__) if before.__name__ == "FSDPModule")
    new: nn.Module = object.__new__(cls)
    memo[id(module)] = new
    state = dict(vars(module))
    for name in HOOKS:
        if name in state:
            state[name] = _without_torchs(state[name])
    state["_buffers"] = dict(module._buffers)
    state["_parameters"] = {
        n: p if p is None else memo[id(p)] for n, p in module._parameters.items()
    }
    state["_modules"] = {n: m if m is None else _copy(m, memo) for n, m in module._modules.items()}
    new.__dict__ = state
    return new


def _without_torchs(hooks: Any) -> Any:
    kept = type(hooks)()
    for key, hook in hooks.items():
        target = getattr(hook, "func", hook)
        if not str(getattr(target, "__module__", "")).startswith(_OF_TORCH):
            kept[key] = hook
    return kept


def _redirect(module: nn.Module, memo: dict[int, Any]) -> None:
    """Attributes that hold modules, parameters or methods of the model: those of the copy."""
    internal = {*HOOKS, "_parameters", "_buffers", "_modules"}
    for name, value in list(vars(module).items()):
        if name not in internal:
            module.__dict__[name] = _redirected(value, memo)


def _redirected(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, (nn.Module, nn.Parameter)):
        return memo.get(id(value), value)
    if isinstance(value, MethodType) and id(value.__self__) in memo:
        return MethodType(value.__func__, memo[id(value.__self__)])
    if type(value) in (list, tuple):
        return type(value)(_redirected(v, memo) for v in value)
    if type(value) is dict:
        return {k: _redirected(v, memo) for k, v in value.items()}
    return value
