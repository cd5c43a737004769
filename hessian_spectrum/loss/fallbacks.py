"""Replace kernels without second derivatives; warn once per process."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hessian_spectrum.loss import cross_entropy as softmax
from hessian_spectrum.loss import embeddings

_ATTENTION = (F.scaled_dot_product_attention, F.multi_head_attention_forward)

ATTENTION = (
    "attention (scaled_dot_product_attention) runs by torch's math kernel: the flash and "
    "memory-efficient ones have neither second derivatives nor jvp"
)
RECURRENCE = (
    "LSTM, GRU and RNN layers run unfused: the kernels of cuDNN have no second derivatives, those "
    "of oneDNN no jvp"
)
WEIGHT_NORM = (
    "weight_norm runs in elementary operations: the second derivatives of torch's fused one are "
    "wrong"
)

_said: set[str] = set()  # in this process


class Watch(TorchFunctionMode):
    """While active, records whether attention, cross entropy over many classes, weight
    normalization, or a lookup whose derivatives are not those of the loss is called."""

    def __init__(self):
        super().__init__()
        self.attention = self.large_softmax = self.weight_norm = self.embeddings = False

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        self.attention |= func in _ATTENTION
        self.weight_norm |= func is torch._weight_norm
        self.large_softmax |= func is F.cross_entropy and softmax.is_large(*args, **kwargs)
        self.embeddings |= embeddings.needs(func, args, kwargs)
        return func(*args, **kwargs)


def found(model: nn.Module, attention: bool, weight_norm: bool) -> tuple[str, ...]:
    """In words, the kernels of this model that run differently inside the package."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    texts = {ATTENTION: attention, RECURRENCE: recurrent, WEIGHT_NORM: weight_norm}
    return tuple(text for text, is_used in texts.items() if is_used)


def say_once(texts: Iterable[str]) -> None:
    """Log each text as a warning, once per process."""
    for text in texts:
        if text not in _said:
            _said.add(text)
            logging.getLogger("hessian_spectrum").warning(text)
