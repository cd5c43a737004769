"""One minibatch's part of the loss, as functions of theta: the loss, its stages, its samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss import criteria
from hessian_spectrum.loss.batching import split

if TYPE_CHECKING:
    from hessian_spectrum.loss.evaluator import Evaluator


class Part:
    """theta -> this minibatch's part of L; the parts of all minibatches and ranks add up to L.

    The loss is a criterion of the outputs: ``part(theta) = part.criterion(part.outputs(theta))``.
    """

    def __init__(self, evaluator: Evaluator, batch: Any, constants: dict[str, Tensor]):
        self._evaluator, self._batch, self._constants = evaluator, batch, constants
        self._share = evaluator.scale(batch) / evaluator.total_weight
        self._structure: tuple | None = None

    def __call__(self, theta: Tensor) -> Tensor:
        """Shape (n,) -> ()."""
        return self._evaluator.batch_loss(theta, self._batch, self._constants) * self._share

    def evaluated(self, theta: Tensor | dict[str, Tensor]) -> tuple[Tensor, Any]:
        """This part of L, and what the network returns, of one forward pass.

        Args:
            theta: (n,), or ``evaluator.named(theta)``.
        """
        loss, outputs = self._evaluator.batch_evaluated(theta, self._batch, self._constants)
        return loss * self._share, outputs

    def network_outputs(self, theta: Tensor | dict[str, Tensor]) -> Any:
        """What the network returns, as it is."""
        return self._evaluator.batch_outputs(theta, self._batch, self._constants)

    @property
    def is_sample_by_sample(self) -> bool:
        """Are the losses of single samples known, for any number of them at once?"""
        ev, batch = self._evaluator, self._batch
        if ev.has_own_forward or not criteria.is_sample_by_sample(ev.loss_fn):
            return False
        return isinstance(batch[1], Tensor) and batch[1].ndim > 0

    def losses_of(self, outputs: Tensor) -> Tensor:
        """This part of L at p points, from outputs (p, B, ...); (p,), float64. Where
        ``is_sample_by_sample``: one call for all points."""
        ev, targets, p = self._evaluator, self._batch[1], len(outputs)
        size = p * len(targets)
        repeated = targets.expand(p, *targets.shape).flatten(0, 1)
        values = ev.sample_losses_of(outputs.flatten(0, 1), repeated, self._constants, size)
        return values.view(p, -1).sum(1, dtype=torch.float64) / ev.total_weight

    @property
    def batch(self) -> Any:
        return self._batch

    def first_sample(self) -> Part:
        """The part of the first sample; all of it where the minibatch cannot be divided."""
        halves = split(self._batch, 1)
        return Part(self._evaluator, halves[0] if halves else self._batch, self._constants)

    def in_channels_last(self) -> Part:
        """The same part; images in channels-last order, which convolutions on CPUs prefer."""

        def convert(leaf: Any) -> Any:
            images = isinstance(leaf, Tensor) and leaf.ndim == 4 and leaf.is_floating_point()
            return leaf.contiguous(memory_format=torch.channels_last) if images else leaf

        return Part(self._evaluator, tree_map(convert, self._batch), self._constants)

    def outputs(self, theta: Tensor) -> Tensor:
        """The network's outputs in one vector: every floating-point tensor in what it returns."""
        outputs = self._evaluator.batch_outputs(theta, self._batch, self._constants)
        leaves, spec = tree_flatten(outputs)
        moving = [leaf for leaf in leaves if _is_floating(leaf)]
        if not moving:
            raise InputError(
                f"the network returns a {type(outputs).__name__} in which no tensor can be found; "
                "return tensors, or tuples, lists or dicts of them"
            )
        if self._structure is None:
            fixed = [None if _is_floating(leaf) else leaf for leaf in leaves]
            self._structure = spec, fixed, [leaf.shape for leaf in moving]
        return (
            moving[0].reshape(-1)
            if len(moving) == 1
            else torch.cat([t.reshape(-1) for t in moving])
        )

    def criterion(self, outputs: Tensor) -> Tensor:
        """(m,) -> (), the loss of what ``outputs`` returned; to be called after it."""
        spec, leaves, shapes = self._structure
        parts = iter(outputs.split([math.prod(shape) for shape in shapes]))
        shape = iter(shapes)
        filled = [next(parts).view(next(shape)) if leaf is None else leaf for leaf in leaves]
        tree = tree_unflatten(filled, spec)
        return self._evaluator.criterion_value(tree, self._batch, self._constants) * self._share

    def sample_sum(self, theta: Tensor) -> Tensor:
        """The loss again, by the losses of single samples."""
        losses = self._evaluator.sample_losses(theta, self._batch, self._constants)
        return losses.sum() / self._evaluator.total_weight

    def first_sample_apart(self, theta: Tensor) -> tuple[Tensor, Tensor] | None:
        """The first sample's loss, alone and in its minibatch; None where it cannot be told."""
        ev, halves = self._evaluator, split(self._batch, 1)
        if halves is None or not ev.weight(halves[0]):
            return None
        alone = ev.sample_losses(theta, halves[0], self._constants)[0]
        return alone, ev.sample_losses(theta, self._batch, self._constants)[0]

    def samples(self, theta: Tensor) -> Tensor:
        """sqrt(N) / W times each sample's loss, (n,) -> (B,): so scaled, J^T J adds up to the mean
        over N samples of g g^T, where the mean of the g is the gradient of L."""
        ev = self._evaluator
        losses = ev.sample_losses(theta, self._batch, self._constants)
        return losses * (math.sqrt(ev.num_samples) / ev.total_weight)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
