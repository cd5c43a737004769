"""A model and its loss as pure functions of named tensors, on a batch that is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss import batch_norm as normalization
from hessian_spectrum.loss import criteria, embeddings, models, torch_state, wrappers
from hessian_spectrum.loss import dropout as frozen_dropout
from hessian_spectrum.loss.attributes import Attributes
from hessian_spectrum.loss.backends import (
    differentiable_kernels,
    unfused_recurrences,
    without_checkpointing,
)
from hessian_spectrum.loss.batching import leading_size, pieces, split
from hessian_spectrum.loss.casts import Casts
from hessian_spectrum.loss.cross_entropy import LeanCrossEntropy
from hessian_spectrum.loss.weight_norm import DifferentiableWeightNorm

Theta = Tensor | dict[str, Tensor]  # (n,), or the result of ``LossFunction.named``
Constants = dict[str, Tensor]  # buffers, and parameters that are not in theta, by name


class LossFunction:
    """Outputs, loss and losses of samples as functions of theta and a batch.

    The model itself is not changed.

    Tensors go in by name: those of theta (``named``) and those that stay constant
    (``constants``). Values are comparable only inside ``evaluation_mode``, where the model is
    deterministic and every kernel has second derivatives.

    Args:
        world: the device to compute on, and the ranks over which ``layout`` shards theta.
        has_values: False: the model's parameters lie elsewhere, and are on the device meta here.
        others: as for ``Evaluator``.

    Raises:
        InputError: an argument cannot be used, or does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable,
        world: World,
        *,
        forward: Callable | None = None,
        reduction: str = "mean",
        count: Callable[[Any], float] | None = None,
        parameters: Sequence[str] | None = None,
        batch_norm: str = "eval",
        dropout: str = "off",
        dropout_seed: int = 0,
        dtype: torch.dtype | None = None,
        has_values: bool = True,
    ):
        _require_known(model, loss_fn, reduction, batch_norm, dropout, dtype)
        if has_values:
            models.refuse(model)
        patterns = (parameters,) if isinstance(parameters, str) else parameters
        self.model, self.loss_fn, self.reduction = model, loss_fn, reduction
        self.layout = Layout.of_model(model, patterns, world)
        self.device = world.device
        self.dtype = dtype or _dtype_of(model)
        self.batch_norm = batch_norm if normalization.layers(model) else "eval"
        self.dropout, self.dropout_seed = dropout, dropout_seed
        self.is_pair = forward is None  # batches are pairs (inputs, targets)
        self.large_softmax = False  # use the cross entropy that keeps fewer copies of the logits
        self.weight_norm = False  # use the weight normalization that has second derivatives
        self.recomputes = False  # torch.utils.checkpoint is left as it is
        self.constant_rows = embeddings.constant_rows(model)  # by name of parameter
        self._count = count or criteria.default_count(loss_fn, is_pair=self.is_pair)
        self.counts_samples = self._count is leading_size  # by default
        self._module = _Stages(model, forward or _outputs_of_pair, loss_fn, self.is_pair)
        self.rounding = torch.finfo(self.dtype).eps  # of the lowest type that the loss casts to
        self._aliases = _aliases(self._module)
        self.embeddings = embeddings.are_in(self._module)  # use lookups with right derivatives
        self._dropout_calls: dict[str, int] = {}
        self._attributes: Attributes | None = None  # in evaluation mode: as each evaluation starts

    def choices(self) -> list[str]:
        """In words, what is chosen for layers that behave in two ways; for reports."""
        texts, found = [], normalization.layers(self.model)
        if found:
            texts.append(
                f"BatchNorm ({normalization.described(found)}) normalizes by "
                f"{normalization.STATISTICS[self.batch_norm]} (batch_norm={self.batch_norm})"
            )
        drops = [m for m in self.model.modules() if isinstance(m, _DropoutNd) and m.p]
        if drops:
            how = "has one fixed mask a layer" if self.dropout == "frozen" else "is off"
            texts.append(f"dropout {how} (dropout={self.dropout})")
        return texts

    # -- tensors by name -----------------------------------------------------------------------

    @property
    def theta(self) -> Tensor:
        """The model's own parameters now, a flat copy, shape (n,)."""
        named = dict(self.model.named_parameters())
        flat = self.layout.flatten(named[name] for name in self.layout.names)
        return flat.to(self.device, self.dtype)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """(..., n) -> views (..., *shape) by the names that ``outputs`` and ``loss`` take."""
        return {f"model.{name}": t for name, t in self.layout.unflatten(theta).items()}

    def constants(
        self, dtype: torch.dtype | None = None, statistics: Mapping[str, Tensor] | None = None
    ) -> Constants:
        """Converted copies of the buffers and of the parameters that are not in theta.

        Args:
            dtype: of floating-point tensors; default: the function's own.
            statistics: BatchNorm buffers that replace the model's, by name.
        """
        dtype = dtype or self.dtype
        chosen = {f"model.{name}" for name in self.layout.names}
        tensors = [*self._module.named_buffers(), *self._module.named_parameters()]
        found = {
            name: t.detach().to(self.device, dtype if t.is_floating_point() else None, copy=True)
            for name, t in tensors
            if name not in chosen
        }
        found.update((name, t.to(dtype)) for name, t in (statistics or {}).items())
        return found

    # -- a batch ---------------------------------------------------------------------------------

    @property
    def is_whole(self) -> bool:
        """Does the loss depend on the minibatches (batch_norm="train")? Then none can be cut."""
        return self.batch_norm == "train"

    def can_be_cut(self, batch: Any) -> bool:
        """Can the batch be evaluated in pieces?"""
        return not self.is_whole and split(batch, 1) is not None

    def pieces(self, batch: Any, size: int | None) -> list[Any]:
        """The batch in pieces of at most ``size`` samples; InputError if it must stay whole."""
        if size is not None and size < leading_size(batch) and self.is_whole:
            found = normalization.described(normalization.layers(self.model))
            raise InputError(
                f"a minibatch of {leading_size(batch)} samples cannot be cut to {size}: the layer "
                f"{found} normalizes by its statistics (batch_norm='train'); make the Evaluator "
                f"with batch_size={size}, or use batch_norm='eval' or 'recalibrate'"
            )
        return pieces(batch, size)

    def weight(self, batch: Any) -> float:
        """What the mean over the batch is divided by: samples, or what ``count`` says."""
        return float(self._count(batch))

    def scale(self, batch: Any) -> float:
        """The factor that turns the value of loss_fn into a sum over the batch."""
        return self.weight(batch) if self.reduction == "mean" else 1.0

    def labels(self, batch: Any) -> Tensor | None:
        """The batch's targets if they are class indices, else None."""
        return criteria.labels(self.loss_fn, batch) if self.is_pair else None

    # -- functions of theta, on a batch ----------------------------------------------------------

    def outputs(self, theta: Theta, batch: Any, constants: Constants) -> Any:
        """What the network returns for the batch."""
        return self._at(theta, constants, lambda stages: stages.outputs(batch))

    def value(self, theta: Theta, batch: Any, constants: Constants) -> Tensor:
        """What loss_fn returns for the batch."""
        return self._at(theta, constants, lambda stages: stages.value(batch))

    def loss(self, theta: Theta, batch: Any, constants: Constants) -> Tensor:
        """The loss of the batch, a scalar; under reduction="none" the sum over its samples."""
        return self._reduced(self.value(theta, batch, constants))

    def loss_and_outputs(
        self, theta: Theta, batch: Any, constants: Constants
    ) -> tuple[Tensor, Any]:
        """``loss`` and ``outputs`` of one forward pass."""

        def both(stages: _Stages) -> tuple[Tensor, Any]:
            outputs = stages.outputs(batch)
            return self._reduced(stages.criterion(outputs, batch)), outputs

        return self._at(theta, constants, both)

    def sample_losses(self, theta: Theta, batch: Any, constants: Constants) -> Tensor:
        """(B,), the samples' losses; they add up to ``scale(batch) * loss``.

        Raises:
            InputError: loss_fn has no known form for single samples.
        """

        def by_sample(stages: _Stages) -> Tensor:
            targets, size = stages.targets(batch), leading_size(batch)
            return criteria.of_samples(
                stages.loss_fn, stages.outputs(batch), targets, self.reduction, size
            )

        return self._at(theta, constants, by_sample)

    # -- the model as it is ----------------------------------------------------------------------

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules of model and loss, by name."""
        return self._module.named_modules()

    def own_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters and buffers of model and loss, by the names of ``layout`` where it has."""
        tensors = (*self._module.named_parameters(), *self._module.named_buffers())
        return ((name.removeprefix("model."), t) for name, t in tensors)

    def own_loss(self, batch: Any) -> Tensor:
        """``loss`` with the tensors that the model holds, without functional_call."""
        self._dropout_calls.clear()
        try:
            return self._reduced(self._module(lambda stages: stages.value(batch)))
        finally:
            if self._attributes is not None:
                self._attributes.restore()

    @contextmanager
    def noting_casts(self) -> Iterator[None]:
        """Around evaluations in the function's dtype: ``rounding`` becomes that of what occurs."""
        with Casts(self.dtype) as casts:
            yield
        self.rounding = max(self.rounding, torch.finfo(casts.lowest).eps)

    # -- functions of the outputs ----------------------------------------------------------------

    def criterion(self, outputs: Any, batch: Any, constants: Constants) -> Tensor:
        """The loss of these outputs, a scalar."""
        return self._reduced(self._with(constants, lambda stages: stages.criterion(outputs, batch)))

    def sample_criterion(
        self, outputs: Tensor, targets: Tensor, constants: Constants, size: int
    ) -> Tensor:
        """(size,), the losses of samples with these outputs and targets, as ``sample_losses``."""
        return self._with(
            constants,
            lambda stages: criteria.of_samples(
                stages.loss_fn, outputs, targets, self.reduction, size
            ),
        )

    # -- inside ----------------------------------------------------------------------------------

    def _at(self, theta: Theta, constants: Constants, evaluate: Callable[[_Stages], Any]) -> Any:
        self._dropout_calls.clear()
        named = theta if isinstance(theta, dict) else self.named(theta)
        return self._with({**constants, **named}, evaluate)

    def _with(self, tensors: dict[str, Tensor], evaluate: Callable[[_Stages], Any]) -> Any:
        """``evaluate`` with these tensors in place of the module's, under all names of each."""
        every = {alias: t for name, t in tensors.items() for alias in self._aliases[name]}
        try:
            return functional_call(self._module, every, (evaluate,), tie_weights=False)
        finally:
            if self._attributes is not None:
                self._attributes.restore()

    def _reduced(self, value: Tensor) -> Tensor:
        return value.sum() if self.reduction == "none" else value.reshape(())

    @contextmanager
    def evaluation_mode(self, precision: str | None = None) -> Iterator[None]:
        """The model in eval mode, on kernels with second derivatives; afterwards as it was.

        Args:
            precision: a name in ``backends.PRECISIONS``; default: that of theta.
        """
        if torch.is_inference_mode_enabled():
            raise InputError(
                "inside torch.inference_mode() there are no derivatives; use torch.no_grad(), or "
                "leave it out"
            )
        modes = [(module, module.training) for module in self._module.modules()]
        # Not by eval(): a module may override it and change its parameters (a merged update).
        for module, _ in modes:
            module.training = False
        outer = self._attributes
        try:
            with ExitStack() as stack:
                stack.enter_context(torch_state.unchanged())
                if self.batch_norm == "train":
                    stack.enter_context(normalization.by_batch(self.model))
                if self.dropout == "frozen":
                    stack.enter_context(
                        frozen_dropout.frozen(self.model, self.dropout_seed, self._dropout_calls)
                    )
                if self.large_softmax:
                    stack.enter_context(LeanCrossEntropy())
                if self.weight_norm:
                    stack.enter_context(DifferentiableWeightNorm())
                if self.embeddings:
                    stack.enter_context(embeddings.DifferentiableEmbedding())
                stack.enter_context(wrappers.bypassed(self._module))
                stack.enter_context(unfused_recurrences(self.model))
                if not self.recomputes:
                    stack.enter_context(without_checkpointing())
                stack.enter_context(differentiable_kernels(precision, self.device))
                self._attributes = Attributes(self._module)
                try:
                    yield
                finally:
                    self._attributes.restore()
                    self._attributes = outer
        finally:
            for module, training in modes:
                module.training = training


def _outputs_of_pair(model: nn.Module, batch: Any) -> Any:
    return model(batch[0])


class _Stages(nn.Module):
    """Model and loss in one module for ``functional_call``; the caller chooses what is evaluated.

    One module, since the tensors of a loss module, such as class weights, are constants too.
    """

    def __init__(self, model: nn.Module, forward: Callable, loss_fn: Callable, is_pair: bool):
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn
        self._outputs, self._is_pair = forward, is_pair

    def forward(self, evaluate: Callable[[_Stages], Any]) -> Any:
        return evaluate(self)

    def outputs(self, batch: Any) -> Any:
        return self._outputs(self.model, batch)

    def targets(self, batch: Any) -> Any:
        return batch[1] if self._is_pair else batch

    def criterion(self, outputs: Any, batch: Any) -> Any:
        return self.loss_fn(outputs, self.targets(batch))

    def value(self, batch: Any) -> Any:
        return self.criterion(self.outputs(batch), batch)


def _require_known(
    model: nn.Module,
    loss_fn: Callable,
    reduction: str,
    batch_norm: str,
    dropout: str,
    dtype: torch.dtype | None,
) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f"reduction={reduction!r}: expected 'mean', 'sum' or 'none'")
    if dropout not in ("off", "frozen"):
        raise InputError(f"dropout={dropout!r}: expected 'off' or 'frozen'")
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise InputError(f"model is {kind}; expected a torch.nn.Module, such as nn.Linear(4, 3)")
    embeddings.refuse_renormalized(model)
    normalization.check(model, batch_norm)
    if dropout == "frozen" and not frozen_dropout.layers(model):
        raise InputError("dropout='frozen', but the model has no dropout layer; leave it out")
    if isinstance(loss_fn, type):
        name = loss_fn.__name__
        raise InputError(f"loss_fn is the class {name}; pass an instance of it, {name}()")
    if not callable(loss_fn):
        raise InputError(f"loss_fn is a {type(loss_fn).__name__}; expected a function")
    if dtype not in (None, torch.float32, torch.float64):
        raise InputError(f"dtype={dtype!r}: expected torch.float32 or torch.float64")


def _aliases(module: nn.Module) -> dict[str, list[str]]:
    """All names of each tensor, by its first name; tied and shared tensors have several.

    torch's own handling of ties (2.13) changes a module that is used in two places.
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


def _dtype_of(model: nn.Module) -> torch.dtype:
    dtype = next(p.dtype for p in model.parameters() if p.requires_grad)
    return dtype if dtype == torch.float64 else torch.float32
