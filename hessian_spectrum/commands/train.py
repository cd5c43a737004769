"""The ``train`` command: train a zoo model on a data set and write checkpoints.

``epoch-0005.pt`` holds the whole state of the training after epoch 5: "model", "optimizer",
"epoch" (finished), "step" (made), "training" and "config". ``ema-0005.pt`` and ``swa-0005.pt``
hold averages under "model". ``step-000012.pt`` is an iterate that --keep-steps or --keep-epochs
names: theta after 12 steps, as "model", with its "step" and "epoch"; ``step-000000.pt`` is where
the training starts. ``training.pt`` is the state between checkpoints; it is deleted when the
training ends.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import dashed
from hessian_spectrum.commands import kept_iterates, training_input
from hessian_spectrum.commands.checkpointing import Checkpoints
from hessian_spectrum.commands.kept_iterates import KeptIterates
from hessian_spectrum.commands.output import writing
from hessian_spectrum.commands.progress import Progress
from hessian_spectrum.commands.progress_file import leave_progress
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.commands.training_folder import TrainingFolder, folder
from hessian_spectrum.commands.training_input import TrainingInput
from hessian_spectrum.config import TrainConfig, to_dict
from hessian_spectrum.config.training import STATE
from hessian_spectrum.distributed.agreement import on_first_rank, require_same_call, together
from hessian_spectrum.distributed.world import World, resolve_device
from hessian_spectrum.storage import run_file
from hessian_spectrum.tracking.tracker import Tracker
from hessian_spectrum.zoo.averages import Averages
from hessian_spectrum.zoo.trainer import EpochResult, Recipe, Training, on_device, with_test


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
        on_first_rank(world, lambda: training_input.load(config))
    given = together(world, lambda: training_input.load(config))
    with ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest().listening())
        on_first_rank(world, lambda: stack.enter_context(folder(config.out)))
        lock = stack.enter_context(writing(config.out, world, stop, files.check))
        run = _Run(given, world, files, Checkpoints(world, stop, config.checkpoint_minutes))
        run.prepare()
        with run.tracker or nullcontext():
            return run.carry_out(lock.note if world.rank == 0 else None)


class _Run:
    """One run of the command, on every rank; rank 0 writes."""

    def __init__(
        self, given: TrainingInput, world: World, files: TrainingFolder, checkpoints: Checkpoints
    ):
        self.given, self.config = given, given.config
        self.world, self.files, self.checkpoints = world, files, checkpoints
        self.tracker: Tracker | None = None
        self._loss: torch.Tensor | None = None  # of the latest minibatch

    def prepare(self) -> None:
        """The training where it begins, or where the run that is resumed has left it."""
        config, world, given = self.config, self.world, self.given
        last = config.out / self._name("epoch", config.epochs)
        on_first_rank(world, lambda: run_file.check_output(last, overwrite=True))
        on_first_rank(world, self.files.clear)
        latest = together(world, self.files.latest) if config.resume else None
        if latest is not None:
            # Another number of threads may add in another order.
            torch.set_num_threads(int(latest["threads"]))
        self.test = None if given.test is None else on_device(given.test, world)
        model, objective = given.model.to(world.device), given.objective
        self.training = Training(
            model,
            objective.loss,
            on_device(given.data, world),
            Recipe(
                schedule=config.schedule,
                batch_size=config.batch_size,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                seed=config.seed,
                augment=config.augment,
            ),
            outputs=objective.outputs,
            hits=objective.hits,
            world=world,
            averages=Averages(model, config.ema, config.swa),
            before_step=self._before_step,
            flags=self.checkpoints.flags,
        )
        self.kept = KeptIterates.chosen(config, self.training.steps_in_epoch)
        if config.track is not None:
            self.tracker = self._new_tracker(config.track, latest)
        if latest is not None:
            self._go_on(latest)
        elif config.resume:
            self._say("nothing to resume, starts from the beginning")

    def _new_tracker(self, path: Path, latest: dict[str, Any] | None) -> Tracker:
        """Raises InputError where the file is of another run."""
        config, world = self.config, self.world
        goes_on = latest is not None and "tracker" in latest
        replaced = config.overwrite or goes_on
        on_first_rank(world, lambda: run_file.check_output(path, overwrite=replaced))
        tracker = Tracker(
            self.given.probe(config.track_probe).evaluator(world),
            path,
            every=config.track_every,
            largest=config.track_largest,
            density_every=config.track_density_every,
            max_overhead=config.track_overhead if config.track_overhead < 1 else None,
            seed=config.seed,
            overwrite=config.overwrite,
        )
        if latest is not None and goes_on:
            tracker.load_state_dict(latest["tracker"])
        return tracker

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
        if self.tracker is not None and not done:
            self._save_between()  # a file of records without a state could not be gone on with
        self._keep_iterate()
        with Progress("train", self.total, done, "step", is_shown=is_first, note=note) as progress:
            self.checkpoints.on_save = lambda last: self._saved(progress, last)
            while training.epoch < config.epochs:
                result = self._step()
                progress.update(1)
                if result is not None:
                    self._after_epoch(result, progress)
                if training.epoch < config.epochs:
                    self.checkpoints.after_step(self._save_between, heard)
        last = config.out / self._name("epoch", config.epochs)
        if self.world.from_first(not last.exists()):  # stopped after the last step
            self._write(last.name, self._state())
        on_first_rank(self.world, self.files.drop_state)
        return last

    def _step(self) -> EpochResult | None:
        result = self.training.step()
        if self.tracker is not None:
            self.tracker.after_step(self.training.step_number, self._loss)
        self._keep_iterate()
        return result

    def _before_step(self, step: int, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        self._loss = loss
        if self.tracker is not None:
            self.tracker.before_step(step, optimizer)

    def _keep_iterate(self) -> None:
        step = self.training.step_number
        if self.kept.has(step):
            self._write(kept_iterates.name_of(step), {"model": self.training.model.state_dict()})

    def _after_epoch(self, result: EpochResult, progress: Progress) -> None:
        progress.tell(_brief(result))
        if result.epoch % self.config.every and result.epoch != self.config.epochs:
            return
        result = with_test(result, self.training, self.test)
        for name, averaged in self.training.averaged_models().items():
            self._write(self._name(name, result.epoch), {"model": averaged.state_dict()})
        path = self._write(self._name("epoch", result.epoch), self._state())
        self.checkpoints.was_saved()
        if self.world.rank == 0:
            progress.write(f"{path}: {_described(result, self.given.objective.score)}")

    def _save_between(self) -> None:
        self._write(STATE, self._state())

    def _state(self) -> dict[str, Any]:
        """All that a resumption needs; collective."""
        tracker = {} if self.tracker is None else {"tracker": self.tracker.state_dict()}
        return {**self.training.state_dict(), **tracker}

    def _write(self, name: str, state: dict[str, Any]) -> Path:
        training = self.training
        about = {"epoch": training.epoch, "step": training.step_number}
        about["threads"] = torch.get_num_threads()
        on_first_rank(self.world, lambda: self.files.write(name, {**about, **state}))
        return self.files.path / name

    def _saved(self, progress: Progress, last: bool) -> None:
        if self.world.rank == 0:
            leave_progress((self.total, self.training.step_number, "step"))
        progress.saved(last)

    def _name(self, kind: str, epoch: int) -> str:
        return f"{kind}-{epoch:04d}.pt"

    def _say(self, text: str) -> None:
        if self.world.rank == 0:
            print(f"train: {text}", file=sys.stderr, flush=True)


# -- what is said --------------------------------------------------------------------------------


def _brief(result: EpochResult) -> str:
    right = "" if result.accuracy is None else f", accuracy {result.accuracy:.1%}"
    return f"epoch {result.epoch}: loss {result.loss:.4f}{right}"


def _described(result: EpochResult, score: str) -> str:
    text = f"during the epoch mean loss {result.loss:.4f}"
    if score == "perplexity":
        text += f", perplexity {_perplexity(result.loss)}"
    elif result.accuracy is not None:
        text += f", training accuracy {result.accuracy:.1%}"
    if result.test_loss is None:
        return text
    if score == "perplexity":
        return f"{text}; after it test perplexity {_perplexity(result.test_loss)}"
    if result.test_accuracy is not None:
        return f"{text}; after it test accuracy {result.test_accuracy:.1%}"
    return f"{text}; after it test loss {result.test_loss:.4f}"


def _perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 700.0)):.1f}"


def _require_same_options(config: TrainConfig, world: World) -> None:
    own = ("device", "data_root")  # may differ from machine to machine
    options = {f"--{dashed(k)}": v for k, v in to_dict(config).items() if k not in own}
    require_same_call(world, "train", **options)
