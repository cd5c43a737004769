"""The loss as one deterministic function of the flat parameters: value, gradient, products."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hessian_spectrum import checks, losses
from hessian_spectrum.batches import Minibatches, cast, deal, digest, pieces
from hessian_spectrum.distributed import World, resolve_device
from hessian_spectrum.errors import InputError
from hessian_spectrum.kernels import differentiable_kernels
from hessian_spectrum.layout import Layout
from hessian_spectrum.products import Loss, gradient


@dataclass
class Counts:
    """What was done so far on this rank, for provenance and for tests."""

    passes: int = 0  # over this rank's data
    graphs: int = 0  # first-order graphs, one a minibatch and pass
    products: int = 0  # Hessian-vector products over the whole data


class _BatchLoss(nn.Module):
    """batch -> loss_fn(forward(model, batch)): the module that functional_call calls."""

    def __init__(self, model: nn.Module, forward: Callable, loss_fn: Callable, is_pair: bool):
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn  # a module's tensors (class weights) are then among ours
        self._outputs, self._is_pair = forward, is_pair

    def forward(self, batch: Any) -> Tensor:
        outputs = self._outputs(self.model, batch)
        return self.loss_fn(outputs, batch[1] if self._is_pair else batch)


class Evaluator:
    """Loss, gradient and Hessian products of a model on a data set.

    The loss is L(theta) = (1/W) sum over all samples, weighted per sample, so that uneven
    batches and uneven ranks give the number that one process gives in one batch::

        L(theta) = sum_b w_b mean_loss_b(theta) / W + (weight_decay / 2) |theta|^2,  W = sum_b w_b

    It is deterministic: dropout is off and BatchNorm uses its running statistics. The model
    is never changed: parameters, buffers, mode, requires_grad and the random state are
    found after every call as they were before it.

    Args:
        model: the network, on any device, in any mode.
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
        batch_norm: "eval": running statistics.
        dtype: torch.float32 or torch.float64, of parameters, inputs and results; default: the
            model's, or float32 for a model in half precision.
        device: where to compute; default: the world's.
        world: the ranks that share the data; default: the default process group's.
        data_is_local: ``data`` is this rank's share already.

    Raises:
        InputError: the loss is random, not finite, not the ``reduction`` that was stated, or
            depends on how samples are grouped; the data is empty or has labels out of range;
            ranks hold different models.

    Cost: construction reads the data once, and once more if it is too large to be kept on the
    device, and evaluates the loss of each minibatch twice.
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
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        world: World | None = None,
        data_is_local: bool = False,
    ):
        if reduction not in ("mean", "sum", "none"):
            raise InputError(f"reduction={reduction!r}: expected 'mean', 'sum' or 'none'")
        if batch_norm != "eval":
            raise InputError(
                f"batch_norm={batch_norm!r}: expected 'eval' (running statistics), the only form "
                "that this version evaluates"
            )
        if not isinstance(weight_decay, (int, float)) or not 0 <= weight_decay < math.inf:
            raise InputError(f"weight_decay={weight_decay}: expected a number, 0 or more")
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        if not callable(loss_fn):
            raise InputError(f"loss_fn is a {type(loss_fn).__name__}; expected a function")
        if dtype not in (None, torch.float32, torch.float64):
            raise InputError(f"dtype={dtype!r}: expected torch.float32 or torch.float64")
        if isinstance(parameters, str):
            parameters = (parameters,)
        world = world or World.current()
        if device is not None:
            world = replace(world, device=resolve_device(device))
        self.world = world
        self.model = model
        self.layout = Layout.of_model(model, parameters, world)
        self.dtype = dtype or _dtype_of(model)
        self.weight_decay = weight_decay
        self.reduction = reduction
        self.counts = Counts()
        self.second_derivatives_checked = False
        self._loss_fn = losses.placed(loss_fn, self.dtype, world.device)
        self._count = count or losses.default_count(loss_fn, is_pair=forward is None)
        self._module = _BatchLoss(
            model, forward or losses.pair_forward, self._loss_fn, forward is None
        )

        error = self._prepare(data, batch_size, forward is None, data_is_local)
        world.raise_together(error)
        self._agree(self.fingerprint, "models (parameters, buffers or their names)")
        total = torch.tensor(self._local_weight, dtype=torch.float64, device=world.device)
        self.total_weight = world.sum(total).item()  # W: samples, or targets not ignored
        if not self.total_weight > 0:
            raise InputError("the data set is empty: the samples' weights add up to 0")

    def _prepare(self, data, batch_size, is_pair, data_is_local) -> Exception | None:
        """Everything that can fail on this rank alone, without a collective inside."""
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # what is refused may have drawn numbers
                checks.finite_parameters(self.model)
                self.batches: Minibatches = deal(
                    data, batch_size, self.world, self.dtype, data_is_local
                )
                if is_pair:
                    self.batches = losses.with_int64_labels(self.batches, self._loss_fn)
                with self.evaluation_mode(), torch.no_grad():
                    self._local_weight, self.num_minibatches = checks.batches(self, is_pair)
        except Exception as error:
            return error
        return None

    def require_agreement(self, theta: Tensor, what: str) -> None:
        """InputError unless every rank holds the same ``theta``, bit for bit."""
        self._agree(lambda: hashlib.sha256(_bytes(theta)).hexdigest(), what)

    def _agree(self, fingerprint: Callable[[], str], what: str) -> None:
        """A sum of different functions over ranks is nobody's Hessian."""
        if self.world.size == 1:
            return
        prints = self.world.gather_objects(fingerprint())
        other = next((rank for rank, f in enumerate(prints) if f != prints[0]), None)
        if other is not None:
            raise InputError(
                f"rank {other} and rank 0 hold different {what}; load the same checkpoint on every "
                "rank, or seed torch before the model is made"
            )

    # -- the function of theta ---------------------------------------------------------------

    @property
    def n(self) -> int:
        return self.layout.n

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def theta(self) -> Tensor:
        """The model's own parameters now, a flat copy, shape (n,)."""
        named = dict(self.model.named_parameters())
        flat = self.layout.flatten(named[name] for name in self.layout.names)
        return flat.to(self.device, self.dtype)

    def loss(self, theta: Tensor | None = None) -> Tensor:
        """L(theta), a float64 scalar; theta of shape (p, n) gives (p,). One pass.

        Raises:
            FloatingPointError: at a single theta, the loss is not finite.
        """
        theta = self.checked(theta, many=True)
        points = theta.reshape(-1, self.n)
        total = points.new_zeros(len(points), dtype=torch.float64)
        with torch.no_grad():
            self._pass(
                lambda loss: total.add_(torch.stack([loss(point) for point in points]).double())
            )
        self.world.sum(total)
        total += self.weight_decay / 2 * points.double().square().sum(1)
        if theta.ndim == 1 and not total.isfinite().item():
            raise FloatingPointError(f"the loss is {total.item()} at these parameters")
        return total.reshape(theta.shape[:-1])

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """dL/dtheta, shape (n,), the same on every rank. One pass."""
        theta = self.checked(theta)
        total = torch.zeros_like(theta)
        self._pass(lambda loss: total.add_(gradient(loss, theta)))
        return self.world.sum(total).add_(theta, alpha=self.weight_decay)

    # -- fingerprints ------------------------------------------------------------------------

    def digests(self) -> dict[str, str | None]:
        """SHA-256 of the model's state and of the samples, for provenance."""
        return {"parameters": self.fingerprint(), "data": digest(self.batches, self.world)}

    def fingerprint(self) -> str:
        """SHA-256 of theta, of the other parameters and the buffers, and of all names."""
        sha = hashlib.sha256(repr((self.layout.names, self.layout.shapes)).encode())
        for name, t in {"theta": self.theta, **self.constants()}.items():
            sha.update(name.encode())
            sha.update(_bytes(t))
        return sha.hexdigest()

    # -- inside --------------------------------------------------------------------------------

    def checked(self, theta: Tensor | None, many: bool = False) -> Tensor:
        """``theta`` on the device, a copy; the model's own if it is None."""
        if theta is None:
            return self.theta
        if theta.shape[-1:] != (self.n,) or theta.ndim > 1 + many:
            raise InputError(
                f"theta has shape {tuple(theta.shape)}; expected ({self.n},)"
                + (f" or (points, {self.n})" if many else "")
            )
        # A copy: what is computed at theta must not change when the caller's tensor does.
        return theta.detach().to(self.device, self.dtype, copy=True)

    def minibatch_losses(
        self, batch_size: int | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[Loss]:
        """Each minibatch's part of L, as a function of theta; they and the other ranks' add to L.

        To be used inside ``evaluation_mode``.

        Args:
            batch_size: cut larger minibatches to this size.
            dtype: of theta and of the data; default: the evaluator's.
        """
        constants = self.constants(dtype)
        for whole in self.batches:
            for batch in pieces(whole, batch_size):
                if self.weight(batch):  # all targets ignored: the mean over none is NaN
                    yield self._objective(cast(batch, dtype), constants)

    def _pass(self, visit: Callable[[Loss], Any]) -> None:
        """One pass over the data: visit each minibatch's part of L."""
        self.counts.passes += 1
        with self.evaluation_mode():
            for loss in self.minibatch_losses():
                visit(loss)

    def _objective(self, batch: Any, constants: dict[str, Tensor]) -> Loss:
        scale = self.scale(batch) / self.total_weight

        def loss(theta: Tensor) -> Tensor:
            return self.batch_loss(theta, batch, constants) * scale

        return loss

    def batch_loss(self, theta: Tensor, batch: Any, constants: dict[str, Tensor]) -> Tensor:
        """The loss of the batch, a scalar; of single samples, their sum."""
        value = self.batch_value(theta, batch, constants)
        return value.sum() if self.reduction == "none" else value.reshape(())

    def batch_value(self, theta: Tensor, batch: Any, constants: dict[str, Tensor]) -> Tensor:
        """What loss_fn returns for the batch."""
        return functional_call(self._module, {**constants, **self._named(theta)}, (batch,))

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        return {f"model.{name}": t for name, t in self.layout.unflatten(theta).items()}

    def scale(self, batch: Any) -> float:
        """Turns loss_fn's value into a sum over the batch."""
        return self.weight(batch) if self.reduction == "mean" else 1.0

    def weight(self, batch: Any) -> float:
        """The batch's part of ``total_weight``."""
        return float(self._count(batch))

    def constants(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Buffers and parameters not in theta, converted copies: the model keeps its own."""
        chosen = {f"model.{name}" for name in self.layout.names}
        tensors = [*self._module.named_buffers(), *self._module.named_parameters()]
        return {
            name: t.detach().to(
                self.device, (dtype or self.dtype) if t.is_floating_point() else None, copy=True
            )
            for name, t in tensors
            if name not in chosen
        }

    @contextmanager
    def evaluation_mode(self, precision: str | None = None) -> Iterator[None]:
        """The model in eval mode, on kernels with second derivatives; afterwards as it was.

        Args:
            precision: a name in ``kernels.PRECISIONS``; default: that of theta.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with differentiable_kernels(precision, self.device):
                yield
        finally:
            for module, training in modes:
                module.training = training


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _dtype_of(model: nn.Module) -> torch.dtype:
    dtype = next(p.dtype for p in model.parameters() if p.requires_grad)
    return dtype if dtype == torch.float64 else torch.float32
