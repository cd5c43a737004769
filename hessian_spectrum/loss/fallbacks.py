"""Replace kernels without second derivatives; warn once per process."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hessian_spectrum.loss import cross_entropy as softmax

_ATTENTION = (F.scaled_dot_product_attention, F.multi_head_attention_forward)

ATTENTION = (
    "attention (scaled_dot_product_attention) runs by torch's math kernel: the flash and "
    "memory-efficient ones have neither second derivatives nor jvp"
)
RECURRENCE = (
    "LSTM, GRU and RNN layers run unfused: the kernels of cuDNN have no second derivatives, those "
    "of oneDNN no jvp"
)

_said: set[str] = set()  # in this process


class Watch(TorchFunctionMode):
    """While active, records whether attention, or cross entropy over many classes, is called."""

    def __init__(self):
        super().__init__()
        self.attention = self.large_softmax = False

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        self.attention |= func in _ATTENTION
        self.large_softmax |= func is F.cross_entropy and softmax.is_large(*args, **kwargs)
        return func(*args, **kwargs)


def found(model: nn.Module, attention: bool) -> tuple[str, ...]:
    """In words, the kernels of this model that run differently inside the package."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return (ATTENTION,) * attention + (RECURRENCE,) * recurrent


def say_once(texts: tuple[str, ...]) -> None:
    """Log each text as a warning, once per process."""
    for text in texts:
        if text not in _said:
            _said.add(text)
            logging.getLogger("hessian_spectrum").warning(text)
