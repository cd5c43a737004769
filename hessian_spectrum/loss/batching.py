"""Operations on one batch, a tree of tensors with one entry a sample: size, split, take, join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


def leading_size(batch: Any) -> int:
    """The first dimension of the batch's first tensor: its number of samples."""
    return next((len(t) for t in tensors_of(batch) if t.ndim), 0)


def split(batch: Any, at: int) -> tuple[Any, Any] | None:
    """The first ``at`` samples and the rest; None where a leaf is not divided by samples.

    A list or tuple of as many strings or numbers as there are samples is divided too: the default
    collation returns such lists for entries that are not numeric.
    """
    is_column = _columns(batch)
    if is_column is None:
        return None
    parts = (slice(None, at), slice(at, None))
    return tuple(
        tree_map(lambda t, part=part: None if t is None else t[part], batch, is_leaf=is_column)
        for part in parts
    )


def take(batch: Any, rows: Sequence[int]) -> Any | None:
    """The samples with these numbers, copied; None where a leaf is not divided by samples."""
    is_column = _columns(batch)
    if is_column is None:
        return None

    def chosen(leaf: Any) -> Any:
        if leaf is None:
            return None
        return leaf[rows] if isinstance(leaf, Tensor) else type(leaf)(leaf[row] for row in rows)

    return tree_map(chosen, batch, is_leaf=is_column)


def join(batches: Sequence[Any]) -> list[Any]:
    """All samples in one batch; the batches unchanged if their structures or shapes differ."""
    leaves, structures = zip(*map(tree_flatten, batches))
    if any(structure != structures[0] for structure in structures):
        return list(batches)
    for column in zip(*leaves):
        if not all(isinstance(t, Tensor) and t.shape[1:] == column[0].shape[1:] for t in column):
            return list(batches)
    return [tree_unflatten([torch.cat(column) for column in zip(*leaves)], structures[0])]


def _columns(batch: Any) -> Callable[[Any], bool] | None:
    """A test for lists with one entry a sample; None if some leaf is not divided by samples."""
    size = leading_size(batch)
    is_column = columns_are(size)
    leaves = tree_flatten(batch, is_leaf=is_column)[0]
    if not all(
        t is None or is_column(t) or (isinstance(t, Tensor) and t.ndim and len(t) == size)
        for t in leaves
    ):
        return None
    return is_column


def columns_are(size: int) -> Callable[[Any], bool]:
    """A test: is a node a list or tuple of ``size`` texts or numbers, one for each sample?"""
    return lambda node: (
        isinstance(node, (list, tuple))
        and len(node) == size
        and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(node))
    )


def pieces(batch: Any, size: int | None) -> list[Any]:
    """The batch cut into parts of at most ``size`` samples; whole where it cannot be divided."""
    cut = []
    while size is not None and leading_size(batch) > size:
        parts = split(batch, size)
        if parts is None:
            break
        cut.append(parts[0])
        batch = parts[1]
    return [*cut, batch]


def cast(batch: Any, dtype: torch.dtype | None) -> Any:
    """The batch with its floating-point leaves in ``dtype``; as it is if None."""
    if dtype is None:
        return batch
    return tree_map(
        lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, batch
    )


def tensors_of(batch: Any) -> list[Tensor]:
    """The batch's leaves that are tensors."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def size_in_bytes(batch: Any) -> int:
    """Bytes that the batch's tensors take."""
    return sum(t.numel() * t.element_size() for t in tensors_of(batch))


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's entries as bytes, on the CPU."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
