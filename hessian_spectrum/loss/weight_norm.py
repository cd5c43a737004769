"""Weight normalization in operations whose second derivatives are right.

Those of torch's fused ``_weight_norm`` are not (2.13): its backward treats the norms that it saved
as constants.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class DifferentiableWeightNorm(TorchFunctionMode):
    """While active, replaces ``torch._weight_norm``, which both forms of weight_norm call."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func is torch._weight_norm:
            return weight_norm(*args, **kwargs)
        return func(*args, **kwargs)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v| (Salimans and Kingma 2016, equation 2), a norm for each index of ``dim``.

    Args:
        dim: -1: one norm of the whole tensor.
    """
    over = None if dim == -1 else [axis for axis in range(v.ndim) if axis != dim % v.ndim]
    return v * (g / torch.linalg.vector_norm(v, dim=over, keepdim=dim != -1))
