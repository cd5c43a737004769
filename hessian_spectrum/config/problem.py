"""Options that define a problem: a model, its parameters, a loss and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import finite, positive, seeds

Activation = Literal["tanh", "relu"]


@dataclass(frozen=True, kw_only=True)
class ProblemConfig:
    """A model, its parameters, a loss and data: by zoo name, or from your own file."""

    model: str | None = None
    """Zoo model: mlp-784-20-10 (any sizes), cnn, resnet20 (32, 44, 56, 110), or a classifier of
    torchvision, torchvision:resnet18."""
    activation: Activation = "tanh"
    """Activation function of mlp and cnn."""
    shortcut: bool = True
    """Identity connections of a resnet; --no-shortcut removes them, which gives a plain network."""
    batchnorm: bool = True
    """BatchNorm layers of a resnet; --no-batchnorm removes them and gives the convolutions biases
    instead."""
    dataset: str | None = None
    """Zoo data: digits, mnist, cifar10, arrays, or a data set of torchvision with a label for each
    picture, torchvision:CIFAR100; with the cross-entropy loss."""
    data_root: Path | None = None
    """Folder of the data set (torchvision's layout), or a .npz / .h5 file for arrays."""
    image_size: int | None = None
    """Cut pictures of torchvision:NAME to squares of this many pixels, the shorter side resized."""
    download: bool = False
    """Let torchvision download a data set that is not at DATA_ROOT."""
    split: Literal["train", "test"] = "train"
    """Part of the data set to evaluate on."""
    limit: int | None = None
    """Use the first LIMIT samples only."""
    problem: str | None = None
    """Your own problem, FILE.py:FUNCTION; the function returns (model, loss_fn, data) or a
    dict of Evaluator's arguments."""
    problem_arg: tuple[str, ...] = ()
    """KEY=VALUE arguments of that function. Several, or the option again: --problem-arg a=1 b=2
    or --problem-arg a=1 --problem-arg b=2."""
    checkpoint: Path | None = None
    """Parameters: a state_dict in a .pt or .safetensors file. Without: as the model is made."""
    init_seed: int = 0
    """Seed of the model's initialization."""
    parameters: tuple[str, ...] = ()
    """Name patterns of the parameters to differentiate by, such as 'layer1.*'; several, or the
    option again. Default: the problem's own choice, or all."""
    weight_decay: float | None = None
    """Adds WEIGHT_DECAY / 2 |theta|^2 to the loss. Default: the problem's own, or 0."""
    batch_size: int | None = None
    """Samples in a minibatch; changes speed and memory, not the loss (but with --batch-norm
    train). Default: the problem's
    own, its DataLoader's, or 512."""
    batch_norm: Literal["eval", "train", "recalibrate"] | None = None
    """What BatchNorm normalizes by: its running statistics, those of each minibatch (of
    BATCH_SIZE samples in the order of the data), or those of all the data, recomputed.
    Default: the problem's own, or eval."""
    dropout: Literal["off", "frozen"] | None = None
    """frozen: one fixed mask a layer, from DROPOUT_SEED. Default: the problem's own, or off."""
    dropout_seed: int | None = None
    """Seed of the frozen masks. Default: the problem's own, or 0."""
    dtype: Literal["float32", "float64"] | None = None
    """Floating-point type of parameters and products. Default: the problem's own, or the
    model's."""
    device: str | None = None
    """cpu or cuda. Default: a GPU if there is one."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        if (self.problem is None) == (self.model is None and self.dataset is None):
            raise InputError(
                "name a problem: either --model and --dataset, or --problem FILE.py:FUNCTION"
            )
        if self.problem is None and (self.model is None or self.dataset is None):
            missing = "--model" if self.model is None else "--dataset"
            raise InputError(
                f"{missing} is missing: a zoo problem needs both --model and --dataset"
            )
        for text in self.problem_arg:
            if "=" not in text:
                raise InputError(f"--problem-arg {text!r}: expected KEY=VALUE")
        positive(self, "limit", "batch_size", "image_size")
        finite(self, "weight_decay")
        seeds(self, "init_seed", "dropout_seed")
