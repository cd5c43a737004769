"""The ``train`` command: a zoo model, a data set, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from tqdm import tqdm

from hessian_spectrum import zoo
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config import TrainConfig, to_dict
from hessian_spectrum.loss import criteria
from hessian_spectrum.storage import run_file


def train(config: TrainConfig) -> Path:
    """Train from ``config.seed``; returns the path of the last checkpoint.

    Writes ``epoch-0005.pt`` ... with the model's and the optimizer's state, and prints one
    line for each.

    Raises:
        InputError: a folder that holds checkpoints already, or cannot be written; data that the
            model does not take. Nothing was written or removed.
        FloatingPointError: the loss diverged; earlier checkpoints stay.
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
    run_file.check_output(last, overwrite=True)  # before hours are spent
    for path in stale:
        path.unlink()

    with tqdm(total=config.epochs, desc="train", unit="epoch", disable=None) as bar:

        def on_epoch(result, model, optimizer):
            bar.update()
            if result.epoch % config.every == 0 or result.epoch == config.epochs:
                path = config.out / f"epoch-{result.epoch:04d}.pt"
                _save(path, model, optimizer, result.epoch, config)
                held_out = "" if test is None else f" test accuracy {result.test_accuracy:.1%}"
                bar.write(
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
    """The held-out part; a user's own arrays may have none."""
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
    except RuntimeError as error:  # what torch's writer makes of a full disk
        raise OSError(f"{path} cannot be written ({error}); is the disk full?") from error


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """The folder, made if it is missing; after a failure, gone again if nothing is in it."""
    is_new = not path.exists()
    path.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):  # it holds something: that stays
                path.rmdir()
        raise


def _require_fitting(model: nn.Module, data: TensorDataset) -> None:
    """Refuse inputs that the model cannot evaluate, and labels that it has no output for."""
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
    """The checkpoints in the folder, which are refused without ``overwrite``."""
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
