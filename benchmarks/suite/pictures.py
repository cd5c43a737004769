"""Pictures of digits with few pixels, for small networks."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from benchmarks.suite.context import Context
from hessian_spectrum import zoo

Digits = Literal["digits", "mnist"]  # the shipped ones, of 8 x 8 pixels, and those of 28 x 28


def pooled(
    context: Context, data: Digits, side: int, limit: int, split: str = "train"
) -> tuple[Tensor, Tensor]:
    """The first ``limit`` pictures, averaged to side x side pixels, and their labels.

    Returns:
        (limit, side^2), float32, and (limit,).

    Raises:
        DataMissing: there is no MNIST here.
    """
    root = context.data("mnist") if data == "mnist" else None
    x, y = zoo.load_dataset(data, data_root=root, split=split, limit=limit).tensors
    return adaptive_avg_pool2d(x, side).flatten(1), y


def of_classes(
    context: Context, data: Digits, side: int, classes: int, samples: int
) -> tuple[Tensor, Tensor]:
    """Pictures of the first few digits, centred and of variance 1, and one-hot labels.

    Returns:
        (samples, side^2) and (samples, classes), float64.
    """
    x, y = pooled(context, data, side, 10 * samples)
    x, y = x[y < classes][:samples].double(), y[y < classes][:samples]
    return (x - x.mean(0)) / x.std(), y.new_zeros(len(y), classes).double().scatter(
        1, y[:, None], 1
    )
