"""What a training starts from: a model where it begins, what it is trained for, and the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import TensorDataset

from hessian_spectrum import zoo
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config import TrainConfig
from hessian_spectrum.loss import batch_norm, criteria
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.zoo.initialization import initialize
from hessian_spectrum.zoo.objectives import Objective, objective_for, problem_for, samples_for


@dataclass(frozen=True)
class TrainingInput:
    """All of the chosen dtype, on the CPU."""

    config: TrainConfig
    model: nn.Module
    objective: Objective
    loaded: TensorDataset  # the data set to train on, as it is loaded
    data: TensorDataset  # as the model takes it
    test: TensorDataset | None

    def probe(self, num_samples: int) -> Problem:
        """The loss of the first samples, to be looked at while the model is trained.

        BatchNorm uses the statistics of minibatches, as in training.
        """
        first = TensorDataset(*(t[:num_samples] for t in self.loaded.tensors))
        found = problem_for(self.config.model, self.config.loss, self.model, first)
        options = vars(found) | {"batch_size": self.config.batch_size}
        if batch_norm.layers(self.model):
            options["batch_norm"] = "train"
        return Problem(**options)


def load(config: TrainConfig) -> TrainingInput:
    """The model from its seed, and the data.

    Raises:
        InputError: unknown names, missing files, or data that do not fit the model.
    """
    dtype: torch.dtype = getattr(torch, config.dtype)
    objective = objective_for(config.model, config.loss)
    loaded = zoo.load_dataset(
        config.dataset,
        data_root=config.data_root,
        split="train",
        limit=config.limit,
        image_size=config.image_size,
        download=config.download,
    )
    test = _test_set(config)
    model = zoo.model_for(
        loaded,
        config.model,
        config.activation,
        config.seed,
        shortcut=config.shortcut,
        batchnorm=config.batchnorm,
        width=config.width,
        dropout_rate=config.dropout_rate,
    )
    initialize(model, config.init, config.seed)
    model = model.to(dtype)
    loaded, test = _of_dtype(loaded, dtype), None if test is None else _of_dtype(test, dtype)
    data = samples_for(config.model, loaded)
    test = None if test is None else samples_for(config.model, test)
    for part in (data, test) if test else (data,):
        _require_fitting(model, part, objective)
    return TrainingInput(config, model, objective, loaded, data, test)


def _of_dtype(data: TensorDataset, dtype: torch.dtype) -> TensorDataset:
    return TensorDataset(*(t.to(dtype) if t.is_floating_point() else t for t in data.tensors))


def _test_set(config: TrainConfig) -> TensorDataset | None:
    """The test split; None for a user's own arrays without one."""
    try:
        return zoo.load_dataset(
            config.dataset,
            data_root=config.data_root,
            split="test",
            image_size=config.image_size,
            download=config.download,
        )
    except InputError:
        if config.dataset == "arrays":
            return None
        raise


def _require_fitting(model: nn.Module, data: TensorDataset, objective: Objective) -> None:
    """InputError for inputs that the model cannot evaluate, or labels without an output."""
    inputs, labels = data.tensors
    try:
        with torch.no_grad():
            outputs = model.eval()(inputs[:1])
    except Exception as error:
        raise InputError(
            f"the model cannot evaluate inputs of shape {tuple(inputs.shape[1:])}: "
            f"{type(error).__name__}: {error}; choose a model or data that fit"
        ) from error
    loss = nn.CrossEntropyLoss() if objective.score == "accuracy" else objective.loss
    if not labels.is_floating_point():
        criteria.check_labels(loss, outputs.shape, (inputs, labels), 0)
