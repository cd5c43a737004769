"""The ``train`` command: train a zoo model on a data set and write checkpoints.

``epoch-0005.pt`` holds the whole state of the training behind epoch 5: "model", "optimizer",
"epoch" (finished), "step" (made), "training" and "config". ``epoch-0005-ema.pt`` and ``-swa.pt``
hold averages under "model". ``training.pt`` is the state between checkpoints; it is deleted when
the training ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from hessian_spectrum import zoo
from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import dashed
from hessian_spectrum.commands.checkpointing import Checkpoints
from hessian_spectrum.commands.output import writing
from hessian_spectrum.commands.progress import Progress
from hessian_spectrum.commands.progress_file import leave_progress
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.commands.training_folder import TrainingFolder, folder
from hessian_spectrum.config import TrainConfig, to_dict
from hessian_spectrum.distributed.agreement import on_first_rank, require_same_call, together
from hessian_spectrum.distributed.world import World, resolve_device
from hessian_spectrum.loss import criteria
from hessian_spectrum.storage import run_file
from hessian_spectrum.zoo.averages import Averages
from hessian_spectrum.zoo.initialization import initialize
from hessian_spectrum.zoo.losses import loss_named
from hessian_spectrum.zoo.trainer import (
    EpochResult,
    Loss,
    Recipe,
    Training,
    accuracy,
    on_device,
    with_test,
)


def train(config: TrainConfig, world: World | None = None, stop: StopRequest | None = None) -> Path:
    """Train from ``config.seed`` and return the path of the last checkpoint.

    Prints one line for each checkpoint. Called by every rank.

    Args:
        stop: a listener to signals that is already at work; default: one for this call.

    Raises:
        InputError: the folder already holds checkpoints or cannot be written, or the data do not
            fit the model. Nothing was written or removed.
        FloatingPointError: the loss diverged; earlier checkpoints are kept.
        Interrupted: a signal came; ``resume`` continues from what was saved.
    """
    world = world or World(device=resolve_device(config.device))
    files = TrainingFolder(config)
    _require_same_options(config, world)
    on_first_rank(world, files.check)
    if config.download:  # once, before the others look
        on_first_rank(world, lambda: _load(config))
    model, data, test = together(world, lambda: _load(config))
    with ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest().listening())
        on_first_rank(world, lambda: stack.enter_context(folder(config.out)))
        lock = stack.enter_context(writing(config.out, world, stop, files.check))
        run = _Run(config, world, files, Checkpoints(world, stop, config.checkpoint_minutes))
        run.prepare(model, data, test)
        note = lock.note if world.rank == 0 else None
        return run.carry_out(note)


class _Run:
    """One run of the command, on every rank; rank 0 writes."""

    def __init__(
        self, config: TrainConfig, world: World, files: TrainingFolder, checkpoints: Checkpoints
    ):
        self.config, self.world, self.files, self.checkpoints = config, world, files, checkpoints

    def prepare(self, model: nn.Module, data: TensorDataset, test: TensorDataset | None) -> None:
        """The training where it begins, or where the run that is resumed has left it."""
        config, world = self.config, self.world
        last = config.out / self._name(config.epochs)
        on_first_rank(world, lambda: run_file.check_output(last, overwrite=True))
        on_first_rank(world, self.files.clear)
        latest = together(world, self.files.latest) if config.resume else None
        if latest is not None:
            # Another number of threads may add in another order.
            torch.set_num_threads(int(latest["threads"]))
        self.test = None if test is None else on_device(test, world)
        self.training = Training(
            model.to(world.device),
            loss_named(config.loss),
            on_device(data, world),
            Recipe(
                schedule=config.schedule,
                batch_size=config.batch_size,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                seed=config.seed,
                augment=config.augment,
            ),
            metric=None if data.tensors[1].is_floating_point() else accuracy,
            world=world,
            averages=Averages(model, config.ema, config.swa),
            flags=self.checkpoints.flags,
        )
        if latest is not None:
            self._go_on(latest)
        elif config.resume:
            self._say("nothing to resume, starts from the beginning")

    def _go_on(self, latest: dict[str, Any]) -> None:
        epoch, step = int(latest["epoch"]), int(latest["step"])
        if epoch > self.config.epochs:
            raise InputError(
                f"--epochs {self.config.epochs}: the training in {self.config.out} has reached "
                f"epoch {epoch}; give that many or more"
            )
        self.training.load_state_dict(latest)
        is_finished = epoch == self.config.epochs
        self._say("finished already" if is_finished else f"going on at step {step + 1:,}")

    def carry_out(self, note: Callable[..., None] | None) -> Path:
        """All steps that are left. Returns the path of the last checkpoint."""
        training, config = self.training, self.config
        self.total = config.epochs * training.steps_in_epoch
        heard = self.checkpoints.flags if self.world.size > 1 else None
        is_first = self.world.rank == 0
        done = training.step_number
        with Progress("train", self.total, done, "step", is_shown=is_first, note=note) as progress:
            self.checkpoints.on_save = lambda last: self._saved(progress, last)
            while training.epoch < config.epochs:
                result = training.step()
                progress.update(1)
                if result is not None:
                    self._after_epoch(result, progress)
                if training.epoch < config.epochs:
                    self.checkpoints.after_step(self._save_between, heard)
        last = config.out / self._name(config.epochs)
        if self.world.from_first(not last.exists()):  # stopped behind the last step
            self._write(last.name, training.state_dict())
        on_first_rank(self.world, self.files.drop_state)
        return last

    def _after_epoch(self, result: EpochResult, progress: Progress) -> None:
        progress.tell(_brief(result))
        if result.epoch % self.config.every and result.epoch != self.config.epochs:
            return
        result = with_test(result, self.training, self.test)
        for name, averaged in self.training.averaged_models().items():
            self._write(self._name(result.epoch, name), {"model": averaged.state_dict()})
        path = self._write(self._name(result.epoch), self.training.state_dict())
        self.checkpoints.was_saved()
        if self.world.rank == 0:
            progress.write(f"{path}: {_described(result)}")

    def _save_between(self) -> None:
        self._write("training.pt", self.training.state_dict())

    def _write(self, name: str, state: dict[str, object]) -> Path:
        training = self.training
        about = {"epoch": training.epoch, "step": training.step_number}
        about["threads"] = torch.get_num_threads()
        on_first_rank(self.world, lambda: self.files.write(name, {**about, **state}))
        return self.files.path / name

    def _saved(self, progress: Progress, last: bool) -> None:
        if self.world.rank == 0:
            leave_progress((self.total, self.training.step_number, "step"))
        progress.saved(last)

    def _name(self, epoch: int, average: str = "") -> str:
        return f"epoch-{epoch:04d}{average and f'-{average}'}.pt"

    def _say(self, text: str) -> None:
        if self.world.rank == 0:
            print(f"train: {text}", file=sys.stderr, flush=True)


# -- what is said --------------------------------------------------------------------------------


def _brief(result: EpochResult) -> str:
    right = "" if result.accuracy is None else f", accuracy {result.accuracy:.1%}"
    return f"epoch {result.epoch}: loss {result.loss:.4f}{right}"


def _described(result: EpochResult) -> str:
    text = f"during the epoch mean loss {result.loss:.4f}"
    if result.accuracy is not None:
        text += f", training accuracy {result.accuracy:.1%}"
    if result.test_accuracy is not None:
        text += f"; after it test accuracy {result.test_accuracy:.1%}"
    elif result.test_loss is not None:
        text += f"; after it test loss {result.test_loss:.4f}"
    return text


# -- model and data ------------------------------------------------------------------------------


def _require_same_options(config: TrainConfig, world: World) -> None:
    own = ("device", "data_root")  # may differ from machine to machine
    options = {f"--{dashed(k)}": v for k, v in to_dict(config).items() if k not in own}
    require_same_call(world, "train", **options)


def _load(config: TrainConfig) -> tuple[nn.Module, TensorDataset, TensorDataset | None]:
    """The model where it starts, and the data, of the chosen dtype."""
    data = zoo.load_dataset(
        config.dataset,
        data_root=config.data_root,
        split="train",
        limit=config.limit,
        image_size=config.image_size,
        download=config.download,
    )
    test = _test_set(config)
    model = zoo.model_for(
        data,
        config.model,
        config.activation,
        config.seed,
        shortcut=config.shortcut,
        batchnorm=config.batchnorm,
        width=config.width,
        dropout_rate=config.dropout_rate,
    )
    initialize(model, config.init, config.seed)
    dtype: torch.dtype = getattr(torch, config.dtype)
    model = model.to(dtype)
    data, test = _of_dtype(data, dtype), None if test is None else _of_dtype(test, dtype)
    for part in (data, test) if test else (data,):
        _require_fitting(model, part, loss_named(config.loss))
    return model, data, test


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


def _require_fitting(model: nn.Module, data: TensorDataset, loss_fn: Loss) -> None:
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
    criteria.check_labels(loss_fn, outputs.shape, (inputs, labels), 0)
