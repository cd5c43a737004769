"""Dropout with fixed masks: one of the thinned networks that dropout averages over."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss.backends import replaced_forward

# These drop whole channels: their masks have entries for (sample, channel) only.
_BY_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def layers(model: nn.Module) -> dict[str, _DropoutNd]:
    """The model's dropout layers by name.

    Raises:
        InputError: a layer does more than drop entries (such as AlphaDropout).
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, _DropoutNd) and m.p}
    for name, module in found.items():
        if not isinstance(module, (nn.Dropout, *_BY_CHANNEL)):
            raise InputError(
                f"dropout='frozen': {name} ({type(module).__name__}) cannot be frozen; use "
                "nn.Dropout, or dropout='off'"
            )
    return found


@contextmanager
def frozen(model: nn.Module, seed: int, calls: dict[str, int]) -> Iterator[None]:
    """Dropout layers multiply by a mask that depends on (seed, layer, call, shape) alone.

    The same for every sample, so that the loss stays a sum over samples, however they are batched.
    A layer that is called several times in one evaluation has a mask for each call.

    Args:
        calls: how often each layer was called; to be cleared before each evaluation.
    """
    names: dict[nn.Module, str] = {module: name for name, module in layers(model).items()}
    with replaced_forward(names, lambda module: _masking(module, names[module], seed, calls)):
        yield


def _masking(
    module: nn.Module, name: str, seed: int, calls: dict[str, int]
) -> Callable[[Tensor], Tensor]:
    assert isinstance(module, _DropoutNd)
    kept = 1.0 - module.p

    def forward(x: Tensor) -> Tensor:
        calls[name] = calls.get(name, 0) + 1
        shape = list(x.shape[1:])
        if isinstance(module, _BY_CHANNEL):
            shape[1:] = [1] * len(shape[1:])
        key = hashlib.sha256(repr((seed, name, calls[name], shape)).encode()).digest()
        # NumPy's generator, since vmap refuses torch's random operations.
        numbers = np.random.default_rng(int.from_bytes(key, "little")).random(shape)
        mask = torch.from_numpy(numbers < kept).to(x.device, x.dtype)
        return x * (mask / kept) if kept else torch.zeros_like(x)

    return forward
