"""Random groups of the samples, each with an evaluator: for errors that come from finite data."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.loss.batching import columns_are, leading_size, split
from hessian_spectrum.loss.digests import sample_digests
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.loaders import Minibatches


def random_groups(evaluator: Evaluator, num_groups: int, seed: int = 0) -> list[Evaluator]:
    """The same loss as a mean over each of ``num_groups`` random parts of the samples.

    A sample's group is decided by its own SHA-256 and the seed: it is the same on any number of
    ranks, in any minibatches and any order, and data that is sorted by class is mixed. Group
    sizes are multinomial.

    Args:
        evaluator: its loss is a mean over samples; a sample is an entry of the first dimension.

    Raises:
        InputError: samples depend on each other or cannot be told apart; a group is empty.

    Cost: a digest of each sample; a group's minibatches are gathered anew in each pass.
    """
    require_whole(2, data_groups=num_groups)
    if evaluator.batch_norm != "eval":
        raise InputError(
            f"data_groups with batch_norm={evaluator.batch_norm!r}: the loss of a sample depends "
            "on the others, so that a part of the data has another; use batch_norm='eval'"
        )
    found = together(
        evaluator.world,
        lambda: [_groups_of(batch, num_groups, seed) for batch in evaluator.batches],
    )
    groups = [_group(evaluator, found, number) for number in range(num_groups)]
    sums = torch.tensor(
        [
            [sum(map(g.function.weight, g.batches)), sum(map(leading_size, g.batches))]
            for g in groups
        ],
        dtype=torch.float64,
        device=evaluator.device,
    )
    for group, (weight, samples) in zip(groups, evaluator.world.sum(sums).tolist()):
        if not weight > 0:
            raise InputError(
                f"data_groups={num_groups}: a group of the {evaluator.num_samples:.0f} samples is "
                "empty; use fewer groups"
            )
        group.total_weight, group.num_samples = weight, samples
    return groups


def _groups_of(batch: Any, num_groups: int, seed: int) -> np.ndarray:
    """(samples,), the group of each."""
    if leading_size(batch) > 1 and split(batch, 1) is None:
        raise InputError(
            "data_groups: a batch cannot be divided into samples (a leaf whose first dimension is "
            "not that of the first one, as in graphs)"
        )
    salted = (hashlib.sha256(b"%d:" % seed + sample) for sample in sample_digests(batch))
    return np.array([int.from_bytes(s.digest()[:8], "big") % num_groups for s in salted], dtype=int)


def _group(evaluator: Evaluator, found: list[np.ndarray], number: int) -> Evaluator:
    group = copy.copy(evaluator)

    def read() -> Iterator[Any]:
        pairs = zip(evaluator.batches, found)
        parts = (_taken(batch, np.flatnonzero(groups == number)) for batch, groups in pairs)
        sizes = (len(groups) for groups in found)
        return _joined((part for part in parts if leading_size(part)), max(sizes, default=1))

    group.batches = Minibatches(read, evaluator.batches.kept)
    return group


def _taken(batch: Any, rows: np.ndarray) -> Any:
    """These samples of a batch."""

    def take(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf[torch.from_numpy(rows).to(leaf.device)]
        return type(leaf)(leaf[row] for row in rows)

    return tree_map(take, batch, is_leaf=columns_are(leading_size(batch)))


def _joined(parts: Iterator[Any], size: int) -> Iterator[Any]:
    """Minibatches of about ``size`` samples: small ones cost more a sample."""
    waiting: Any = None
    for part in parts:
        both = None if waiting is None else _concatenated(waiting, part)
        if waiting is not None and both is None:  # such as samples of different lengths
            yield waiting
        waiting = part if both is None else both
        if leading_size(waiting) >= size:
            yield waiting
            waiting = None
    if waiting is not None:
        yield waiting


def _concatenated(first: Any, other: Any) -> Any | None:
    """Both batches in one; None if their samples differ in shape."""
    fits = True

    def join(a: Any, b: Any) -> Any:
        nonlocal fits
        if not isinstance(a, Tensor):
            return a + b
        fits = fits and a.shape[1:] == b.shape[1:]
        return torch.cat([a, b]) if fits else a

    joined = tree_map(join, first, other, is_leaf=columns_are(leading_size(first)))
    return joined if fits else None
