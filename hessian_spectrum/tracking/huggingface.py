"""A callback of Hugging Face's Trainer that owns a ``Tracker``. Needs ``transformers``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.tracking.tracker import Tracker

STATE = "tracker.pt"  # in each checkpoint's folder


class HuggingFaceTracker(TrainerCallback):
    """Records curvature at optimizer steps; ``log=`` receives it, as ``hs.Tracker`` says.

    Its state lies in each checkpoint's folder, and is restored with ``resume_from_checkpoint``.

    Args:
        evaluator: an Evaluator, or a function of the model that makes one.
        path, **options: as for ``hs.Tracker``.
    """

    def __init__(
        self,
        evaluator: Evaluator | Callable[[nn.Module], Evaluator],
        path: str | Path,
        **options: Any,
    ):
        self.evaluator, self.path, self.options = evaluator, path, options
        self.tracker: Tracker | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        made = self.evaluator
        evaluator = made if isinstance(made, Evaluator) else made(given["model"])
        self.tracker = Tracker(evaluator, self.path, **self.options)
        if state.global_step:
            saved = _state_file(args, state)
            self.tracker.load_state_dict(torch.load(saved, weights_only=True))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        assert self.tracker is not None
        optimizer = given["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        self.tracker.before_step(state.global_step + 1, optimizer)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        assert self.tracker is not None
        self.tracker.after_step(state.global_step + 1)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if self.tracker is not None:
            saved = self.tracker.state_dict()  # on every rank
            if state.is_world_process_zero:
                torch.save(saved, _state_file(args, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if self.tracker is not None:
            self.tracker.close()


def _state_file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / STATE
