"""torchvision's classifiers and its data sets of labelled pictures, by name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.memory import available
from hessian_spectrum.distributed.world import World
from hessian_spectrum.zoo.torchvision_compat import import_torchvision

PREFIX = "torchvision:"


def load_pictures(
    name: str,
    root: Path | None,
    split: str,
    limit: int | None,
    image_size: int | None,
    download: bool,
) -> TensorDataset:
    """Pictures, float32 (N, C, H, W), pixels / 255, and labels, int64 (N,).

    Args:
        name: ``torchvision:CIFAR100``: a class of torchvision.datasets with one label per picture.
        root: the data set's folder; None for classes without one (FakeData).
        split: "train" or "test".
        limit: number of pictures to take from the start; None for all.
        image_size: side in pixels. The shorter side is resized to it and the middle square is
            cropped; needed if pictures differ in size.
        download: let torchvision download missing data.

    Raises:
        InputError: no such data set, no data at ``root``, pictures of several sizes, labels that
            are not classes, or more data than memory.
    """
    pictures = _opened(name, root, split, download)
    count = min(len(pictures), limit or len(pictures))
    if not count:
        raise InputError(f"{name} has no pictures in split {split!r}; expected at least one")
    image, label = pictures[0]
    first = _picture(image, label, None, image_size, name)
    needed, there = count * first[0].nbytes, available(World())
    if needed > there:
        raise InputError(
            f"{count:,} pictures of {name} take {needed / 2**30:.1f} GiB of {there / 2**30:.1f} "
            "GiB; use --limit, a smaller --image-size, or a problem file that reads them lazily"
        )
    images = torch.empty((count, *first[0].shape))
    labels = torch.empty(count, dtype=torch.int64)
    for i in range(count):
        image, label = pictures[i]
        image, label = _picture(image, label, first[0], image_size, name)
        if image.shape != images.shape[1:]:
            raise InputError(
                f"the pictures of {name} differ in size: {tuple(first[0].shape)} and "
                f"{tuple(image.shape)}; use --image-size N"
            )
        images[i], labels[i] = image, label
    return TensorDataset(images, labels)


def _opened(name: str, root: Path | None, split: str, download: bool) -> Any:
    datasets = import_torchvision().datasets
    cls = getattr(datasets, name.removeprefix(PREFIX), None)
    if not inspect.isclass(cls) or not issubclass(cls, torch.utils.data.Dataset):
        raise InputError(
            f"torchvision has no data set {name.removeprefix(PREFIX)!r}; expected one such as "
            "torchvision:CIFAR100, torchvision:SVHN or torchvision:FashionMNIST"
        )
    takes = inspect.signature(cls.__init__).parameters
    options: dict[str, Any] = {}
    if "root" in takes:
        if root is None:
            raise InputError(f"data set {name!r} needs data_root; give the folder it is in")
        options["root"] = str(root)
    if "train" in takes:
        options["train"] = split == "train"
    elif "split" in takes:
        options["split"] = split
    elif split != "train":
        raise InputError(f"{name} has no splits; use split 'train'")
    if "download" in takes:
        options["download"] = download
    try:
        return cls(**options)
    # torchvision checks little before it parses, so damaged files raise nearly any exception.
    except Exception as error:
        hint = "" if download or "download" not in takes else ", or let it be fetched by --download"
        raise InputError(
            f"{name} cannot be read at {root} ({_one_line(error)}); put torchvision's files there"
            + hint
        ) from error


def _picture(
    image: Any, label: Any, like: Tensor | None, image_size: int | None, name: str
) -> tuple[Tensor, int]:
    """The picture, float32 (C, H, W) with as many channels as ``like``, and its class."""
    if not isinstance(label, (int, np.integer)) and not (
        isinstance(label, Tensor) and label.ndim == 0 and not label.is_floating_point()
    ):
        raise InputError(
            f"a label of {name} is a {type(label).__name__}; expected classes numbered from 0: use "
            "a problem file for other targets"
        )
    if not hasattr(image, "convert"):
        raise InputError(f"{name} holds a {type(image).__name__}; expected pictures")
    gray = image.mode in ("1", "L") if like is None else len(like) == 1
    image = image.convert("L" if gray else "RGB")
    if image_size is not None:
        transforms = import_torchvision().transforms.functional
        image = transforms.center_crop(transforms.resize(image, image_size), image_size)
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = pixels[None] if gray else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels)), int(label)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def build_classifier(name: str, num_classes: int) -> torch.nn.Module:
    """A freshly initialized classifier of torchvision.models, such as ``torchvision:resnet18``.

    Raises:
        InputError: torchvision has no classifier of that name; lists similar names.
    """
    models = import_torchvision().models
    known = models.list_models(module=models)
    short = name.removeprefix(PREFIX)
    if short not in known:
        near = [other for other in known if other[:3] == short[:3]] or known
        raise InputError(f"torchvision has no classifier {short!r}; it has {', '.join(near[:8])}")
    return models.get_model(short, weights=None, num_classes=num_classes)
