"""The squared error of class scores, or of vectors, as one loss per sample."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError


class SquaredError(nn.Module):
    """Half the squared distance of the outputs from their targets, one number a sample.

    ``loss_i = 1/2 sum_c (outputs[i, c] - targets[i, c])^2``, and the mean of it over the samples,
    as Cohen et al. (2021, "Gradient descent on neural networks typically occurs at the edge of
    stability") define it. It is C / 2 times nn.MSELoss, which divides by the C outputs. Up to a
    constant it is the negative log-likelihood of a Gaussian of unit variance.

    Args:
        reduction: "mean" over the samples, their "sum", or "none", shape (N,).

    ``forward(outputs, targets)`` takes outputs (N, ...) and floats of the same shape, or outputs
    (N, C) and class indices (N,), each of which stands for its one-hot vector.

    Raises:
        InputError: targets of another shape.
    """

    def __init__(self, reduction: Literal["mean", "sum", "none"] = "mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            targets = _one_hot(targets, outputs)
        if outputs.shape != targets.shape:
            raise InputError(
                f"the squared error compares outputs of shape {tuple(outputs.shape)} with targets "
                f"of shape {tuple(targets.shape)}; expected the same shape, or outputs (N, C) and "
                "class indices (N,)"
            )
        values = (outputs - targets).square().flatten(1).sum(1) / 2
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()


def _one_hot(labels: Tensor, outputs: Tensor) -> Tensor:
    # Not F.one_hot, which reads the largest label and so cannot be traced or mapped over.
    classes = torch.arange(outputs.shape[-1], device=labels.device)
    return (labels[..., None] == classes).to(outputs.dtype)
