"""Permutations that bring one network's weights close to another's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hessian_spectrum.symmetries.channel_groups import ChannelGroup, ChannelGroups, permuted

EPS = 1e-12  # of |a| |b|: rounding of an inner product, so that every accepted step is a real one


def weight_matching(
    groups: ChannelGroups, a: Mapping[str, Tensor], b: Mapping[str, Tensor], seed: int = 0
) -> tuple[dict[str, np.ndarray], int]:
    """Permutations of b that raise the inner product <a, P b> until no group's can raise it more.

    Algorithm 1 of Ainsworth, Hayase & Srinivasa (2023, "Git Re-Basin", ICLR): the permutation of
    one group after the other is the solution of a linear assignment problem with all others fixed,
    in a new random order in each pass. Except: a permutation is taken only where it raises the
    inner product itself, so that the passes end also where a tensor has one group along two axes,
    of which the assignment sees one at a time.

    Args:
        a, b: parameters by name, of one architecture.
        seed: of the order of the groups.

    Returns:
        The permutations, and the number of passes, of which the last one changed nothing. A local
        maximum: another seed may find another one.

    Cost: a pass: for each group a matrix product of (size, n / size) matrices for each of its
    tensors, and an assignment problem of O(size^3).
    """
    random = np.random.default_rng(seed)
    left = {name: tensor.detach().double() for name, tensor in a.items()}
    right = {name: tensor.detach().double() for name, tensor in b.items()}
    scale = _norm(left) * _norm(right)
    found, passes, is_better = groups.identity(), 0, True
    while is_better:
        is_better, passes = False, passes + 1
        for index in random.permutation(len(groups)):
            group = groups.groups[index]
            best = assignment(_similarities(group, left, right))
            moved = _moved(group, right, best)
            gain = sum(torch.sum(left[n] * (t - right[n])).item() for n, t in moved.items())
            if gain > EPS * scale:
                right |= moved
                found[group.name] = found[group.name][best]
                is_better = True
    return found, passes


def assignment(similarities: np.ndarray) -> np.ndarray:
    """(k,), the permutation p with the largest sum of ``similarities[i, p[i]]``, (k, k)."""
    return linear_sum_assignment(similarities, maximize=True)[1]


def _similarities(
    group: ChannelGroup, left: Mapping[str, Tensor], right: Mapping[str, Tensor]
) -> np.ndarray:
    """(size, size), inner products of all that belongs to one channel."""
    total = np.zeros((group.size, group.size))
    for place in group.places:
        if place.tensor in left:
            at = torch.from_numpy(place.indices.ravel()).to(left[place.tensor].device)
            rows = [
                t[place.tensor].movedim(place.axis, 0)[at].reshape(group.size, -1)
                for t in (left, right)
            ]
            total += (rows[0] @ rows[1].T).cpu().numpy()
    return total


def _moved(
    group: ChannelGroup, tensors: Mapping[str, Tensor], permutation: np.ndarray
) -> dict[str, Tensor]:
    """Those of the tensors that have channels of the group, permuted."""
    found: dict[str, Tensor] = {}
    for place in group.places:
        if place.tensor in tensors:
            before = found.get(place.tensor, tensors[place.tensor])
            found[place.tensor] = permuted(before, place, permutation)
    return found


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(sum(torch.sum(t * t).item() for t in tensors.values())) ** 0.5
