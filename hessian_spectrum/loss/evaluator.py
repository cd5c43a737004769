"""The loss over all data as one deterministic function of the flat parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import CALL, Failures, agreed
from hessian_spectrum.distributed.arrays import length
from hessian_spectrum.distributed.world import World, resolve_device
from hessian_spectrum.loss import (
    digests,
    fallbacks,
    huggingface,
    reading,
    validation,
    wrappers,
)
from hessian_spectrum.loss.batching import cast
from hessian_spectrum.loss.counts import Counts
from hessian_spectrum.loss.functional import LossFunction
from hessian_spectrum.loss.gradient import gradient
from hessian_spectrum.loss.minibatch_loss import Part
from hessian_spectrum.loss.recalibration import Recalibrated
from hessian_spectrum.loss.verification import Verification


class Evaluator:
    """Loss, gradient and Hessian products of a model on a data set.

    The loss is L(theta) = (1/W) sum over all samples, weighted per sample, so that uneven
    batches and uneven ranks give the number that one process gives in one batch::

        L(theta) = sum_b w_b mean_loss_b(theta) / W + (weight_decay / 2) |theta|^2,  W = sum_b w_b

    It is deterministic: dropout is off or frozen, and ``batch_norm`` names what BatchNorm
    normalizes by. The model is never changed: every call restores parameters, buffers, mode,
    requires_grad and the random state.

    Embeddings are plain lookups: ``sparse`` and ``scale_grad_by_freq`` change nothing, and the row
    ``padding_idx`` is a constant of all derivatives, as in torch's own gradient, so that its rows
    of a Hessian are zero; losses at other theta have the row of that theta.

    Args:
        model: the network, on any device, in any mode. Of DistributedDataParallel, DataParallel
            and torch.compile the module inside is used, with its names of parameters.
        loss_fn: ``loss_fn(model(x), y)`` for batches that are pairs; with ``forward``,
            ``loss_fn(outputs, batch)``.
        data: a pair of tensors (inputs, targets), a Dataset or a DataLoader; every rank is
            given the same whole data and evaluates its share of it.
        forward: ``forward(model, batch) -> outputs`` for batches of any structure.
        reduction: what ``loss_fn`` does over a batch: "mean", "sum" or "none".
        count: ``count(batch)``, the weight of a batch. Default: its number of samples, or, for
            cross entropy, of targets that are not ignored.
        weight_decay: adds (weight_decay / 2) |theta|^2, over the chosen parameters.
        parameters: shell-style name patterns that choose the parameters in theta; default: all
            that require a gradient. The others are constants.
        batch_size: samples in a minibatch; a DataLoader brings its own.
        batch_norm: what BatchNorm layers normalize by. "eval": their running statistics. "train":
            those of each minibatch; minibatches are then dealt to ranks whole, are never cut, and
            are part of what is computed. "recalibrate": mean and variance over all the data at
            theta, constants in derivatives; one forward pass for each such layer and theta.
        dropout: "off", or "frozen": each layer has one mask, the same for all samples and passes,
            from ``dropout_seed``.
        dtype: torch.float32 or torch.float64, of parameters, inputs and results; default: the
            model's, or float32 for a model in half precision.
        device: where to compute; default: the world's.
        world: the ranks that share the data; default: the default process group's.
        data_is_local: ``data`` is this rank's share already.

    Raises:
        InputError: the model has parameters without values (meta, lazy) or none to train, or
            changes its weights in each evaluation (``max_norm``); samples cannot be stacked; the
            loss is random, not finite, not the ``reduction`` that was stated, or
            depends on how samples are grouped; the data is empty or has labels out of range;
            ranks hold different models or data, or were given different options; the message
            names the rank and what differs.

    Cost: on several ranks, SHA-256 of the parameters and of the data that are in memory
    (``digests.of_source``), sent with two exchanges of small objects. Construction reads the data
    once, and once more if it is too large to be kept on the device, and evaluates the loss of each
    minibatch twice.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable,
        data: Any,
        *,
        forward: Callable | None = None,
        reduction: str = "mean",
        count: Callable[[Any], float] | None = None,
        weight_decay: float = 0.0,
        parameters: Sequence[str] | None = None,
        batch_size: int = 512,
        batch_norm: str = "eval",
        dropout: str = "off",
        dropout_seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        world: World | None = None,
        data_is_local: bool = False,
    ):
        ranks = world or World.current()

        def made() -> LossFunction:
            if not isinstance(weight_decay, (int, float)) or not 0 <= weight_decay < math.inf:
                raise InputError(f"weight_decay={weight_decay}: expected a number, 0 or more")
            place = resolve_device(device) if device is not None else ranks.device
            return LossFunction(
                wrappers.unwrapped(model) if isinstance(model, nn.Module) else model,
                loss_fn,
                replace(ranks, device=place),
                forward=forward,
                reduction=reduction,
                count=count,
                parameters=parameters,
                batch_norm=batch_norm,
                dropout=dropout,
                dropout_seed=dropout_seed,
                dtype=dtype,
            )

        def facts(function: LossFunction) -> dict[str, Any]:
            return {
                CALL: "Evaluator",
                **digests.of_function(function),
                "weight_decay": float(weight_decay),
                "reduction": reduction,
                "batch_size": batch_size,
                "batch_norm": batch_norm,
                "dropout": dropout,
                "dropout_seed": dropout_seed,
                "dtype": function.dtype,
                "data_is_local": data_is_local,
                "a forward": forward is not None,
                "a count": count is not None,
            }

        self.function = agreed(ranks, made, facts)
        model, world = self.function.model, self.function.layout.world
        self.world, self.weight_decay = world, weight_decay
        self.model, self.loss_fn = model, loss_fn
        self.layout, self.n = self.function.layout, self.function.layout.n
        self.dtype, self.device = self.function.dtype, world.device
        self.batch_norm, self.dropout = self.function.batch_norm, self.function.dropout
        self.is_whole = self.function.is_whole
        self.counts = Counts()
        share = reading.read(self.function, data, batch_size, world, data_is_local)
        self.batches, self.fallbacks = share.batches, share.fallbacks
        self.num_minibatches = share.num_minibatches  # of this rank
        self.verification = Verification(world, share.samples, share.arithmetic)
        if world.rank == 0:
            fallbacks.say_once(self.fallbacks)
        self.verification.note("the gradient", share.gradient_unverified)
        self._recalibrated = None
        if self.batch_norm == "recalibrate":
            self._recalibrated = Recalibrated(self.function, self.batches, world, self.counts)
        self.total_weight, self.num_samples = reading.totals(share, world, count is not None)

    @classmethod
    def from_huggingface(
        cls,
        model: nn.Module,
        dataset: Any,
        tokenizer: Any = None,
        *,
        batch_size: int = 8,
        max_length: int | None = None,
        **options: Any,
    ) -> Evaluator:
        """The loss of a model of Hugging Face's transformers, as the model itself has it.

        The mean cross entropy of all targets that are not ignored, in all samples: uneven batches,
        padding and ranks do not change it. Dropout is off, the routers' auxiliary loss left out.

        Args:
            model: causal, masked or sequence-to-sequence, or a classifier of tokens or sequences;
                with adapters of peft these are the parameters.
            dataset: token ids (N, T), texts with their ``tokenizer``, columns as a tokenizer gives
                them, or a Dataset or list of samples that are dicts; padded on the right.
            batch_size: samples of a minibatch.
            max_length: longer samples are cut; of texts to 1,024 tokens by default.
            **options: other arguments of ``Evaluator``.

        Raises:
            InputError: as ``Evaluator``; or the model's own loss of two samples is another one.
        """
        made = huggingface.arguments(
            model, dataset, tokenizer, batch_size=batch_size, max_length=max_length
        )
        return cls(**made, **options)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        choices = "".join(f"; {text}" for text in self.function.choices())
        return (
            f"<Evaluator of {type(self.model).__name__}: {self.n:,} parameters, "
            f"{self.num_samples:,.0f} samples, {dtype}{choices}>"
        )

    # -- the function of theta ---------------------------------------------------------------

    @property
    def theta(self) -> Tensor:
        """The model's own parameters now, a flat copy, shape (n,)."""
        return self.function.theta

    def loss(self, theta: Tensor | None = None) -> Tensor:
        """L(theta), a float64 scalar; theta of shape (p, n) gives (p,). One pass.

        Raises:
            FloatingPointError: at a single theta, the loss is not finite.
        """
        theta = self.checked(theta, many=True)
        points = theta.reshape(-1, self.n)
        # With recalibrated BatchNorm each point needs statistics, and so a pass, of its own.
        together = 1 if self.batch_norm == "recalibrate" else max(1, len(points))
        total = points.new_zeros(len(points), dtype=torch.float64)
        failures = Failures(self.world)
        for rows, losses in zip(points.split(together), total.split(together)):
            failures.attempt(partial(self._add_losses, rows, losses), losses)
        failures.raise_where_not_finite(self.world.sum(total))
        total += self.weight_decay / 2 * points.double().square().sum(1)
        if theta.ndim == 1 and not total.isfinite().item():
            raise FloatingPointError(f"the loss is {total.item()} at these parameters")
        return total.reshape(theta.shape[:-1])

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """dL/dtheta, shape (n,), the same on every rank. One pass."""
        theta = self.checked(theta)
        return self.data_gradient(theta).add_(theta, alpha=self.weight_decay)

    def gradient_norm(self, theta: Tensor | None = None) -> float:
        """|dL/dtheta|. One pass."""
        return length(self.gradient(theta))

    def data_gradient(self, theta: Tensor) -> Tensor:
        """The gradient without the weight decay's part, shape (n,). One pass."""
        total, failures = torch.zeros_like(theta), Failures(self.world)
        failures.attempt(partial(self._add_gradient, theta, total), total)
        failures.raise_where_not_finite(self.world.sum(total))
        return total

    def _add_losses(self, points: Tensor, total: Tensor) -> None:
        """Add this rank's part of the loss at each point, (p, n), to ``total``, (p,). One pass."""
        if not len(points):
            return
        with self._pass(points[0]) as parts:
            for part in parts:
                # Not under no_grad: a loss may contain derivatives with respect to the inputs.
                total += torch.stack([part(point).detach() for point in points]).double()

    def _add_gradient(self, theta: Tensor, total: Tensor) -> None:
        with self._pass(theta) as parts:
            for part in parts:
                total += gradient(part, theta)

    def statistics(self, theta: Tensor) -> dict[str, Tensor]:
        """BatchNorm buffers at theta, by name; empty unless ``batch_norm="recalibrate"``.

        Called by every rank. Those of the latest theta are cached.
        """
        return self._recalibrated.at(theta) if self._recalibrated else {}

    def digests(self) -> dict[str, str | None]:
        """SHA-256 of the model's state and of the samples, for provenance."""
        return {
            "parameters": digests.of_state(self.function),
            "data": digests.of_data(self.batches, self.world, self.is_whole),
        }

    def checked(self, theta: Tensor | None, many: bool = False) -> Tensor:
        """``theta`` on the device, a copy; the model's own if it is None."""
        if theta is None:
            return self.theta
        return validation.checked_vector(theta, self.n, many).to(self.device, self.dtype, copy=True)

    def given(self, theta: Tensor, name: str = "theta") -> Tensor:
        """As ``checked``, but None is refused."""
        if theta is None:
            raise InputError(f"{name} is None; expected a parameter vector of shape ({self.n},)")
        return self.checked(theta)

    # -- parts of the loss, minibatch by minibatch -----------------------------------------------

    def parts(
        self,
        statistics: dict[str, Tensor],
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[Part]:
        """Each minibatch's part of L, a function of theta. The parts of all ranks add up to L.

        To be used inside ``evaluation_mode``.

        Args:
            statistics: ``self.statistics(theta)``.
            batch_size: cut larger minibatches to this size.
            dtype: of theta and of the data; default: the evaluator's.
        """
        constants = self.function.constants(dtype, statistics)
        for whole in self.batches:
            for batch in self.function.pieces(whole, batch_size):
                if self.function.weight(batch):  # else all targets are ignored: a mean of none
                    yield self.part(cast(batch, dtype), constants)

    def part(self, batch: Any, constants: dict[str, Tensor]) -> Part:
        """A batch's part of L; ``constants`` are ``function.constants`` of its dtype."""
        return Part(self.function, batch, constants, self.total_weight, self.num_samples)

    @contextmanager
    def _pass(self, theta: Tensor) -> Iterator[Iterator[Part]]:
        """One pass over the data, in evaluation mode: each minibatch's part of L."""
        statistics = self.statistics(theta)
        self.counts.passes += 1
        with self.evaluation_mode():
            yield self.parts(statistics)

    def evaluation_mode(self, precision: str | None = None) -> AbstractContextManager[None]:
        """The model in eval mode, on kernels with second derivatives; afterwards as it was."""
        return self.function.evaluation_mode(precision)
