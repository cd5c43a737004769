"""A deterministic trainer for data that fit on the device, one step at a time, on any ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn
from torch.utils.data import TensorDataset

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config.schedule import Phase, Schedule
from hessian_spectrum.distributed.world import Flags, World
from hessian_spectrum.zoo.averages import Averages
from hessian_spectrum.zoo.data_parallel import Share, require_no_dropout, share_of, summed
from hessian_spectrum.zoo.minibatches import DROPOUT, Data, Minibatches, seed_of
from hessian_spectrum.zoo.objectives import are_hits, outputs_of_inputs
from hessian_spectrum.zoo.optimizers import optimizer_named
from hessian_spectrum.zoo.synchronized_batchnorm import synchronized

_EVALUATION_BATCH = 1024  # samples; affects memory, not results

Loss = Callable[[Any, Tensor], Tensor]  # of outputs and targets: the mean over samples
Outputs = Callable[[Any, Any], Any]  # of the model and a batch, inputs and targets
Hits = Callable[[Any, Tensor], Tensor]  # of outputs and targets: a boolean for each prediction
BeforeStep = Callable[[int, torch.optim.Optimizer, Tensor], object]


@dataclass(frozen=True)
class EpochResult:
    """Measurements of one epoch. Training values are running means: each sample before its step."""

    epoch: int  # from 1
    loss: float  # mean per sample, without weight decay
    accuracy: float | None  # share of hits, 0 to 1; None where nothing can be hit
    test_accuracy: float | None  # after the epoch, in eval mode; None without test data
    test_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained, apart from the network and the data."""

    schedule: Schedule
    batch_size: int = 64  # of all ranks together; the last step of an epoch takes the rest
    momentum: float = 0.9  # for sgd, momentum and nesterov
    weight_decay: float = 0.0  # the optimizer's
    seed: int = 0  # of the sample order, dropout and augmentation
    augment: str | None = None  # one of zoo.augmentation.AUGMENTATIONS


class Training:
    """Minimizes the mean loss of ``model`` over ``data``, in place, from where it stands.

    Bitwise reproducible for the same model, recipe, device and number of threads, whether
    it is stopped and restored or not. The sample order has its own generator, and the random
    numbers of a step depend on seed and step alone; torch's global generator is left as it was. If
    a minibatch takes all samples, they stay in their order.

    On several ranks each evaluates its slice of each minibatch, which may be empty, gradients are
    summed, and BatchNorm uses the statistics of the whole minibatch: the parameters are those of
    one rank, to rounding.

    Args:
        model: moved to the world's device; in eval mode between epochs.
        loss_fn: (outputs, targets) -> the mean over the samples.
        data: inputs (N, ...) and targets (N, ...), moved to that device.
        outputs: (model, (inputs, targets)) -> outputs.
        hits: (outputs, targets) -> is each prediction right? Their mean is the accuracy.
        averages: of this model, to be updated.
        before_step: called with (step, optimizer, loss of the minibatch), with the gradients in
            place and the parameters those that the step starts from.
        flags: travel with the gradients; not heard on one rank.

    Raises:
        InputError: a setting out of its range, an empty data set, or a model with dropout on
            several ranks, whose masks would not be those of one rank.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        data: Data,
        recipe: Recipe,
        *,
        outputs: Outputs = outputs_of_inputs,
        hits: Hits | None = are_hits,
        world: World | None = None,
        averages: Averages | None = None,
        before_step: BeforeStep | None = None,
        flags: Flags | None = None,
    ):
        self.world = world or World()
        self.model, self.loss_fn, self.recipe = model.to(self.world.device), loss_fn, recipe
        self.outputs, self.hits = outputs, hits
        self.averages = averages or Averages(model, None, None)
        _require_valid(recipe)
        if self.world.size > 1:
            require_no_dropout(model)
        self.minibatches = Minibatches(
            _on_device(data, self.world.device),
            recipe.batch_size,
            recipe.seed,
            recipe.augment,
            self.world,
        )
        self._before_step, self._flags = before_step, flags
        self.step_number = 0  # steps made
        self.epoch = 0  # epochs finished
        self._phase = recipe.schedule.phase(1)
        self.optimizer = self._new_optimizer(self._phase)
        self._sums = self._zeros()

    @property
    def steps_in_epoch(self) -> int:
        return self.minibatches.in_epoch

    # -- one step ------------------------------------------------------------------------------

    def step(self) -> EpochResult | None:
        """One step; at the end of an epoch its result, without ``test_accuracy``.

        Collective: called by every rank.

        Raises:
            FloatingPointError: at the end of an epoch, the loss or a parameter is not finite.
        """
        if self.minibatches.are_used_up:
            self.minibatches.begin_epoch()
            self._begin_epoch()
        self.step_number += 1
        share, x, y = self.minibatches.next(self.step_number)
        is_first = True

        def gradient() -> Tensor:
            """Of the minibatch, summed over ranks; at a stage, where the parameters are then."""
            nonlocal is_first
            loss = self._gradient(share, x, y, is_first)
            if is_first and self._before_step is not None:
                self._before_step(self.step_number, self.optimizer, loss)
            is_first = False
            return loss

        with torch.random.fork_rng(_devices(self.world)):
            self.optimizer.step(gradient)  # type: ignore[arg-type] # torch says float
        self.averages.after_step()
        return self._end_epoch() if self.minibatches.are_used_up else None

    def _gradient(self, share: Share, x: Tensor, y: Tensor, is_measured: bool) -> Tensor:
        # Dropout has the same mask at all stages of a step.
        self._seed_dropout()
        with synchronized(self.model, self.world, share):
            outputs = self.outputs(self.model, (x, y))
            loss = self.loss_fn(outputs, y) * share.weight
            self.optimizer.zero_grad()
            loss.backward()
        detached = loss.detach()
        if is_measured:
            # Sums stay on the device: reading them at each step would synchronize.
            self._sums[0] += detached.double() * share.total
            if self.hits is not None and share.counts:
                self._count(self._sums, self.hits(outputs.detach(), y))
        return summed(self.world, self.model.parameters(), detached, self._flags)

    def _seed_dropout(self) -> None:
        """Seed the generators that ``_devices`` has forked, and no others."""
        seed = seed_of(self.recipe.seed, DROPOUT, self.step_number)
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    # -- an epoch ------------------------------------------------------------------------------

    def _begin_epoch(self) -> None:
        phase = self.recipe.schedule.phase(self.epoch + 1)
        if phase.begins != self._phase.begins:
            self.optimizer = self._new_optimizer(phase)
        for group in self.optimizer.param_groups:
            group["lr"] = phase.lr
        self._phase = phase
        self._sums = self._zeros()
        self.model.train()

    def _end_epoch(self) -> EpochResult:
        self.model.eval()
        self.epoch += 1
        self.averages.after_epoch(self.epoch)
        loss, share = _means(self._total(), len(self.minibatches.data[1]))
        _require_finite(loss, self.model, self.epoch, self._phase.lr)
        return EpochResult(self.epoch, loss, share, None)

    def _new_optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        recipe = self.recipe
        return optimizer_named(
            phase.optimizer,
            self.model.parameters(),
            phase.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )

    def _zeros(self) -> Tensor:
        """Sums of the loss, of hits and of predictions."""
        return torch.zeros(3, dtype=torch.float64, device=self.world.device)

    def _count(self, sums: Tensor, hits: Tensor) -> None:
        sums[1] += hits.sum()
        sums[2] += hits.numel()

    def _total(self) -> Tensor:
        """Sums over this epoch's samples of all ranks."""
        return self.world.sum(self._sums.clone()).cpu()

    # -- measurements --------------------------------------------------------------------------

    @torch.no_grad()
    def evaluated(self, data: Data) -> tuple[float, float | None]:
        """Mean loss and share of hits of the model as it is, in eval mode; collective."""
        was_training = self.model.training
        self.model.eval()
        sums, n = self._zeros(), len(data[1])
        for start in range(0, n, _EVALUATION_BATCH):
            share, own = share_of(self.world, min(_EVALUATION_BATCH, n - start))
            if share.counts:
                x, y = (t[start : start + _EVALUATION_BATCH][own] for t in data)
                outputs = self.outputs(self.model, (x, y))
                sums[0] += self.loss_fn(outputs, y).double() * len(y)
                if self.hits is not None:
                    self._count(sums, self.hits(outputs, y))
        self.model.train(was_training)
        return _means(self.world.sum(sums).cpu(), n)

    def averaged_models(self) -> dict[str, nn.Module]:
        """Averages by name, with BatchNorm's statistics of all the data recomputed; collective."""
        models = self.averages.models()
        for averaged in models.values():
            share = Share(1, 1)
            with (
                torch.random.fork_rng(_devices(self.world)),
                synchronized(averaged, self.world, share),
            ):
                self._seed_dropout()
                update_bn(self._inputs(share), averaged)
        return models

    def _inputs(self, share: Share) -> Iterator[Tensor]:
        """Those of this rank, a minibatch after the other; ``share`` says which part they are."""
        for found, x, _ in self.minibatches.in_order(self.step_number):
            share.rows, share.total, share.counts = found.rows, found.total, found.counts
            yield x

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a restarted training needs, of tensors and numbers; collective."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step_number,
            "training": {
                "minibatches": self.minibatches.state_dict(),
                "sums": self._total(),
                "phase": self._phase.begins,
                "averages": self.averages.state_dict(),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was called, on any number of ranks.

        Raises:
            InputError: the state of another schedule.
        """
        own = state["training"]
        self.model.load_state_dict(state["model"])
        self.epoch, self.step_number = int(state["epoch"]), int(state["step"])
        self.minibatches.load_state_dict(own["minibatches"])
        is_within = not self.minibatches.are_used_up
        self._phase = self.recipe.schedule.phase(self.epoch + is_within)
        if self._phase.begins != int(own["phase"]):
            raise InputError("the state was saved under another schedule of optimizers")
        self.optimizer = self._new_optimizer(self._phase)
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages.load_state_dict(own["averages"])
        if is_within:
            self._begin_epoch()
            if self.world.rank == 0:
                self._sums = own["sums"].to(self.world.device)


def train(
    model: nn.Module,
    dataset: TensorDataset,
    *,
    epochs: int,
    batch_size: int = 64,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    optimizer: str = "sgd",
    seed: int = 0,
    test: TensorDataset | None = None,
    on_epoch: Callable[[EpochResult, nn.Module, torch.optim.Optimizer], None] | None = None,
    device: str | torch.device = "cpu",
) -> list[EpochResult]:
    """Minimize the mean cross entropy of a classifier over ``dataset``, in place, in one process.

    As ``Training``, with the commonest choices.

    Args:
        model: (N, ...) -> (N, classes) logits; moved to ``device``, left in eval mode.
        dataset: inputs and int64 labels (N,).
        epochs: passes over the data.
        optimizer: a name of ``zoo.optimizers``.
        test: held-out data of the same form, for ``test_accuracy``.
        on_epoch: called with (result, model, optimizer) after every epoch.

    Raises:
        InputError: a setting out of its range, or an empty data set.
        FloatingPointError: the loss or a parameter is not finite; raised before ``on_epoch``, so
            that no checkpoint of that state is written.
    """
    if epochs < 1:
        raise InputError(f"epochs is {epochs}; expected a whole number >= 1")
    recipe = Recipe(
        schedule=Schedule(optimizer, lr),
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
        seed=seed,
    )
    inputs, labels = dataset.tensors
    world = World(device=torch.device(device))
    training = Training(model, cross_entropy, (inputs, labels), recipe, world=world)
    test_data = None if test is None else on_device(test, world)
    results = []
    while training.epoch < epochs:
        result = training.step()
        if result is None:
            continue
        result = with_test(result, training, test_data)
        results.append(result)
        if on_epoch is not None:
            on_epoch(result, model, training.optimizer)
    return results


def with_test(result: EpochResult, training: Training, test: Data | None) -> EpochResult:
    """The result of an epoch that has just ended, with the measurements of the test data."""
    if test is None:
        return result
    loss, right = training.evaluated(test)
    return EpochResult(result.epoch, result.loss, result.accuracy, right, loss)


def on_device(dataset: TensorDataset, world: World) -> Data:
    inputs, targets = dataset.tensors
    return _on_device((inputs, targets), world.device)


def _means(sums: Tensor, num_samples: int) -> tuple[float, float | None]:
    loss, hits, predictions = sums.tolist()
    return loss / num_samples, hits / predictions if predictions else None


def _on_device(data: Data, device: torch.device) -> Data:
    return data[0].to(device), data[1].to(device)


def _devices(world: World) -> list[torch.device]:
    """Whose random state a step may change, beside the CPU's."""
    return [world.device] if world.device.type == "cuda" else []


def _require_valid(recipe: Recipe) -> None:
    if recipe.batch_size < 1:
        raise InputError(f"batch_size is {recipe.batch_size}; expected a whole number >= 1")
    if not 0 < recipe.schedule.lr < math.inf:
        raise InputError(f"lr is {recipe.schedule.lr}; expected a finite learning rate > 0")
    if not 0 <= recipe.momentum < 1:
        raise InputError(f"momentum is {recipe.momentum}; expected a number >= 0 and < 1")
    if not 0 <= recipe.weight_decay < math.inf:
        raise InputError(f"weight_decay is {recipe.weight_decay}; expected a finite number >= 0")


def _require_finite(loss: float, model: nn.Module, epoch: int, lr: float) -> None:
    # The last step of an epoch can overflow the parameters after a finite loss.
    if math.isfinite(loss) and all(p.isfinite().all() for p in model.parameters()):
        return
    raise FloatingPointError(
        f"training diverged in epoch {epoch} with lr={lr}: mean loss {loss}, and the loss or a "
        f"parameter is not finite; use a smaller lr, or check that the inputs are finite"
    )
