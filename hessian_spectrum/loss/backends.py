"""Selection of torch kernels that have second derivatives, and of their arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from operator import attrgetter
from typing import Any

import torch
from torch import backends, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from hessian_spectrum._core.errors import InputError

# Arithmetic of products: the type of their vectors, and the relative rounding of one operation.
PRECISIONS = {
    "float64": (torch.float64, 2.0**-52),
    "float32": (torch.float32, 2.0**-23),
    "tf32": (torch.float32, 2.0**-10),  # matrix products and convolutions of an NVIDIA GPU
    "bfloat16": (torch.float32, 2.0**-7),  # autocast: what torch deems safe in bfloat16
}

# torch's default for convolutions is TF32. Looked up by name, since its stubs miss some of them.
_FLOAT32_KERNELS: tuple[Any, ...] = tuple(
    attrgetter(name)(backends)
    for name in (
        *("cuda.matmul", "cudnn.conv", "cudnn.rnn"),
        *("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"),
    )
)


def check_precision(precision: str, device: torch.device) -> None:
    """InputError unless the device supports products in this arithmetic."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if precision == "tf32" and not _has_tf32(device):
        raise InputError(
            f"tf32 is arithmetic of NVIDIA GPUs since Ampere, but the device is {device}; use "
            "float32 or bfloat16"
        )


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def differentiable_kernels(precision: str | None, device: torch.device) -> Iterator[None]:
    """Use kernels with second derivatives and this arithmetic; torch's settings are restored after.

    Attention runs by the math kernel: the fused ones (flash, memory-efficient) and the inference
    path of nn.MultiheadAttention have neither second derivatives nor jvp. Float32 operations are
    not rounded to TF32 or bfloat16 unless ``precision`` asks for it.
    """
    fast = backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        backends.mha.set_fastpath_enabled(False)
        stack.callback(backends.mha.set_fastpath_enabled, fast)
        _use_tf32(precision == "tf32", stack)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # Without the cache: a cast made in one transform must not be reused in another. Disabled
        # explicitly otherwise: the caller may be inside of an autocast.
        bfloat16 = precision == "bfloat16"
        stack.enter_context(
            torch.autocast(device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False)
        )
        yield


@contextmanager
def unfused_recurrences(model: nn.Module) -> Iterator[None]:
    """Run the model's LSTM, GRU and RNN layers in elementary operations.

    The fused kernels of oneDNN and cuDNN have no jvp, and those of cuDNN no second derivatives.
    They are switched off for these layers only; convolutions keep their kernels.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    with replaced_forward(layers, lambda module: _unfused(module.forward)):
        yield


@contextmanager
def replaced_forward(
    modules: Iterable[nn.Module], make: Callable[[nn.Module], Callable]
) -> Iterator[None]:
    """Set ``module.forward = make(module)``; afterwards restore the instance's or the class's."""
    with ExitStack() as stack:
        for module in modules:
            if "forward" in vars(module):
                stack.callback(setattr, module, "forward", module.forward)
            else:
                stack.callback(delattr, module, "forward")
            module.forward = make(module)
        yield


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Make torch.utils.checkpoint call its function once and keep the activations.

    Recomputation in the backward pass would run outside of functional_call, with the model's own
    parameters instead of theta.
    """

    class Through:
        @staticmethod
        def apply(function: Callable, preserve: bool, *args):
            return function(*args)

    def once(*_, **__):
        yield

    with ExitStack() as stack:
        for name, other in (
            ("CheckpointFunction", Through),
            ("_checkpoint_without_reentrant_generator", once),
        ):
            stack.callback(setattr, checkpoint, name, getattr(checkpoint, name))
            setattr(checkpoint, name, other)
        yield


def _unfused(forward: Callable) -> Callable:
    @wraps(forward)
    def unfused(*args, **kwargs):
        before = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        torch._C._set_cudnn_enabled(False)
        try:
            return forward(*args, **kwargs)
        finally:
            torch._C._set_mkldnn_enabled(before[0])
            torch._C._set_cudnn_enabled(before[1])

    return unfused


def _use_tf32(allowed: bool, stack: ExitStack) -> None:
    """Run float32 kernels in TF32, or in float32; ``stack`` restores the settings."""
    for kernel in _FLOAT32_KERNELS:
        stack.callback(setattr, kernel, "fp32_precision", kernel.fp32_precision)
    # torch raises when a setting's older and newer switches disagree, which is so where the user
    # has set the newer ones only. The older ones cannot be read then.
    with suppress(RuntimeError):
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("high" if allowed else "highest")
    with suppress(RuntimeError):
        stack.callback(setattr, backends.cudnn, "allow_tf32", backends.cudnn.allow_tf32)
        backends.cudnn.allow_tf32 = allowed
    for kernel in _FLOAT32_KERNELS:
        kernel.fp32_precision = "tf32" if allowed else "ieee"
