"""Which samples each step of a training takes: shuffled, augmented, dealt to the ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.world import World
from hessian_spectrum.zoo import augmentation
from hessian_spectrum.zoo.data_parallel import Share, share_of

Data = tuple[Tensor, Tensor]  # inputs and targets, samples first
Batch = Tensor | slice  # the samples' numbers; all of them
DROPOUT, AUGMENTATION = 1, 2  # what random numbers of a step are for


def seed_of(*key: int) -> int:
    """A seed of its own for each key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


class Minibatches:
    """The minibatches of one epoch after the other, the same ones whether restored or not.

    The sample order has a generator of its own, and the augmentation of a step depends on seed and
    step alone. If a minibatch takes all samples, they stay in their order.

    Args:
        data: inputs (N, ...) and targets (N, ...) on the world's device.
        batch_size: of all ranks together; the last minibatch of an epoch takes the rest.
        augment: one of ``augmentation.AUGMENTATIONS``, or None.

    Raises:
        InputError: an empty data set, or inputs that cannot be augmented.
    """

    def __init__(self, data: Data, batch_size: int, seed: int, augment: str | None, world: World):
        if not len(data[1]):
            raise InputError("the data set to train on has no samples; expected at least one")
        if augment is not None:
            augmentation.require_pictures(data[0])
        self.data, self.batch_size, self.world = data, batch_size, world
        self._seed, self._augment = seed, augment
        self._shuffle = torch.Generator().manual_seed(seed)
        self._before_epoch = self._shuffle.get_state()
        self._left: list[Batch] = []  # of this epoch

    @property
    def in_epoch(self) -> int:
        """How many minibatches an epoch has."""
        return math.ceil(len(self.data[1]) / self.batch_size)

    @property
    def are_used_up(self) -> bool:
        """Has the epoch ended, or not begun?"""
        return not self._left

    def begin_epoch(self) -> None:
        self._before_epoch = self._shuffle.get_state()
        n = len(self.data[1])
        order = torch.randperm(n, generator=self._shuffle)
        if self.batch_size >= n:  # gradient descent: no copy, and no rounding of an order
            self._left = [slice(n)]
        else:
            self._left = list(order.to(self.world.device).split(self.batch_size))

    def next(self, step: int) -> tuple[Share, Tensor, Tensor]:
        """This rank's part of the next minibatch of the epoch, which is that of this step."""
        return self._part(self._left.pop(0), step)

    def in_order(self, step: int) -> Iterator[tuple[Share, Tensor, Tensor]]:
        """This rank's parts of all the data, as augmented as in this step."""
        numbers = torch.arange(len(self.data[1]), device=self.world.device)
        for batch in numbers.split(self.batch_size):
            yield self._part(batch, step)

    def _part(self, batch: Batch, step: int) -> tuple[Share, Tensor, Tensor]:
        inputs, targets = self.data
        n = len(targets) if isinstance(batch, slice) else len(batch)
        share, own = share_of(self.world, n)
        rows = own if isinstance(batch, slice) else batch[own]
        x, y = inputs[rows], targets[rows]
        if self._augment is not None:
            generator = torch.Generator().manual_seed(seed_of(self._seed, AUGMENTATION, step))
            x = augmentation.flip_crop(x, augmentation.draw(n, generator)[own])
        return share, x, y

    def state_dict(self) -> dict[str, Any]:
        used = 0 if self.are_used_up else self.in_epoch - len(self._left)
        return {"used": used, "shuffle": self._before_epoch if used else self._shuffle.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._shuffle.set_state(state["shuffle"])
        self._left = []
        if state["used"]:
            self.begin_epoch()
            self._left = self._left[int(state["used"]) :]
