"""The gradient of a scalar function of the flat parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]  # (n,) -> ()


def gradient(loss: Loss, theta: Tensor) -> Tensor:
    """grad loss, shape (n,); zero where the loss does not depend on theta."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        value = loss(theta)
    if not value.requires_grad:
        return torch.zeros_like(theta)
    return torch.autograd.grad(value, theta, materialize_grads=True)[0]
