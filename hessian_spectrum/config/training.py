"""Options of the ``train`` and ``demo`` commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import finite, positive, seeds
from hessian_spectrum.config.problem import Activation, Loss, model_options


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a zoo model by minibatch gradient descent, in one process.

    Writes a checkpoint every EVERY epochs into the folder OUT, and prints a line for each.

        hessian-spectrum train --model cnn --dataset mnist --data-root DATA --out nets
    """

    model: str = "mlp-784-20-10"
    """Zoo model: mlp-784-20-10 (any layer sizes), cnn, resnet20 (or 32, 44, 56, 110), vgg11,
    vgg16, nin, wrn-16-4 (depth, widening), densenet-40-12 (depth, growth), convmaxout-mnist,
    convmaxout-cifar10, dlinear-784-20-10 (a deep linear network), autoencoder-784-20-784 (a linear
    one, with --loss mse), lstm (with --dataset ptb), mpdbm-784-500-1000-10 (a multi-prediction
    Boltzmann machine, with --loss multi-prediction), or a torchvision classifier such as
    torchvision:resnet18."""
    activation: Activation = "tanh"
    """Activation function of mlp and cnn; maxout, the largest of five linear functions, of mlp."""
    shortcut: bool = True
    """Shortcuts of resnet, wrn and densenet; --no-shortcut removes them, which gives a plain
    network."""
    batchnorm: bool = True
    """BatchNorm layers of cnn, resnet, vgg, nin, wrn and densenet; --no-batchnorm removes them and
    gives the convolutions biases instead."""
    width: float = 1.0
    """Multiply the hidden units or channels of every layer by WIDTH, rounded, at least 1."""
    dropout_rate: float | None = None
    """Probability with which dropout layers of mlp, vgg, nin, wrn, densenet, convmaxout and lstm
    drop a unit. Default: 0.5 for nin and convmaxout, else 0."""
    loss: Loss = "cross-entropy"
    """The mean over the samples of: cross-entropy; mse, half the squared distance of the outputs
    from the one-hot label; fast-gradient-sign, half the cross entropy and half that of the sample's
    adversarial example (Goodfellow et al. 2015); multi-prediction, of mpdbm."""
    dataset: str = "mnist"
    """Zoo data set: digits, mnist, cifar10, arrays, ptb, or torchvision:NAME such as
    torchvision:CIFAR100."""
    data_root: Path | None = None
    """Folder of the data set, in torchvision's layout; for arrays, a .npz or .h5 file; for ptb,
    the folder of ptb.train.txt, or of ptb.valid.txt, and ptb.test.txt."""
    image_size: int | None = None
    """Resize the shorter side of torchvision:NAME pictures to this many pixels and crop the middle
    square."""
    download: bool = False
    """Let torchvision download a data set that DATA_ROOT lacks."""
    limit: int | None = None
    """Train on the first LIMIT samples only."""
    epochs: int = 20
    """Passes over the training data."""
    batch_size: int = 64
    """Samples per gradient step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Update rule."""
    lr: float = 0.1
    """Learning rate."""
    momentum: float = 0.9
    """Momentum of sgd; adam ignores it."""
    weight_decay: float = 0.0
    """The optimizer's weight decay."""
    seed: int = 0
    """Seed of the initialization and of the sample order."""
    device: str = "cpu"
    """cpu or cuda."""
    every: int = 5
    """Write a checkpoint every EVERY epochs, and after the last one."""
    out: Path = Path("checkpoints")
    """Folder for the checkpoints, epoch-0005.pt and so on."""
    overwrite: bool = False
    """Delete the checkpoints that OUT already holds and write new ones."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        positive(self, "epochs", "batch_size", "every", "limit", "image_size")
        model_options(self)
        finite(self, "lr", "weight_decay")
        if self.lr == 0:
            raise InputError("--lr 0: expected a learning rate above 0")
        if not 0 <= self.momentum < 1:
            raise InputError(f"--momentum {self.momentum}: expected 0 or more, and less than 1")
        seeds(self, "seed")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Train a small network on real handwritten digits and estimate the density of its Hessian.

    Takes about a minute in one process. Writes checkpoints, digits.h5 and digits.png into the
    folder OUT, and explains the result.

        hessian-spectrum demo --out demo
    """

    out: Path = Path("demo")
    """Folder for checkpoints, the result file and the picture."""
    epochs: int = 30
    """Passes over the 1,500 training digits."""
    num_products: int = 360
    """Budget of Hessian-vector products."""
    seed: int = 0
    """Seed of training and of the random vectors."""
    overwrite: bool = False
    """Replace the results of an earlier demo."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        positive(self, "epochs", "num_products")
        seeds(self, "seed")
