"""Options of the ``train`` and ``demo`` commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import finite, positive, seeds
from hessian_spectrum.config.problem import Activation


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a zoo model by minibatch gradient descent, writing a checkpoint every few epochs."""

    model: str = "mlp-784-20-10"
    """Zoo model: mlp-784-20-10 (any sizes), cnn, resnet20 (32, 44, 56, 110), or a classifier of
    torchvision, torchvision:resnet18."""
    activation: Activation = "tanh"
    """Activation function of mlp and cnn."""
    shortcut: bool = True
    """Identity connections of a resnet; --no-shortcut removes them, which gives a plain network."""
    batchnorm: bool = True
    """BatchNorm layers of a resnet; --no-batchnorm removes them and gives the convolutions biases
    instead."""
    dataset: str = "mnist"
    """Zoo data: digits, mnist, cifar10, arrays, or torchvision:CIFAR100 and the like."""
    data_root: Path | None = None
    """Folder of the data set (torchvision's layout), or a .npz / .h5 file for arrays."""
    image_size: int | None = None
    """Cut pictures of torchvision:NAME to squares of this many pixels, the shorter side resized."""
    download: bool = False
    """Let torchvision download a data set that is not at DATA_ROOT."""
    limit: int | None = None
    """Train on the first LIMIT samples only."""
    epochs: int = 20
    """Passes over the training data."""
    batch_size: int = 64
    """Samples of one gradient step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Update rule."""
    lr: float = 0.1
    """Learning rate."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 0.0
    """The optimizer's weight decay."""
    seed: int = 0
    """Seed of the initialization and of the order of the samples."""
    device: str = "cpu"
    """cpu or cuda."""
    every: int = 5
    """Write a checkpoint every EVERY epochs, and after the last."""
    out: Path = Path("checkpoints")
    """Folder of the checkpoints epoch-0005.pt ..."""
    overwrite: bool = False
    """Replace the checkpoints of a folder that has some."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        positive(self, "epochs", "batch_size", "every", "limit", "image_size")
        finite(self, "lr", "weight_decay")
        if self.lr == 0:
            raise InputError("--lr 0: expected a learning rate above 0")
        if not 0 <= self.momentum < 1:
            raise InputError(f"--momentum {self.momentum}: expected 0 or more, and less than 1")
        seeds(self, "seed")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Train a small network on real handwritten digits and look at its Hessian: one minute."""

    out: Path = Path("demo")
    """Folder for the checkpoint, the result file and the picture."""
    epochs: int = 30
    """Passes over the 1,500 training digits."""
    num_products: int = 360
    """Hessian-vector products."""
    seed: int = 0
    """Seed of everything."""
    overwrite: bool = False
    """Replace the results of an earlier demo."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        positive(self, "epochs", "num_products")
        seeds(self, "seed")
