"""Embedding lookups whose derivatives are those of the loss.

torch's options that change gradients, not values, are left out: ``sparse`` (gradients that are
added to nothing else) and ``scale_grad_by_freq``. The row ``padding_idx`` is looked up as a
constant, as in torch's gradient, and so it is in second derivatives of every product mode; torch's
forward mode moves it. Bags of embeddings are sums of lookups: torch's fused ones have no second
derivatives.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hessian_spectrum._core.errors import InputError

_LAYERS = (nn.Embedding, nn.EmbeddingBag)
_CALLS: dict[Callable, inspect.Signature] = {
    function: inspect.signature(function) for function in (F.embedding, F.embedding_bag)
}


class DifferentiableEmbedding(TorchFunctionMode):
    """While active, replaces the calls for which ``needs`` holds by ``lookup`` and ``bag``."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if not needs(func, args, kwargs):
            return func(*args, **kwargs)
        given = _arguments(func, args, kwargs)
        input, weight, padding_idx = given["input"], given["weight"], given["padding_idx"]
        if func is F.embedding:
            return lookup(input, weight, padding_idx)
        scales, last = given["per_sample_weights"], given["include_last_offset"]
        return bag(input, weight, given["offsets"], given["mode"], scales, last, padding_idx)


def needs(func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Is it a lookup with options that change gradients, or a bag that is a sum or a mean?

    Raises:
        InputError: a lookup with ``max_norm``.
    """
    if func not in _CALLS:
        return False
    given = _arguments(func, args, kwargs)
    if given["max_norm"] is not None:
        raise InputError(
            f"{func.__name__} is called with max_norm={given['max_norm']:g}: each evaluation "
            "rescales rows of the weight in place, so that the loss is no differentiable function "
            "of it; call it without max_norm"
        )
    if func is F.embedding_bag:
        return given["mode"] != "max"
    options = given["sparse"], given["scale_grad_by_freq"], given["padding_idx"] is not None
    return any(options)


def lookup(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of ``weight``, shape (*input.shape, dim); that of ``padding_idx`` as a constant."""
    found = F.embedding(input, weight)
    if padding_idx is None:
        return found
    padding_idx %= len(weight)
    return torch.where((input == padding_idx)[..., None], weight[padding_idx].detach(), found)


def bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    mode: str,
    scales: Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
) -> Tensor:
    """As ``F.embedding_bag`` for modes "sum" and "mean", by one lookup and one ``index_add``."""
    if offsets is None:
        count = len(input)
        owner = torch.arange(count, device=input.device).repeat_interleave(input.shape[1])
        input, scales = input.reshape(-1), None if scales is None else scales.reshape(-1)
    else:
        count = len(offsets) - include_last_offset
        places = torch.arange(len(input), device=input.device)
        owner = torch.searchsorted(offsets[:count].contiguous(), places, right=True) - 1
    rows = F.embedding(input, weight)
    kept = torch.ones_like(rows[:, :1])
    if padding_idx is not None:
        kept = (input != padding_idx % len(weight))[:, None].to(rows)
    rows = rows * (kept if scales is None else kept * scales[:, None])
    total = rows.new_zeros(count, weight.shape[1]).index_add(0, owner, rows)
    if mode == "sum":
        return total
    return total / kept.new_zeros(count, 1).index_add(0, owner, kept).clamp(min=1)


def are_in(model: nn.Module) -> bool:
    """Has the model layers whose lookups are replaced?"""

    def is_one(module: nn.Module) -> bool:
        if not isinstance(module, nn.Embedding):
            return isinstance(module, nn.EmbeddingBag)
        return module.sparse or module.scale_grad_by_freq or module.padding_idx is not None

    return any(map(is_one, model.modules()))


def constant_rows(model: nn.Module) -> dict[str, list[int]]:
    """The rows that lookups take as constants, by the name of their parameter."""
    names = {id(p): name for name, p in model.named_parameters()}  # a shared one's first name
    rows: dict[str, list[int]] = {}
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            name = names.get(id(module._parameters.get("weight")))
            if name is not None:  # else it is computed from others
                rows.setdefault(name, []).append(module.padding_idx)
    return rows


def refuse_renormalized(model: nn.Module) -> None:
    """InputError if an embedding layer has ``max_norm``: each lookup changes its weight."""
    for name, module in model.named_modules():
        if isinstance(module, _LAYERS) and module.max_norm is not None:
            layer = f"model.{name}" if name else "model"
            raise InputError(
                f"the layer {name or 'given as model'} ({type(module).__name__}) has "
                f"max_norm={module.max_norm:g}: each evaluation rescales rows of its weight in "
                "place, so that the loss is no differentiable function of it; rescale its rows "
                f"once, {layer}.weight.data.renorm_({module.norm_type:g}, 0, {module.max_norm:g}), "
                f"and set {layer}.max_norm = None"
            )


def _arguments(func: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = _CALLS[func].bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments
