"""The ``train`` command: a zoo model, a data set, checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import TensorDataset
from tqdm import tqdm

from hessian_spectrum import zoo
from hessian_spectrum.config import TrainConfig, to_dict
from hessian_spectrum.errors import InputError


def train(config: TrainConfig) -> Path:
    """Train from ``config.seed``; returns the path of the last checkpoint.

    Writes ``epoch-0005.pt`` ... with the model's and the optimizer's state, and prints one
    line for each.

    Raises:
        InputError: a folder that holds checkpoints already, or cannot be written.
        FloatingPointError: the loss diverged; earlier checkpoints stay.
    """
    _prepare(config.out, config.overwrite)
    data = zoo.load_dataset(
        config.dataset, data_root=config.data_root, split="train", limit=config.limit
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
    config.out.mkdir(exist_ok=True)
    last = config.out / f"epoch-{config.epochs:04d}.pt"

    with tqdm(total=config.epochs, desc="train", unit="epoch", disable=None) as bar:

        def on_epoch(result, model, optimizer):
            bar.update()
            if result.epoch % config.every == 0 or result.epoch == config.epochs:
                path = config.out / f"epoch-{result.epoch:04d}.pt"
                zoo.save_checkpoint(path, model, optimizer, result.epoch, to_dict(config))
                held_out = "" if test is None else f", test accuracy {result.test_accuracy:.1%}"
                bar.write(
                    f"{path}: loss {result.loss:.4f}, training accuracy {result.accuracy:.1%}"
                    + held_out
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
        return zoo.load_dataset(config.dataset, data_root=config.data_root, split="test")
    except InputError:
        if config.dataset == "arrays":
            return None
        raise


def _prepare(out: Path, overwrite: bool) -> None:
    """Refuse a folder with checkpoints; with ``overwrite``, remove them: they are stale."""
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
    for path in existing:
        path.unlink()
