"""Averages of the parameters over a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Averages:
    """Exponential and stochastic averages of a model that is trained.

    BatchNorm's running statistics in them are those of the latest parameters until they are
    recomputed (``torch.optim.swa_utils.update_bn``).

    Args:
        ema: after each step, average <- ema * average + (1 - ema) * parameters, from
            those after the first step; None: no average.
        swa_after: the mean of the parameters at the end of each later epoch; None: no mean
            (Izmailov et al. 2018, "Averaging weights leads to wider optima and better
            generalization").
    """

    def __init__(self, model: nn.Module, ema: float | None, swa_after: int | None):
        self._model, self._swa_after = model, swa_after
        self._averaged: dict[str, AveragedModel] = {}
        if ema is not None:
            self._averaged["ema"] = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema))
        if swa_after is not None:
            self._averaged["swa"] = AveragedModel(model)

    def after_step(self) -> None:
        if "ema" in self._averaged:
            self._averaged["ema"].update_parameters(self._model)

    def after_epoch(self, epoch: int) -> None:
        """Of an epoch, from 1."""
        if self._swa_after is not None and epoch > self._swa_after:
            self._averaged["swa"].update_parameters(self._model)

    def models(self) -> dict[str, nn.Module]:
        """Those that have averaged something, by name: ema, swa."""
        return {
            name: averaged.module
            for name, averaged in self._averaged.items()
            if int(averaged.n_averaged) > 0
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: averaged.state_dict() for name, averaged in self._averaged.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, averaged in self._averaged.items():
            averaged.load_state_dict(state[name])
