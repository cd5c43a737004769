"""The loss as one deterministic function of the flat parameters: value, gradient, products."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import World, resolve_device
from hessian_spectrum.loss import batch_norm as normalization
from hessian_spectrum.loss import criteria, fallbacks, validation
from hessian_spectrum.loss import dropout as frozen_dropout
from hessian_spectrum.loss.backends import (
    differentiable_kernels,
    unfused_recurrences,
    without_checkpointing,
)
from hessian_spectrum.loss.batching import (
    Minibatches,
    cast,
    deal,
    digest,
    leading_size,
    pieces,
    refuse_shuffled,
    split,
)
from hessian_spectrum.loss.cross_entropy import LeanCrossEntropy
from hessian_spectrum.loss.gradient import gradient
from hessian_spectrum.loss.minibatch_loss import Part


@dataclass
class Counts:
    """What was done so far on this rank, for provenance and for tests."""

    passes: int = 0  # over this rank's data
    graphs: int = 0  # first-order graphs, one a minibatch and pass
    products: int = 0  # Hessian-vector products over the whole data


class _Stages(nn.Module):
    """A batch's way to the loss, stage by stage; what is called is chosen by the caller.

    One module for ``functional_call``: a loss module's tensors (class weights) are among ours.
    """

    def __init__(self, model: nn.Module, forward: Callable, loss_fn: Callable, is_pair: bool):
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn
        self._outputs, self._is_pair = forward, is_pair

    def forward(self, stages: Callable[[_Stages], Any]) -> Any:
        return stages(self)

    def outputs(self, batch: Any) -> Any:
        return self._outputs(self.model, batch)

    def targets(self, batch: Any) -> Any:
        return batch[1] if self._is_pair else batch

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        return self.loss_fn(outputs, self.targets(batch))


class Evaluator:
    """Loss, gradient and Hessian products of a model on a data set.

    The loss is L(theta) = (1/W) sum over all samples, weighted per sample, so that uneven
    batches and uneven ranks give the number that one process gives in one batch::

        L(theta) = sum_b w_b mean_loss_b(theta) / W + (weight_decay / 2) |theta|^2,  W = sum_b w_b

    It is deterministic: dropout is off or frozen, and what BatchNorm normalizes by is a named
    choice. The model is never changed: parameters, buffers, mode, requires_grad and the random
    state are found after every call as they were before it.

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
        dropout: str = "off",
        dropout_seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        world: World | None = None,
        data_is_local: bool = False,
    ):
        if reduction not in ("mean", "sum", "none"):
            raise InputError(f"reduction={reduction!r}: expected 'mean', 'sum' or 'none'")
        if dropout not in ("off", "frozen"):
            raise InputError(f"dropout={dropout!r}: expected 'off' or 'frozen'")
        if not isinstance(weight_decay, (int, float)) or not 0 <= weight_decay < math.inf:
            raise InputError(f"weight_decay={weight_decay}: expected a number, 0 or more")
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        normalization.check(model, batch_norm)
        if dropout == "frozen" and not frozen_dropout.layers(model):
            raise InputError("dropout='frozen', but the model has no dropout layer; leave it out")
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
        self.batch_norm = batch_norm if normalization.layers(model) else "eval"
        self.dropout, self.dropout_seed = dropout, dropout_seed
        self.counts = Counts()
        self.second_derivatives_checked = False
        self._loss_fn = loss_fn
        self._count = count or criteria.default_count(loss_fn, is_pair=forward is None)
        self.counts_samples = self._count is leading_size  # by what the mean divides is a guess
        self._module = _Stages(
            model, forward or criteria.pair_forward, self._loss_fn, forward is None
        )
        self.has_own_forward = forward is not None
        self._aliases = _aliases(self._module)
        self._large_softmax = False
        self._dropout_calls: dict[str, int] = {}
        self._statistics: tuple[Tensor, dict[str, Tensor]] | None = None  # theta, buffers

        error = self._prepare(data, batch_size, forward is None, data_is_local)
        world.raise_together(error)
        if world.rank == 0:
            fallbacks.say_once(self.fallbacks)
        self._agree(self.fingerprint, "models (parameters, buffers or their names)")
        sums = torch.tensor(self._local_sums, dtype=torch.float64, device=world.device)
        # W: samples, or targets not ignored; N: samples
        self.total_weight, self.num_samples, number, undivided = world.sum(sums).tolist()
        if number > 1 and undivided and count is None:
            raise InputError(
                "the batches cannot be divided into samples, so that their weights are unknown (a "
                "leaf whose first dimension is not that of the first one, as in graphs); pass "
                "count=, the number of samples or targets in a batch"
            )
        if not self.total_weight > 0:
            raise InputError("the data set is empty: the samples' weights add up to 0")

    def _prepare(self, data, batch_size, is_pair, data_is_local) -> Exception | None:
        """Everything that can fail on this rank alone, without a collective inside."""
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # what is refused may have drawn numbers
                validation.finite_parameters(self.model)
                if self.batch_norm == "train":
                    refuse_shuffled(data, normalization.layers(self.model))
                self.batches: Minibatches = deal(
                    data, batch_size, self.world, self.dtype, data_is_local, whole=self.is_whole
                )
                if is_pair:
                    self.batches = criteria.with_int64_labels(self.batches, self._loss_fn)
                with self.evaluation_mode():  # not no_grad: losses may hold derivatives
                    found = validation.batches(self, is_pair)
                    self._local_sums = (
                        *(found.weight, found.samples),
                        *(found.minibatches, found.undivided),
                    )
                    self.num_minibatches = found.minibatches
                    self.fallbacks = fallbacks.found(self.model, found.attention)
                    self._large_softmax = found.large_softmax
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
    def loss_fn(self) -> Callable:
        return self._loss_fn

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
        # Where BatchNorm is recalibrated each point has statistics, and so a pass, of its own.
        together = 1 if self.batch_norm == "recalibrate" else max(1, len(points))
        losses = [self._losses(rows) for rows in points.split(together)]
        total = self.world.sum(torch.cat(losses))
        total += self.weight_decay / 2 * points.double().square().sum(1)
        if theta.ndim == 1 and not total.isfinite().item():
            raise FloatingPointError(f"the loss is {total.item()} at these parameters")
        return total.reshape(theta.shape[:-1])

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """dL/dtheta, shape (n,), the same on every rank. One pass."""
        theta = self.checked(theta)
        return self.data_gradient(theta).add_(theta, alpha=self.weight_decay)

    def data_gradient(self, theta: Tensor) -> Tensor:
        """The gradient without the weight decay's part, shape (n,). One pass."""
        total = torch.zeros_like(theta)
        self._pass(theta, lambda part: total.add_(gradient(part, theta)))
        return self.world.sum(total)

    def statistics(self, theta: Tensor) -> dict[str, Tensor]:
        """Buffers that theta decides, by name: none, but where BatchNorm is recalibrated.

        Called by every rank. Those of the latest theta are remembered.
        """
        if self.batch_norm != "recalibrate":
            return {}
        theta = theta.to(self.dtype)
        if self._statistics is None or not torch.equal(self._statistics[0], theta):
            found = normalization.population_statistics(self, theta)
            self._statistics = theta.clone(), found
        return self._statistics[1]

    # -- fingerprints ------------------------------------------------------------------------

    def digests(self) -> dict[str, str | None]:
        """SHA-256 of the model's state and of the samples, for provenance."""
        return {
            "parameters": self.fingerprint(),
            "data": digest(self.batches, self.world, self.is_whole),
        }

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
        theta = validation.vector_of(theta)
        if theta.shape[-1:] != (self.n,) or theta.ndim > 1 + many:
            raise InputError(
                f"theta has shape {tuple(theta.shape)}; expected ({self.n},)"
                + (f" or (points, {self.n})" if many else "")
            )
        # A copy: what is computed at theta must not change when the caller's tensor does.
        return theta.detach().to(self.device, self.dtype, copy=True)

    def given(self, theta: Tensor, name: str = "theta") -> Tensor:
        """As ``checked``; None, such as from a dictionary that has no such network, is refused."""
        if theta is None:
            raise InputError(f"{name} is None; expected a parameter vector of shape ({self.n},)")
        return self.checked(theta)

    def parts(
        self,
        statistics: dict[str, Tensor],
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[Part]:
        """Each minibatch's part of L, as a function of theta; they and the other ranks' add to L.

        To be used inside ``evaluation_mode``.

        Args:
            statistics: ``self.statistics(theta)``.
            batch_size: cut larger minibatches to this size.
            dtype: of theta and of the data; default: the evaluator's.
        """
        constants = self.constants(dtype)
        constants.update((name, t.to(dtype or self.dtype)) for name, t in statistics.items())
        for whole in self.batches:
            for batch in self.pieces(whole, batch_size):
                if self.weight(batch):  # all targets ignored: the mean over none is NaN
                    yield Part(self, cast(batch, dtype), constants)

    def labels(self, batch: Any) -> Tensor | None:
        """The batch's class indices, if that is what its targets are."""
        return None if self.has_own_forward else criteria.labels(self._loss_fn, batch)

    @property
    def is_whole(self) -> bool:
        """Minibatches are part of what is computed, and cannot be cut."""
        return self.batch_norm == "train"

    def can_be_cut(self, batch: Any) -> bool:
        return not self.is_whole and split(batch, 1) is not None

    def pieces(self, batch: Any, size: int | None) -> list[Any]:
        if size is not None and size < leading_size(batch) and self.is_whole:
            found = normalization.described(normalization.layers(self.model))
            raise InputError(
                f"a minibatch of {leading_size(batch)} samples cannot be cut to {size}: the layer "
                f"{found} normalizes by its statistics (batch_norm='train'); make the Evaluator "
                f"with batch_size={size}, or use batch_norm='eval' or 'recalibrate'"
            )
        return pieces(batch, size)

    def _losses(self, points: Tensor) -> Tensor:
        """This rank's part of the loss at each point, (p, n) -> (p,), float64. One pass."""
        total = points.new_zeros(len(points), dtype=torch.float64)

        def add(part: Part) -> None:
            # Not under no_grad: a loss may contain derivatives by the inputs.
            total.add_(torch.stack([part(point).detach() for point in points]).double())

        if len(points):
            self._pass(points[0], add)
        return total

    def _pass(self, theta: Tensor, visit: Callable[[Part], Any]) -> None:
        """One pass over the data: visit each minibatch's part of L."""
        statistics = self.statistics(theta)
        self.counts.passes += 1
        with self.evaluation_mode():
            for part in self.parts(statistics):
                visit(part)

    def batch_loss(self, theta: Tensor, batch: Any, constants: dict[str, Tensor]) -> Tensor:
        """The loss of the batch, a scalar; of single samples, their sum."""
        return self._reduced(self.batch_value(theta, batch, constants))

    def batch_value(self, theta: Tensor, batch: Any, constants: dict[str, Tensor]) -> Tensor:
        """What loss_fn returns for the batch."""
        return self._call(theta, constants, lambda m: m.loss(m.outputs(batch), batch))

    def batch_outputs(
        self, theta: Tensor | dict[str, Tensor], batch: Any, constants: dict[str, Tensor]
    ) -> Any:
        """What the network returns for the batch."""
        return self._call(theta, constants, lambda m: m.outputs(batch))

    def batch_evaluated(
        self, theta: Tensor | dict[str, Tensor], batch: Any, constants: dict[str, Tensor]
    ) -> tuple[Tensor, Any]:
        """``batch_loss`` and ``batch_outputs`` of one forward pass.

        Args:
            theta: (n,), or ``self.named(theta)``.
        """

        def stages(m: _Stages) -> tuple[Tensor, Any]:
            outputs = m.outputs(batch)
            return self._reduced(m.loss(outputs, batch)), outputs

        return self._call(theta, constants, stages)

    def criterion_value(self, outputs: Any, batch: Any, constants: dict[str, Tensor]) -> Tensor:
        """The loss of these outputs, a scalar."""
        return self._reduced(self._with(constants, lambda m: m.loss(outputs, batch)))

    def sample_losses_of(
        self, outputs: Tensor, targets: Tensor, constants: dict[str, Tensor], size: int
    ) -> Tensor:
        """(size,), the losses of samples with these outputs and targets, as ``sample_losses``."""
        return self._with(
            constants,
            lambda m: criteria.of_samples(m.loss_fn, outputs, targets, self.reduction, size),
        )

    def sample_losses(self, theta: Tensor, batch: Any, constants: dict[str, Tensor]) -> Tensor:
        """(B,), the samples' losses; they add up to ``scale(batch) * batch_loss``.

        Raises:
            InputError: loss_fn has no known form for single samples.
        """

        def stages(m: _Stages) -> Tensor:
            return criteria.of_samples(
                m.loss_fn, m.outputs(batch), m.targets(batch), self.reduction, leading_size(batch)
            )

        return self._call(theta, constants, stages)

    def _call(
        self, theta: Tensor | dict[str, Tensor], constants: dict[str, Tensor], stages: Callable
    ) -> Any:
        self._dropout_calls.clear()
        named = theta if isinstance(theta, dict) else self.named(theta)
        return self._with({**constants, **named}, stages)

    def _with(self, tensors: dict[str, Tensor], stages: Callable) -> Any:
        """The stages with these tensors in place of the module's, under all names of each."""
        every = {alias: t for name, t in tensors.items() for alias in self._aliases[name]}
        return functional_call(self._module, every, (stages,), tie_weights=False)

    def _reduced(self, value: Tensor) -> Tensor:
        return value.sum() if self.reduction == "none" else value.reshape(())

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """(..., n) -> views (..., *shape) by the names that the stages know."""
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
        if torch.is_inference_mode_enabled():
            raise InputError(
                "inside torch.inference_mode() there are no derivatives; use torch.no_grad(), or "
                "leave it out"
            )
        modes = [(module, module.training) for module in self._module.modules()]
        self._module.eval()
        try:
            with ExitStack() as stack:
                if self.batch_norm == "train":
                    stack.enter_context(normalization.by_batch(self.model))
                if self.dropout == "frozen":
                    stack.enter_context(
                        frozen_dropout.frozen(self.model, self.dropout_seed, self._dropout_calls)
                    )
                if self._large_softmax:
                    stack.enter_context(LeanCrossEntropy())
                stack.enter_context(unfused_recurrences(self.model))
                stack.enter_context(without_checkpointing())
                stack.enter_context(differentiable_kernels(precision, self.device))
                yield
        finally:
            for module, training in modes:
                module.training = training


def _aliases(module: nn.Module) -> dict[str, list[str]]:
    """All names of each tensor, by its first: of tied ones several, of a shared module's one.

    torch's own handling of ties leaves a module that is used in two places changed (2.13).
    """
    places = [
        (f"{prefix}.{name}" if prefix else name, t)
        for prefix, part in module.named_modules()
        for name, t in (*part._parameters.items(), *part._buffers.items())
        if t is not None
    ]
    names: dict[int, list[str]] = {}
    for name, t in places:
        names.setdefault(id(t), []).append(name)
    return {all_[0]: all_ for all_ in names.values()}


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _dtype_of(model: nn.Module) -> torch.dtype:
    dtype = next(p.dtype for p in model.parameters() if p.requires_grad)
    return dtype if dtype == torch.float64 else torch.float32
