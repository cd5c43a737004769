"""The zoo's data sets by name, each as two tensors in memory. Downloads only on request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.array_files import Declared, one_line, opened
from hessian_spectrum.zoo.torchvision_compat import import_torchvision
from hessian_spectrum.zoo.torchvision_names import PREFIX, load_pictures
from hessian_spectrum.zoo.words import FILES, load_words

DATASETS = ("digits", "mnist", "cifar10", "arrays", "ptb")
_SPLITS = ("train", "test")
_DIGITS_FILE = Path(__file__).with_name("digits.npz")
_DIGITS_TRAIN = 1500  # the first 1,500 are the training set, the other 297 the test set
MOST_CLASSES = 1 << 31  # a label beyond is none
_DIGITS_MAX = 16  # a pixel counts the dark pixels in a 4x4 cell of the scan
_TORCHVISION = {  # class, and a file that must exist
    "mnist": ("MNIST", "MNIST/raw/{prefix}-images-idx3-ubyte"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/{batch}"),
}


def load_dataset(
    name: str,
    *,
    data_root: str | Path | None = None,
    split: str = "train",
    limit: int | None = None,
    image_size: int | None = None,
    download: bool = False,
) -> TensorDataset:
    """A data set of (inputs, labels): float32 (N, C, H, W) and int64 (N,); of words, int64 both.

    Args:
        name: ``digits``: 1,797 handwritten digits of 8x8, shipped with the package, pixels / 16,
            the first 1,500 are "train", the last 297 "test" (``digits.md`` has the source).
            ``mnist``, ``cifar10``: torchvision's layout under ``data_root``, pixels / 255.
            ``arrays``: ``data_root`` is a ``.npz`` or ``.h5`` file with ``{split}_images`` and
            ``{split}_labels``, or, for "train" only, ``images`` and ``labels`` or ``inputs`` and
            ``targets``. Inputs are (N, C, H, W) or, with one channel, (N, H, W); uint8 is
            divided by 255, floats are taken as they are.
            ``ptb``: windows of words (N, T) and the words that follow them (N, T), from the Penn
            Treebank's text files in the folder ``data_root`` (``words.load_words``).
            ``torchvision:NAME``: a class of torchvision.datasets with one label per picture.
        data_root: folder or file, see above; not used by ``digits``.
        split: "train" or "test".
        limit: number of samples to take from the start; None for all.
        image_size: for torchvision:NAME, side in pixels to which pictures are resized and cropped.
        download: let torchvision download missing data.

    Raises:
        InputError: an unknown name or split, a limit below 1, a size for pictures that are not
            resized, or data that are missing, damaged or of an unexpected shape or type.
    """
    if name not in DATASETS and not name.startswith(PREFIX):
        known = ", ".join((*DATASETS, f"{PREFIX}NAME"))
        raise InputError(f"unknown data set {name!r}; use one of: {known}")
    if split not in _SPLITS:
        raise InputError(f"unknown split {split!r}; use one of: {', '.join(_SPLITS)}")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1 sample, or None for all of them")
    if image_size is not None and not name.startswith(PREFIX):
        raise InputError(
            f"image_size is {image_size}, but only pictures of {PREFIX}NAME are resized; leave it "
            f"out for {name!r}, or store pictures of that size"
        )
    if name == "digits":
        return _digits(split, limit)
    root = None if data_root is None else Path(data_root).expanduser()
    if name.startswith(PREFIX):
        return load_pictures(name, root, split, limit, image_size, download)
    if root is None:
        raise InputError(f"data set {name!r} needs data_root; give {_expected_root(name, split)}")
    if name == "arrays":
        return _arrays(root, split, limit)
    if name == "ptb":
        return load_words(root, split, limit)
    return _torchvision(name, root, split, limit, download)


def _expected_root(name: str, split: str) -> str:
    if name == "arrays":
        return f"a .npz or .h5 file with {split}_images and {split}_labels"
    if name == "ptb":
        return f"the folder that contains {' or '.join(FILES[split])}"
    return f"the folder that contains {_required_file(name, split)}"


def _required_file(name: str, split: str) -> str:
    prefix, batch = ("train", "data_batch_1") if split == "train" else ("t10k", "test_batch")
    return _TORCHVISION[name][1].format(prefix=prefix, batch=batch)


def _digits(split: str, limit: int | None) -> TensorDataset:
    chosen = slice(_DIGITS_TRAIN) if split == "train" else slice(_DIGITS_TRAIN, None)
    with np.load(_DIGITS_FILE, allow_pickle=False) as file:
        images, labels = file["images"][chosen][:limit], file["labels"][chosen][:limit]
    return _dataset(torch.from_numpy(images)[:, None], labels, _DIGITS_MAX)


def _torchvision(
    name: str, root: Path, split: str, limit: int | None, download: bool
) -> TensorDataset:
    if not download and not (root / _required_file(name, split)).is_file():
        raise InputError(
            f"no {name} data at {root}: expected {root / _required_file(name, split)}; give the "
            "folder that holds torchvision's layout as data_root, or use --download"
        )
    reader = getattr(import_torchvision().datasets, _TORCHVISION[name][0])
    try:
        data = reader(root, train=split == "train", download=download)
    # torchvision checks little before it parses, so damaged files raise nearly any exception.
    except Exception as error:
        raise InputError(
            f"{name} data at {root} are incomplete or damaged ({one_line(error)}); put all of "
            f"torchvision's unpacked {name} files there again (nothing is downloaded)"
        ) from error
    images = torch.as_tensor(data.data[:limit])
    # MNIST is (N, H, W); CIFAR-10 has its channels last.
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return _dataset(images, data.targets[:limit], 255)


def _arrays(path: Path, split: str, limit: int | None) -> TensorDataset:
    with opened(path) as arrays:
        inputs_name, labels_name = _pair_of(arrays, split, path)
        inputs, labels = arrays[inputs_name], arrays[labels_name]
        _require_samples(inputs, labels, f"{path}: {inputs_name} and {labels_name}")
        inputs, labels = inputs[:limit], labels[:limit]
    scale = 255 if inputs.dtype == np.uint8 else 1
    inputs = inputs[:, None] if inputs.ndim == 3 else inputs
    if scale == 1 and not np.isfinite(inputs).all():
        raise InputError(f"{path}: {inputs_name} has NaN or infinite values; remove those samples")
    if labels.min() < 0 or labels.max() > MOST_CLASSES:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(
            f"{path}: {labels_name} has the label {wrong}; expected classes numbered from 0"
        )
    return _dataset(torch.from_numpy(inputs.astype(np.float32)), labels.astype(np.int64), scale)


def _pair_of(arrays: Mapping[str, Declared], split: str, path: Path) -> tuple[str, str]:
    whole = [("images", "labels"), ("inputs", "targets")]
    ours = [(f"{split}_{inputs}", f"{split}_{labels}") for inputs, labels in whole]
    # Arrays without a split are training data only; used as a test set they would look held out.
    for inputs, labels in ours + (whole if split == "train" else []):
        if inputs in arrays and labels in arrays:
            return inputs, labels
    raise InputError(
        f"{path} has the arrays {', '.join(sorted(arrays)) or '(none)'}, but split {split!r} needs "
        f"{ours[0][0]} and {ours[0][1]}"
        + (", or images and labels" if split == "train" else "")
        + "; rename them, or choose another split"
    )


def _require_samples(inputs: Declared, labels: Declared, where: str) -> None:
    """Check shapes and dtypes, which needs no values."""
    got = f"got {inputs.shape} {inputs.dtype} and {labels.shape} {labels.dtype}"
    if inputs.ndim not in (3, 4) or labels.shape != inputs.shape[:1]:
        raise InputError(
            f"{where}: {got}; expected (N, C, H, W) or (N, H, W) and (N,); reshape them (features "
            f"without a picture: (N, 1, 1, F))"
        )
    if (inputs.dtype != np.uint8 and inputs.dtype.kind != "f") or labels.dtype.kind not in "iu":
        raise InputError(f"{where}: {got}; convert them to uint8 or float inputs, integer labels")
    if 0 in inputs.shape:
        raise InputError(f"{where}: {got}; they are empty; expected at least one sample")


def _dataset(images: Tensor, labels: object, scale: float) -> TensorDataset:
    return TensorDataset(
        images.to(torch.float32).contiguous() / scale, torch.as_tensor(labels).to(torch.int64)
    )
