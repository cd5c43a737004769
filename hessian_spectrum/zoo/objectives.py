"""What a model of the zoo is trained for: its samples, its loss on a batch, and its score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.zoo.adversarial import FastGradientSign, outputs_of_both
from hessian_spectrum.zoo.losses import loss_named
from hessian_spectrum.zoo.models import family_of
from hessian_spectrum.zoo.networks.boltzmann import MultiPrediction
from hessian_spectrum.zoo.networks.perceptron import sizes_in


def outputs_of_inputs(model: Callable[[Tensor], Any], batch: Any) -> Any:
    return model(batch[0])


def are_hits(outputs: Tensor, labels: Tensor) -> Tensor:
    """Is the largest score that of the label? Scores (N, C, ...), labels (N, ...)."""
    return outputs.argmax(1) == labels


@dataclass(frozen=True)
class Objective:
    """The loss of a batch is ``loss(outputs(model, batch), batch[1])``, a mean over its samples."""

    loss: nn.Module
    outputs: Callable[[Any, Any], Any] = outputs_of_inputs
    # (outputs, targets) -> one boolean for each prediction; their mean is the accuracy.
    hits: Callable[[Any, Any], Tensor] | None = are_hits
    score: str = "accuracy"  # or "perplexity", exp(loss); or "loss", where nothing can be hit

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.loss(self.outputs(model, batch), batch[1])


def samples_for(name: str, data: TensorDataset) -> TensorDataset:
    """``data`` as the model ``name`` and its loss take it: itself, for a model of classes.

    An autoencoder has its inputs as targets, (N, F); a Boltzmann machine has masked inputs.
    """
    samples = family_of(name).samples
    return data if samples is None else samples(name, data)


def objective_for(name: str, loss: str) -> Objective:
    """What the model ``name`` is trained for with the loss of this name.

    Raises:
        InputError: a loss that the model cannot have.
    """
    known = family_of(name).losses
    if loss not in known:
        raise InputError(
            f"{name} cannot be trained with the loss {loss!r}; use {' or '.join(known)}"
        )
    if loss == "fast-gradient-sign":
        return Objective(
            FastGradientSign(),
            outputs_of_both,
            lambda outputs, labels: are_hits(outputs[:, 0], labels),
        )
    if loss == "multi-prediction":
        classes = sizes_in(name)[-1]
        return Objective(MultiPrediction(classes), hits=lambda o, t: _hidden_hits(o, t, classes))
    if name.startswith("autoencoder"):
        return Objective(loss_named(loss), hits=None, score="loss")
    score = "perplexity" if name.startswith("lstm") else "accuracy"
    return Objective(loss_named(loss), score=score)


def problem_for(name: str, loss: str, model: nn.Module, data: TensorDataset) -> Problem:
    """The mean loss of ``model``, of this name, over ``data`` as a data set is loaded.

    Raises:
        InputError: a loss that the model cannot have, or data that do not fit.
    """
    objective, samples = objective_for(name, loss), samples_for(name, data).tensors
    if not isinstance(objective.loss, (FastGradientSign, MultiPrediction)):
        return Problem(model=model, loss_fn=objective.loss, data=samples)
    # Losses of single samples, which the engine knows of torch's own losses only.
    objective.loss.reduction = "none"
    if objective.outputs is outputs_of_inputs:
        return Problem(model=model, loss_fn=objective.loss, data=samples, reduction="none")
    return Problem(
        model=model,
        loss_fn=_OfBatch(objective.loss),
        data=samples,
        forward=objective.outputs,
        reduction="none",
    )


class _OfBatch(nn.Module):
    """A loss of outputs and targets as one of outputs and the batch."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Any, batch: Any) -> Tensor:
        return self.loss(outputs, batch[1])


def _hidden_hits(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Of the samples whose class was not observed."""
    values, mask = (t[:, -classes:] for t in targets.unbind(1))
    hidden = mask[:, 0] == 0
    return are_hits(outputs[hidden, -classes:], values[hidden].argmax(1))
