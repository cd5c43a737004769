"""Pictures with few pixels, for small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from benchmarks.suite.context import Context
from hessian_spectrum import zoo
from hessian_spectrum._core.atomic import replacing

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


def small_pictures(context: Context, samples: int) -> Path:
    """A file of the first CIFAR-10 pictures of both splits, averaged to 16 x 16 pixels.

    It is what ``--dataset arrays`` reads; kept in the study's folder.

    Raises:
        DataMissing: there are no CIFAR-10 pictures here.
    """
    path = context.folder / f"pictures-{samples}.npz"
    if path.exists():
        return path
    arrays = {}
    with np.load(context.data("cifar10")) as found:
        for split in ("train", "test"):
            pictures = torch.from_numpy(found[f"{split}_images"][:samples]).float()
            arrays[f"{split}_images"] = avg_pool2d(pictures, 2).round().to(torch.uint8).numpy()
            arrays[f"{split}_labels"] = found[f"{split}_labels"][:samples]
    with replacing(path) as beside, open(beside, "wb") as file:  # a killed study leaves no part
        np.savez(file, **arrays)
    return path
