"""The ``train`` command: train a zoo model on a data set and write checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from hessian_spectrum import zoo
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.commands.progress import Progress
from hessian_spectrum.config import TrainConfig, to_dict
from hessian_spectrum.loss import criteria
from hessian_spectrum.storage import run_file
from hessian_spectrum.zoo.trainer import EpochResult


def train(config: TrainConfig) -> Path:
    """Train from ``config.seed`` and return the path of the last checkpoint.

    Writes ``epoch-0005.pt`` and so on, with the state of the model and of the optimizer, and
    prints one line for each.

    Raises:
        InputError: the folder already holds checkpoints or cannot be written, or the data do not
            fit the model. Nothing was written or removed.
        FloatingPointError: the loss diverged; earlier checkpoints are kept.
    """
    stale = _existing(config.out, config.overwrite)
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
    for part in (data, test) if test else (data,):
        _require_fitting(model, part)
    with folder(config.out):
        return _train(config, model, data, test, stale)


def _train(
    config: TrainConfig,
    model: nn.Module,
    data: TensorDataset,
    test: TensorDataset | None,
    stale: list[Path],
) -> Path:
    last = config.out / f"epoch-{config.epochs:04d}.pt"
    run_file.check_output(last, overwrite=True)  # before hours of training
    for path in stale:
        path.unlink()

    with Progress("train", config.epochs, 0, "epoch") as progress:

        def on_epoch(
            result: EpochResult, model: nn.Module, optimizer: torch.optim.Optimizer
        ) -> None:
            progress.update(1)
            if result.epoch % config.every == 0 or result.epoch == config.epochs:
                path = config.out / f"epoch-{result.epoch:04d}.pt"
                _save(path, model, optimizer, result.epoch, config)
                held_out = "" if test is None else f" test accuracy {result.test_accuracy:.1%}"
                progress.write(
                    f"{path}: during the epoch mean loss {result.loss:.4f}, training accuracy "
                    f"{result.accuracy:.1%}" + (held_out and f"; after it{held_out}")
                )

        zoo.train(
            model,
            data,
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            optimizer=config.optimizer,
            seed=config.seed,
            test=test,
            on_epoch=on_epoch,
            device=torch.device(config.device),
        )
    return last


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


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, config: TrainConfig
) -> None:
    try:
        zoo.save_checkpoint(path, model, optimizer, epoch, to_dict(config))
    except RuntimeError as error:  # torch's writer raises it for a full disk
        raise OSError(f"{path} cannot be written ({error}); is the disk full?") from error


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """Create the folder if it is missing; after a failure, remove a new folder that is empty."""
    is_new = not path.exists()
    path.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):  # not empty: keep it
                path.rmdir()
        raise


def _require_fitting(model: nn.Module, data: TensorDataset) -> None:
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
    criteria.check_labels(cross_entropy, outputs.shape, (inputs, labels), 0)


def _existing(out: Path, overwrite: bool) -> list[Path]:
    """Checkpoints already in the folder.

    Raises:
        InputError: there are some and ``overwrite`` is False, or ``out`` cannot be a folder.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out must name a folder for checkpoints")
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; create it, or change --out")
    existing = sorted(out.glob("epoch-*.pt")) if out.is_dir() else []
    if existing and not overwrite:
        raise InputError(
            f"{out} holds {len(existing)} checkpoints already; choose another --out, or use "
            "--overwrite"
        )
    return existing
