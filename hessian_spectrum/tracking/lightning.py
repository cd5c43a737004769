"""A Lightning callback that owns a ``Tracker``. Needs the package ``lightning``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.tracking.tracker import Tracker


class TrackerCallback(Callback):
    """Records curvature at optimizer steps, and sends it to the trainer's loggers.

    Its state is in Lightning's checkpoints, under a key of its own for each path. With accumulated
    gradients an optimizer step counts once.

    Args:
        evaluator: an Evaluator, or a function of the LightningModule that makes one, called when
            the module is on its device.
        path, **options: as for ``hs.Tracker``.

    Raises:
        InputError: the module has several optimizers.
    """

    def __init__(
        self,
        evaluator: Evaluator | Callable[[LightningModule], Evaluator],
        path: str | Path,
        **options: Any,
    ):
        self.evaluator, self.path, self.options = evaluator, path, options
        self.tracker: Tracker | None = None
        self._restored: dict[str, Any] = {}
        self._step: int | None = None  # between both calls

    @property
    def state_key(self) -> str:
        return f"{type(self).__name__}({self.path})"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise InputError(
                f"the module has {len(trainer.optimizers)} optimizers; a tracker follows one: call "
                "hs.Tracker in your own training_step"
            )
        made = self.evaluator
        evaluator = made if isinstance(made, Evaluator) else made(pl_module)
        self.tracker = Tracker(evaluator, self.path, **self.options)
        if self._restored:
            self.tracker.load_state_dict(self._restored)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        assert self.tracker is not None
        self._step = trainer.global_step + 1
        self.tracker.before_step(self._step, getattr(optimizer, "optimizer", optimizer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any
    ) -> None:
        if self._step is None or self.tracker is None:  # gradients are still accumulated
            return
        step, self._step = self._step, None
        loss = outputs["loss"] if isinstance(outputs, dict) and "loss" in outputs else None
        found = self.tracker.after_step(step, loss)
        if found is not None:
            for logger in trainer.loggers:
                logger.log_metrics(found, step=step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.tracker is not None:
            self.tracker.close()

    def state_dict(self) -> dict[str, Any]:
        return self._restored if self.tracker is None else self.tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict
