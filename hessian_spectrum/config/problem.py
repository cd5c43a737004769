"""Options that define a problem: a model, its parameters, a loss and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import above_zero, finite, positive, seeds

Activation = Literal["tanh", "relu", "sigmoid", "maxout"]
Loss = Literal["cross-entropy", "mse", "fast-gradient-sign", "multi-prediction"]


HUGGINGFACE = "huggingface:"  # begins a problem that is a folder of transformers

# Fields that say nothing about a problem of one's own.
ZOO_FIELDS = (
    "model",
    "activation",
    "shortcut",
    "batchnorm",
    "width",
    "dropout_rate",
    "loss",
    "dataset",
    "data_root",
    "image_size",
    "download",
    "split",
)


@dataclass(frozen=True, kw_only=True)
class ProblemConfig:
    """A model, its parameters, a loss and data: from the zoo by name, or from your own file."""

    model: str | None = None
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
    dataset: str | None = None
    """Zoo data set: digits (shipped with this package), mnist, cifar10, arrays, ptb, or a
    torchvision data set with one class label per picture, such as torchvision:CIFAR100."""
    data_root: Path | None = None
    """Folder of the data set, in torchvision's layout; for arrays, a .npz or .h5 file; for ptb,
    the folder of ptb.train.txt, or of ptb.valid.txt, and ptb.test.txt."""
    image_size: int | None = None
    """Resize the shorter side of torchvision:NAME pictures to this many pixels and crop the middle
    square."""
    download: bool = False
    """Let torchvision download a data set that DATA_ROOT lacks."""
    split: Literal["train", "test"] = "train"
    """Part of the data set to evaluate on."""
    limit: int | None = None
    """Use only the first LIMIT samples."""
    problem: str | None = None
    """Your own problem, FILE.py:FUNCTION. The function returns (model, loss_fn, data) or a dict of
    Evaluator's arguments. Or huggingface:FOLDER, a causal language model of transformers with its
    tokenizer, as save_pretrained writes them in safetensors, with --text."""
    text: Path | None = None
    """With --problem huggingface:FOLDER: a text file, each line a sample."""
    max_length: int | None = None
    """With --text: cut longer samples to this many tokens. Default: 1024."""
    problem_arg: tuple[str, ...] = ()
    """KEY=VALUE arguments of that function. Give several at once or repeat the option:
    --problem-arg a=1 b=2 or --problem-arg a=1 --problem-arg b=2."""
    checkpoint: Path | None = None
    """Load the parameters from this state_dict, a .pt or .safetensors file. Default: keep the
    initial parameters."""
    init_seed: int = 0
    """Seed of a zoo model's initialization."""
    parameters: tuple[str, ...] = ()
    """Differentiate with respect to the parameters whose names match these patterns, such as
    'layer1.*'. Several values, or repeat the option. Default: the problem's own choice, or all
    parameters."""
    weight_decay: float | None = None
    """Add WEIGHT_DECAY / 2 * |theta|^2 to the loss. Default: the problem's own, or 0."""
    batch_size: int | None = None
    """Samples per minibatch. Changes speed and memory, not the loss, except with --batch-norm
    train. Default: the problem's own, its DataLoader's, or 512."""
    batch_norm: Literal["eval", "train", "recalibrate"] | None = None
    """Statistics that BatchNorm layers use: eval, their running statistics; train, those of each
    minibatch (BATCH_SIZE samples in the order of the data); recalibrate, those of all the data,
    recomputed. Default: the problem's own, or eval."""
    dropout: Literal["off", "frozen"] | None = None
    """off: no dropout. frozen: one fixed mask per layer, drawn from DROPOUT_SEED. Default: the
    problem's own, or off."""
    dropout_seed: int | None = None
    """Seed of the frozen dropout masks. Default: the problem's own, or 0."""
    dtype: Literal["float32", "float64"] | None = None
    """Floating-point type of parameters and products. Default: the problem's own, or the
    model's."""
    device: str | None = None
    """cpu or cuda. Default: a GPU if there is one."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        if (self.problem is None) == (self.model is None and self.dataset is None):
            raise InputError(
                "name a problem: either --model and --dataset, or --problem FILE.py:FUNCTION"
            )
        if self.problem is None and (self.model is None or self.dataset is None):
            missing = "--model" if self.model is None else "--dataset"
            raise InputError(
                f"{missing} is missing: a zoo problem needs both --model and --dataset"
            )
        is_language = self.problem is not None and self.problem.startswith(HUGGINGFACE)
        if is_language != (self.text is not None):
            raise InputError(
                f"--problem {self.problem}: a language model needs --text FILE"
                if is_language
                else "--text is for --problem huggingface:FOLDER; leave it out"
            )
        if self.max_length is not None and not is_language:
            raise InputError("--max-length is for --problem huggingface:FOLDER; leave it out")
        for text in self.problem_arg:
            if "=" not in text:
                raise InputError(f"--problem-arg {text!r}: expected KEY=VALUE")
        positive(self, "limit", "batch_size", "image_size", "max_length")
        model_options(self)
        finite(self, "weight_decay")
        seeds(self, "init_seed", "dropout_seed")


def model_options(config: Any) -> None:
    """Raise InputError, naming the option, for a value that no zoo model can use."""
    above_zero(config, "width")
    if config.dropout_rate is not None and not 0 <= config.dropout_rate < 1:
        raise InputError(
            f"--dropout-rate {config.dropout_rate}: expected 0 or more, and less than 1"
        )
