"""Training on adversarial examples, of Goodfellow, Shlens and Szegedy (2015, section 6).

    J(theta) = 1/2 L(theta, x, y) + 1/2 L(theta, x + epsilon sign(grad_x L(theta, x, y)), y)

with the cross entropy L. The derivative of the sign is 0 wherever it exists, so that derivatives of
J are those with the examples held where they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

EPSILON = 0.25  # theirs, for maxout networks on pixels in [0, 1]
CLEAN = 0.5  # the weight of the loss at the samples themselves


def outputs_of_both(model: nn.Module, batch: Any) -> Tensor:
    """Logits of the samples and of their adversarial examples, (N, 2, K).

    Examples are not clipped to the range of pixels, as theirs are not. In training mode BatchNorm
    normalizes each of both by its own statistics, and its running ones learn from each in turn.

    Args:
        batch: inputs (N, ...) and class indices (N,).

    Cost: three forward passes and a gradient with respect to the inputs.
    """
    inputs, labels = batch

    def loss(x: Tensor) -> Tensor:
        # Copies: what the search for the examples sees is no part of running statistics.
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        logits = functional_call(model, buffers, (x,), tie_weights=False)
        return F.cross_entropy(logits, labels, reduction="sum")  # each sample's own gradient

    # Detached: a derivative that is 0 need not be formed.
    direction = torch.func.grad(loss)(inputs).detach().sign()
    return torch.stack([model(inputs), model(inputs + EPSILON * direction)], 1)


class FastGradientSign(nn.Module):
    """The loss of ``outputs_of_both``: a weighted mean of the two cross entropies.

    ``forward(outputs, labels)`` takes (N, 2, K) and class indices (N,).

    Args:
        reduction: "mean" over the samples, or "none", shape (N,).
    """

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        clean, adversarial = (
            F.cross_entropy(logits, labels, reduction="none") for logits in outputs.unbind(1)
        )
        losses = CLEAN * clean + (1 - CLEAN) * adversarial
        return losses.mean() if self.reduction == "mean" else losses
