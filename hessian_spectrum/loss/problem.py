"""A model, a loss and data: what is evaluated, before it is known on which ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn

from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.evaluator import Evaluator


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """The arguments of ``Evaluator``, which documents them, except for the ranks."""

    model: nn.Module
    loss_fn: Callable[..., Any]
    data: Any
    forward: Callable[..., Any] | None = None
    reduction: str = "mean"
    count: Callable[[Any], float] | None = None
    weight_decay: float = 0.0
    parameters: Sequence[str] | None = None
    batch_size: int = 512
    batch_norm: Literal["eval", "train", "recalibrate"] = "eval"
    dropout: Literal["off", "frozen"] = "off"
    dropout_seed: int = 0
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    data_is_local: bool = False

    def evaluator(self, world: World | None = None) -> Evaluator:
        """The loss on these ranks, by default all; raises what ``Evaluator`` raises."""
        return Evaluator(**{f.name: getattr(self, f.name) for f in fields(self)}, world=world)
