"""Options of the ``train`` and ``demo`` commands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import finite, positive, seeds
from hessian_spectrum.config.output import OutputConfig
from hessian_spectrum.config.problem import Activation, Loss, model_options
from hessian_spectrum.config.schedule import Schedule, drop_of, switch_of
from hessian_spectrum.config.training_grid import members

Optimizer = Literal[
    "sgd",
    "momentum",
    "nesterov",
    "plain-sgd",
    "adagrad",
    "rmsprop",
    "adadelta",
    "adam",
    "adamw",
    "rk2-midpoint",
    "rk2-heun",
    "rk2-ralston",
    "rk2-adam-midpoint",
    "rk2-adam-heun",
    "rk2-adam-ralston",
]
STATE = "training.pt"  # in OUT: the state of a training under way, between checkpoints
# What a resumed training may change: the steps stay those of the run that was interrupted.
FREE_FIELDS = (
    *("epochs", "every", "keep_steps", "keep_epochs", "data_root", "download", "device"),
    *(
        "grid",
        "grid_member",
        "track",
        "track_every",
        "track_probe",
        "track_largest",
        "track_density_every",
    ),
    "track_overhead",
    *("out", "resume", "overwrite", "checkpoint_minutes", "timeout_minutes"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OutputConfig):
    """Train a zoo model by minibatch gradient descent, on any number of ranks.

    Writes a checkpoint every EVERY epochs into the folder OUT, and prints a line for each. More
    EPOCHS with --resume train on.

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
    """Samples per gradient step, of all ranks together. As many as there are, or more: steps of
    gradient descent, in the order of the data."""
    optimizer: Optimizer = "sgd"
    """Update rule: torch's sgd, momentum (sgd that must have one), nesterov, plain-sgd (without
    momentum), adagrad, rmsprop, adadelta, adam and adamw; rk2-METHOD and rk2-adam-METHOD, gradient
    descent and Adam as Runge-Kutta methods of second order with two gradients a step."""
    lr: float = 0.1
    """Learning rate."""
    lr_drop: tuple[str, ...] = ()
    """EPOCH:FACTOR, as in 50:0.1 80:0.1: after that epoch multiply the learning rate."""
    switch: tuple[str, ...] = ()
    """EPOCH:OPTIMIZER:LR, as in 50:adam:1e-4: after that epoch go on with another optimizer."""
    momentum: float = 0.9
    """Momentum of sgd, momentum and nesterov; the others ignore it."""
    weight_decay: float = 0.0
    """The optimizer's weight decay."""
    init: str = "torch"
    """Starting weights: torch, as torch draws them; normal:MEAN:STD; uniform:LOW:HIGH; or
    scaled:FACTOR, those of torch times FACTOR. Biases and normalization layers stay as they are."""
    augment: Literal["flip-crop"] | None = None
    """flip-crop: mirror each picture or not, and cut it out of a frame of 4 zeros, at random in
    each step, from SEED."""
    ema: float | None = None
    """Keep an average of the parameters with this decay per step too, in ema-0005.pt and so on."""
    swa: int | None = None
    """Keep the mean of the parameters at the end of each epoch after this one too, in
    swa-0005.pt and so on."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating-point type of parameters and data."""
    seed: int = 0
    """Seed of the initialization, of the sample order, of dropout and of augmentation."""
    device: str = "cpu"
    """cpu or cuda."""
    every: int = 5
    """Write a checkpoint every EVERY epochs, and after the last one."""
    keep_steps: tuple[str, ...] = ()
    """FIRST:LAST, as in 1:40: keep the parameters after each of these steps, and those that the
    first one starts from, in step-000000.pt and so on."""
    keep_epochs: tuple[int, ...] = ()
    """Keep those of all steps of these epochs, from 1."""
    track: Path | None = None
    """Record curvature while the network trains in this result file, HDF5: eigenvalues, sharpness
    and the optimizer's threshold, on the first samples of the training data."""
    track_every: int = 100
    """Record steps that TRACK_EVERY divides, and steps 1 and 10."""
    track_probe: int = 512
    """Samples on which curvature is looked at."""
    track_largest: int = 1
    """The largest eigenvalues that are recorded; those above 1.5 / lr are in any case."""
    track_density_every: int | None = None
    """Of the recorded steps, those that TRACK_DENSITY_EVERY divides get a density, too."""
    track_overhead: float = 0.05
    """The share of the time that records may take; others are skipped. 1: record all."""
    grid: tuple[str, ...] = ()
    """OPTION=VALUE,VALUE,..., as in optimizer=sgd:0.1,adam:0.001,rk2-heun:0.1 seed=0,1,2: train a
    network for each combination, in folders of OUT such as OUT/adam-seed2. After an optimizer comes
    its learning rate."""
    grid_member: int | None = None
    """Train this one of the grid alone, from 0, for a job array; the last option changes first."""
    out: Path = Path("checkpoints")
    """Folder for the checkpoints, epoch-0005.pt and so on."""
    overwrite: bool = False
    """Delete the checkpoints of an earlier training that OUT holds and write new ones."""

    @property
    def schedule(self) -> Schedule:
        """Which optimizer trains in which epoch; InputError for texts of another form."""
        names = get_args(Optimizer)
        drops = tuple(drop_of(text) for text in self.lr_drop)
        switches = tuple(switch_of(text, names) for text in self.switch)
        return Schedule(self.optimizer, self.lr, drops, switches)

    @property
    def kept_steps(self) -> tuple[tuple[int, int], ...]:
        """--keep-steps as numbers; InputError for texts of another form."""
        return tuple(_window(text) for text in self.keep_steps)

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        OutputConfig.check(self)
        positive(self, "epochs", "batch_size", "every", "limit", "image_size", "swa")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"--ema {self.ema}: expected a number between 0 and 1")
        self._check_track()
        if any(epoch < 1 for epoch in self.keep_epochs):
            raise InputError(f"--keep-epochs {min(self.keep_epochs)}: epochs count from 1")
        _ = self.schedule, self.kept_steps
        self._check_grid()
        model_options(self)
        finite(self, "lr", "weight_decay")
        if self.lr == 0:
            raise InputError("--lr 0: expected a learning rate above 0")
        if not 0 <= self.momentum < 1:
            raise InputError(f"--momentum {self.momentum}: expected 0 or more, and less than 1")
        seeds(self, "seed")

    def _check_track(self) -> None:
        positive(self, "track_every", "track_probe", "track_largest", "track_density_every")
        if not 0 < self.track_overhead <= 1:
            raise InputError(
                f"--track-overhead {self.track_overhead}: expected a share, above 0 and at most 1"
            )
        for field in dataclasses.fields(self):
            given = getattr(self, field.name) != field.default
            if given and field.name.startswith("track_") and self.track is None:
                option = "--" + field.name.replace("_", "-")
                raise InputError(
                    f"{option} has no effect without --track FILE; name the file, or leave it out"
                )

    def _check_grid(self) -> None:
        found = members(self) if self.grid else {}
        for member in found.values():
            member.check()
        number = self.grid_member
        if number is not None and not 0 <= number < len(found):
            raise InputError(f"--grid-member {number}: the grid has {len(found)}, counted from 0")


def _window(text: str) -> tuple[int, int]:
    try:
        first, last = map(int, text.split(":"))
    except ValueError:
        first, last = 0, 0
    if not 1 <= first <= last:
        raise InputError(f"--keep-steps {text}: expected FIRST:LAST, steps from 1, as in 1:40")
    return first, last


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
