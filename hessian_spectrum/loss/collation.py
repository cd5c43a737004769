"""Samples that cannot be stacked into a batch are refused by the entry that is to blame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate

from hessian_spectrum._core.errors import InputError, in_one_line, is_out_of_memory


class Collated:
    """``collate`` with the cause where it fails; a class, since workers are sent it.

    Raises:
        InputError: samples cannot be stacked.
    """

    def __init__(self, collate: Callable[[list], Any]):
        self.collate = collate

    def __call__(self, samples: list) -> Any:
        try:
            return self.collate(samples)
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, InputError):
                raise
            if self.collate is not default_collate:
                raise InputError(
                    f"collate_fn fails for {len(samples)} samples: {in_one_line(error)}"
                ) from error
            raise InputError(_cause(samples) or _unknown(samples, error)) from error


def _cause(samples: list) -> str | None:
    """In words: the first entry that cannot be stacked, and what to do."""
    for index, sample in enumerate(samples):
        for where, leaf in _entries(sample):
            if not _can_be_stacked(leaf):
                return (
                    f"entry {where} of the batch's sample {index} is {_described(leaf)}, and "
                    f"cannot be stacked into a tensor; {_way_out(leaf)}"
                )
    columns: dict[str, tuple[int, ...]] = {}
    for index, sample in enumerate(samples):
        for where, leaf in _entries(sample):
            shape = tuple(getattr(leaf, "shape", ()))
            first = columns.setdefault(where, shape)
            if shape != first:
                return (
                    f"entry {where} has the shape {first} in the batch's first sample, but "
                    f"{shape} in sample {index}; pass DataLoader(data, batch_size, "
                    "collate_fn=f) with an f that pads, or batches that are ready, "
                    "DataLoader(batches, batch_size=None)"
                )
    return None


def _unknown(samples: list, error: Exception) -> str:
    return (
        f"{len(samples)} samples cannot be stacked into a batch: {in_one_line(error)}; let each "
        "sample be tensors or numbers in the same tuple or dict, or pass "
        "DataLoader(data, batch_size, collate_fn=f)"
    )


def _entries(sample: Any, where: str = "") -> list[tuple[str, Any]]:
    """The leaves of a sample, and where they are: ``[0]``, ``['x'][1]``."""
    if isinstance(sample, Mapping):
        pairs = [(repr(key), value) for key, value in sample.items()]
    elif isinstance(sample, (tuple, list)):
        pairs = [(str(i), value) for i, value in enumerate(sample)]
    else:
        return [(where or "0", sample)]
    return [entry for key, value in pairs for entry in _entries(value, f"{where}[{key}]")]


def _can_be_stacked(leaf: Any) -> bool:
    try:
        default_collate([leaf])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


def _described(leaf: Any) -> str:
    if leaf is None:
        return "None"
    if _is_picture(leaf):
        return f"a picture ({type(leaf).__name__})"
    return f"a {type(leaf).__name__}"


def _is_picture(leaf: Any) -> bool:
    return type(leaf).__module__.split(".")[0] == "PIL"


def _way_out(leaf: Any) -> str:
    if leaf is None:
        return (
            "let the data set leave that entry out, or return a tensor in its place, such as "
            "torch.zeros(0)"
        )
    if _is_picture(leaf):
        return "give the data set transform=torchvision.transforms.ToTensor()"
    return (
        "let the data set return tensors, arrays, numbers or texts, or pass "
        "DataLoader(data, batch_size, collate_fn=f)"
    )


def require_length(data: Any) -> None:
    """InputError if a data set has no number of samples, or holds lists in place of tensors."""
    if not hasattr(data, "__len__"):
        kind = type(data).__name__
        raise InputError(
            f"the {kind} has no __len__, so that the number of its samples is unknown; define "
            f"{kind}.__len__, or derive it from torch.utils.data.IterableDataset and define "
            "__iter__"
        )
    if is_pair_of_lists(data):
        raise InputError(
            "data is a pair of lists of numbers, which would be two samples; pass tensors, "
            "(torch.tensor(inputs), torch.tensor(targets))"
        )


def is_pair_of_lists(data: Any) -> bool:
    """Two lists of as many numbers, or rows of numbers? Two entries each could be samples."""
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        return False
    inputs, targets = data
    if not (isinstance(inputs, list) and isinstance(targets, list)):
        return False
    if len(inputs) != len(targets) or len(inputs) < 3:
        return False
    return all(map(_is_array, data))


def _is_array(entries: list) -> bool:
    try:
        return isinstance(torch.tensor(entries), Tensor)
    except (TypeError, ValueError, RuntimeError):  # of different lengths, or no numbers
        return False
