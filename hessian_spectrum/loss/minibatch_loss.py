"""One minibatch's part of the loss as a function of theta, its stages, and its samples' losses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss import criteria
from hessian_spectrum.loss.batching import split
from hessian_spectrum.loss.functional import Constants, LossFunction, Theta


class Part:
    """theta -> this minibatch's part of L; the parts of all minibatches and ranks add up to L.

    The loss is a criterion of the outputs: ``part(theta) = part.criterion(part.outputs(theta))``.

    Args:
        function: model and loss.
        constants: the function's, of the dtype of batch and theta.
        total_weight: W, the weight of all samples of all ranks.
        num_samples: N, the number of all samples of all ranks.
    """

    def __init__(
        self,
        function: LossFunction,
        batch: Any,
        constants: Constants,
        total_weight: float,
        num_samples: float,
    ):
        self.function, self.batch = function, batch
        self._constants = constants
        self._total_weight, self._num_samples = total_weight, num_samples
        self._share = function.scale(batch) / total_weight
        self._structure: tuple[TreeSpec, list[Any], list[torch.Size]] | None = None

    @property
    def rounding(self) -> float:
        """Relative, of the lowest type to which the loss casts by itself."""
        return self.function.rounding

    def __call__(self, theta: Tensor) -> Tensor:
        """Shape (n,) -> ()."""
        return self.function.loss(theta, self.batch, self._constants) * self._share

    def evaluated(self, theta: Theta) -> tuple[Tensor, Any]:
        """This part of L, and what the network returns, of one forward pass.

        Args:
            theta: (n,), or ``function.named(theta)``.
        """
        loss, outputs = self.function.loss_and_outputs(theta, self.batch, self._constants)
        return loss * self._share, outputs

    def network_outputs(self, theta: Theta) -> Any:
        """What the network returns."""
        return self.function.outputs(theta, self.batch, self._constants)

    @property
    def is_sample_by_sample(self) -> bool:
        """Are the losses of single samples known, for any number of them at once?"""
        if not (self.function.is_pair and criteria.is_sample_by_sample(self.function.loss_fn)):
            return False
        return isinstance(self.batch[1], Tensor) and self.batch[1].ndim > 0

    def losses_of(self, outputs: Tensor) -> Tensor:
        """This part of L at p points, shape (p,), float64, from outputs of shape (p, B, ...).

        One call for all points; needs ``is_sample_by_sample``.
        """
        targets, p = self.batch[1], len(outputs)
        size = p * len(targets)
        repeated = targets.expand(p, *targets.shape).flatten(0, 1)
        values = self.function.sample_criterion(
            outputs.flatten(0, 1), repeated, self._constants, size
        )
        return values.view(p, -1).sum(1, dtype=torch.float64) / self._total_weight

    def first_sample(self) -> Part:
        """The first sample's part; the whole part if the minibatch cannot be divided."""
        halves = split(self.batch, 1)
        return self.of(halves[0] if halves else self.batch)

    def in_channels_last(self) -> Part:
        """The same part; images in channels-last order, which convolutions on CPUs prefer."""

        def convert(leaf: Any) -> Any:
            images = isinstance(leaf, Tensor) and leaf.ndim == 4 and leaf.is_floating_point()
            return leaf.contiguous(memory_format=torch.channels_last) if images else leaf

        return self.of(tree_map(convert, self.batch))

    def of(self, batch: Any) -> Part:
        """As this part, of another batch."""
        return Part(self.function, batch, self._constants, self._total_weight, self._num_samples)

    def outputs(self, theta: Tensor) -> Tensor:
        """The network's outputs in one vector: every floating-point tensor in what it returns."""
        outputs = self.function.outputs(theta, self.batch, self._constants)
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
        assert self._structure is not None, "criterion is called before outputs"
        spec, leaves, shapes = self._structure
        parts = iter(outputs.split([math.prod(shape) for shape in shapes]))
        shape = iter(shapes)
        filled = [next(parts).view(next(shape)) if leaf is None else leaf for leaf in leaves]
        tree = tree_unflatten(filled, spec)
        return self.function.criterion(tree, self.batch, self._constants) * self._share

    def sample_sum(self, theta: Tensor) -> Tensor:
        """This part of L as the sum of the losses of single samples, ()."""
        return self.sample_losses(theta).sum() / self._total_weight

    def first_sample_apart(self, theta: Tensor) -> tuple[Tensor, Tensor] | None:
        """The first sample's loss, alone and in its minibatch; None if it cannot be separated."""
        halves = split(self.batch, 1)
        if halves is None or not self.function.weight(halves[0]):
            return None
        alone = self._sample_losses(theta, halves[0])[0]
        return alone, self._sample_losses(theta, self.batch)[0]

    def samples(self, theta: Tensor) -> Tensor:
        """sqrt(N) / W times each sample's loss, (n,) -> (B,).

        With this scale J^T J, summed over all parts, is the mean of g g^T over the N samples, and
        the mean of the g is the gradient of L.
        """
        return self.sample_losses(theta) * (math.sqrt(self._num_samples) / self._total_weight)

    def sample_losses(self, theta: Tensor) -> Tensor:
        """(n,) -> (B,); divided by W they add up to this part of L."""
        return self._sample_losses(theta, self.batch)

    def likelihoods(self, theta: Tensor, losses: Tensor) -> Tensor:
        """(1/W) sum_i p_i(theta) / p_i, shape (n,) -> (), with p = exp(-loss) of each sample.

        Relative to a p_i that is given, since that of many targets underflows.

        Args:
            losses: -log p_i, shape (B,), constants.
        """
        return (losses - self.sample_losses(theta)).exp().sum() / self._total_weight

    def _sample_losses(self, theta: Tensor, batch: Any) -> Tensor:
        return self.function.sample_losses(theta, batch, self._constants)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
