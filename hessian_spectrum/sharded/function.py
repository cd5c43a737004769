"""A model and its loss, whose parameters are gathered while they are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss import batch_norm
from hessian_spectrum.loss.backends import replaced_forward
from hessian_spectrum.loss.batching import cast
from hessian_spectrum.loss.functional import Constants, LossFunction

_GATHERED: dict[str, Tensor] = {}  # theta: parameters are found by the modules themselves


class GatheredFunction(LossFunction):
    """As ``LossFunction``, of a skeleton: inside ``Weights.at``, without theta as an argument.

    Every rank calls ``batch_loss`` as often as the others, with minibatches of its own.

    Args:
        skeleton: the model, its parameters on the device meta.
        compute: floating-point type of weights and activations; theta, the loss and derivatives
            have ``dtype``.
        blocks: modules whose activations are computed again in backward passes, by name.
        others: as for ``LossFunction``.

    Raises:
        InputError: as ``LossFunction``; the model has BatchNorm that uses minibatches, or buffers
            without values.
    """

    def __init__(
        self,
        skeleton: nn.Module,
        loss_fn: Callable,
        world: Any,
        *,
        forward: Callable | None = None,
        compute: torch.dtype | None = None,
        blocks: tuple[str, ...] = (),
        **options: Any,
    ):
        super().__init__(
            skeleton, loss_fn, world, forward=self._cast_up(forward), has_values=False, **options
        )
        self.is_pair = forward is None
        self._module._is_pair = self.is_pair
        self.compute = compute or self.dtype
        self.blocks = blocks
        self.recomputes = True
        for name, t in skeleton.named_buffers():
            if t.is_meta:
                raise InputError(
                    f"the buffer {name} is on the device meta, without values; buffers are not "
                    "sharded: make the model with parameters alone on meta, as inside "
                    "hs.parameters_on_meta()"
                )
        if self.batch_norm != "eval" and batch_norm.layers(skeleton):
            raise InputError(
                f"batch_norm={self.batch_norm!r}: a sharded model is evaluated with running "
                "statistics, batch_norm='eval'; use Evaluator on a whole model for the others"
            )

    def batch_loss(self, batch: Any, constants: Constants) -> Tensor:
        """The loss of a batch at the weights of now, a scalar in theta's type."""
        return self.loss(_GATHERED, cast(batch, self.compute), constants).to(self.dtype)

    def batch_value(self, batch: Any, constants: Constants) -> Any:
        """What loss_fn returns for a batch at the weights of now."""
        return self.value(_GATHERED, cast(batch, self.compute), constants)

    def loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch by another model than the skeleton: that which it was made of."""
        outputs = self._module._outputs(model, batch)
        value = self.loss_fn(outputs, batch[1] if self.is_pair else batch)
        return value.sum() if self.reduction == "none" else value.reshape(())

    def constants(
        self, dtype: torch.dtype | None = None, statistics: Mapping[str, Tensor] | None = None
    ) -> Constants:
        """Converted copies of the model's buffers and of all tensors of the loss."""
        dtype = dtype or self.compute
        tensors = [*self._module.named_buffers()]
        tensors += [(n, t) for n, t in self._module.named_parameters() if n.startswith("loss_fn.")]
        return {
            name: t.detach().to(self.device, dtype if t.is_floating_point() else None, copy=True)
            for name, t in tensors
        }

    @contextmanager
    def evaluation_mode(self, precision: str | None = None) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(super().evaluation_mode(precision))
            modules = [self.model.get_submodule(name) for name in self.blocks]
            stack.enter_context(replaced_forward(modules, _recomputed))
            yield

    def _cast_up(self, forward: Callable | None) -> Callable:
        """``forward``, or the model of a pair's inputs; outputs of a lower type in theta's."""

        def outputs(model: nn.Module, batch: Any) -> Any:
            found = forward(model, batch) if forward else model(batch[0])
            if self.compute == self.dtype:
                return found
            return tree_map(
                lambda t: (
                    t.to(self.dtype) if isinstance(t, Tensor) and t.dtype == self.compute else t
                ),
                found,
            )

        return outputs


def _recomputed(module: nn.Module) -> Callable[..., Any]:
    forward = module.forward
    return lambda *args, **options: checkpoint(
        forward, *args, use_reentrant=False, preserve_rng_state=False, **options
    )
