"""The zoo's losses of outputs and targets by name; ``objectives`` has those of whole models."""

from __future__ import annotations

from torch import nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss.squared_error import SquaredError

LOSSES: dict[str, type[nn.Module]] = {
    "cross-entropy": nn.CrossEntropyLoss,
    "mse": SquaredError,
}


def loss_named(name: str) -> nn.Module:
    """The loss ``(outputs, targets) -> mean over the samples``.

    Args:
        name: ``cross-entropy``, of logits (N, C) or (N, C, T) and class indices (N,) or (N, T);
            ``mse``, half the sum of squares over the outputs of a sample, against one-hot class
            indices or floats of the outputs' shape (``loss.squared_error``).

    Raises:
        InputError: an unknown name.
    """
    if name not in LOSSES:
        raise InputError(f"unknown loss {name!r}; use one of: {', '.join(LOSSES)}")
    return LOSSES[name]()
