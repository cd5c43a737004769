"""One frozen dataclass a command: the same fields on the command line, in a file, in Python."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import (
    above_zero,
    ascending,
    finite,
    positive,
    seeds,
    size_in_bytes,
    tolerance,
)
from hessian_spectrum.algorithms.budget import Estimator
from hessian_spectrum.krylov.ritz import K, Which

Activation = Literal["tanh", "relu"]
Operator = Literal[
    "hessian", "gauss-newton", "fisher", "gradient-covariance", "gradient-second-moment"
]


@dataclass(frozen=True, kw_only=True)
class ProblemConfig:
    """A model, its parameters, a loss and data: by zoo name, or from your own file."""

    model: str | None = None
    """Zoo model: mlp-784-20-10 (any sizes), cnn, resnet20 (32, 44, 56, 110), or a classifier of
    torchvision, torchvision:resnet18."""
    activation: Activation = "tanh"
    """Activation function of mlp and cnn."""
    shortcut: bool = True
    """A resnet without its identity connections."""
    batchnorm: bool = True
    """A resnet without BatchNorm."""
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


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where the result goes, and what to do with one that is there."""

    resume: bool = False
    """Go on from what an interrupted run left in OUT, if anything."""
    overwrite: bool = False
    """Replace an existing OUT."""
    checkpoint_minutes: float = 10.0
    """Save the state of the computation this often (0: after each step), and on SIGTERM,
    SIGUSR1 or Ctrl-C."""
    timeout_minutes: float = 10.0
    """On several ranks: one that keeps the others waiting for longer is taken for dead."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        if not 0 < self.timeout_minutes <= 10080:  # nor is NaN
            raise InputError(
                f"--timeout-minutes {self.timeout_minutes}: expected minutes, more than 0 and at "
                "most a week"
            )
        if not self.checkpoint_minutes >= 0:  # nor is NaN
            raise InputError(
                f"--checkpoint-minutes {self.checkpoint_minutes}: expected minutes, 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class ComputingConfig(OutputConfig, ProblemConfig):  # fields: the problem's first
    """What is computed of a problem, and where the result goes."""

    out: Path = Path("result.h5")
    """The result file."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        ProblemConfig.check(self)
        OutputConfig.check(self)


@dataclass(frozen=True, kw_only=True)
class CurvatureConfig(ComputingConfig):
    """Products with a curvature matrix: which, and how they are formed."""

    operator: Operator = "hessian"
    """hessian; gauss-newton; fisher (for cross entropy and squared errors); or of the samples'
    gradients the gradient-covariance, or their gradient-second-moment (empirical Fisher)."""
    hvp: str | None = None
    """How products are formed: reverse, reverse-batched, forward or linearize.
    Default: the fastest that fits the memory, measured for long runs."""
    hvp_dtype: Literal["float64", "float32", "tf32", "bfloat16"] | None = None
    """Arithmetic of the products; the vectors keep --dtype. Default: that of --dtype."""
    memory: str | None = None
    """Memory that may be used beyond the model and the data, such as 4GiB. Default: 80% of
    what is available."""
    dry_run: bool = False
    """Print the plan and what it will cost, and stop there."""
    seed: int = 0
    """Seed of the random vectors."""

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` in bytes."""
        return None if self.memory is None else size_in_bytes(self.memory)

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        seeds(self, "seed")
        if self.memory is not None:
            size_in_bytes(self.memory)


@dataclass(frozen=True, kw_only=True)
class DensityConfig(CurvatureConfig):
    """Eigenvalue density of the Hessian or another curvature matrix, by Lanczos quadrature from
    random vectors."""

    out: Path = Path("density.h5")
    """The result file."""
    estimator: Estimator = "block"
    """block: all random vectors share one Krylov space, and what it resolves is counted exactly;
    slq: independent recurrences; lean: block without reorthogonalization, which keeps three
    blocks of vectors only."""
    num_products: int | None = None
    """Products that may be spent: num_probes * num_steps. Default: 180; with a target 1800."""
    num_probes: int | None = None
    """Random vectors, in lockstep. Default: chosen for num_products or target_error."""
    num_steps: int | None = None
    """Lanczos steps, each one pass over the data. Default: as many as num_products allows."""
    target_error: float | None = None
    """Stop as soon as the expected L1 error of the density, smoothed with sigma2, is this small."""
    sigma2: float | None = None
    """Variance of the Gaussian smoothing that errors are stated for, and the target is meant for.
    Default: (width of the spectrum / 500)^2."""
    data_groups: int | None = None
    """Also state how far answers would differ on other data of this kind and size (query,
    data_error), by leaving out each of so many random groups of the samples, 8 to 20: a jackknife,
    as many products again."""
    keep_state: Literal["auto", "always", "never"] = "auto"
    """Keep the Krylov vectors of a finished run in OUT.d, so that --resume with more NUM_STEPS or
    NUM_PRODUCTS, or a smaller TARGET_ERROR, extends it. auto: where they take less than 2 GiB."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        positive(self, "num_probes", "num_steps", "num_products")
        if self.data_groups is not None:
            if self.data_groups < 2:
                raise InputError(f"--data-groups {self.data_groups}: expected 2 or more")
            if self.estimator == "lean":
                raise InputError(
                    "--data-groups with --estimator lean, which keeps no Krylov vectors; use block"
                )
        above_zero(self, "target_error", "sigma2")


@dataclass(frozen=True, kw_only=True)
class EigenpairsConfig(CurvatureConfig):
    """The k extreme eigenpairs of the Hessian or another curvature matrix at one end or both, with
    their residuals."""

    out: Path = Path("eigenpairs.h5")
    """The result file."""
    k: int = 10
    """Eigenpairs; with --which both, at each end."""
    k_smallest: int | None = None
    """With --which both: at the lower end. Default: K."""
    which: Which = "both"
    """largest; smallest (most negative); both; magnitude."""
    tol: float = 1e-6
    """A pair has converged where |H v - lambda v| is at most TOL times the largest |lambda|."""
    max_products: int | None = None
    """Stop there, converged or not; --resume with more goes on. Default: 2,000 and a hundred for
    each pair."""
    certify: bool = False
    """Give each pair a product in float64 at the end, which takes several times as long as one in
    float32: its value and its residual are then those of the matrix in float64. Without, two such
    products tell what float32 adds to all residuals together."""
    copies: bool = True
    """Do not look for further copies of eigenvalues: fewer products, but of one that is multiple
    some copies may be missing."""
    block_size: int | None = None
    """Vectors multiplied together. Default: 2, in which what shows once is single; without copies
    1."""
    basis_size: int | None = None
    """Krylov vectors held at once, before a restart. Default: 300 and ten for each pair, or what
    the memory takes."""
    vectors: bool = True
    """Store the eigenvectors: in OUT below 2 GiB, else in shards in OUT.d."""
    start: Path | None = None
    """An earlier result: start from its eigenvectors, or go on with the Krylov space that a density
    run of the same problem left beside it."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        positive(self, "k", "k_smallest", "max_products", "block_size", "basis_size")
        if self.k_smallest is not None and self.which != "both":
            raise InputError(
                f"--k-smallest {self.k_smallest}: expected with --which both; it is {self.which}"
            )
        if not 0 <= self.tol < 1:
            raise InputError(f"--tol {self.tol}: expected a number from 0 to 1")

    @property
    def wanted(self) -> K:
        """What ``hs.eigenpairs`` takes as k."""
        return self.k if self.k_smallest is None else (self.k_smallest, self.k)


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig(CurvatureConfig):
    """How gradients of minibatches align with the Hessian of all the data: g^T H g / |g|^2."""

    out: Path = Path("alignment.h5")
    """The result file."""
    batch_sizes: tuple[str, ...] = ("100", "1000")
    """Samples in a minibatch; full: all the data. Several, or the option again."""
    num_batches: int = 50
    """Minibatches of each size, drawn without replacement, from SEED."""
    k: int | None = None
    """Compute the K largest eigenpairs first, for shares of lambda_1 and the gradients' cosines
    with the eigenvectors; 0: without. Default: 10, if there are no EIGENPAIRS."""
    eigenpairs: Path | None = None
    """A result file that has the largest eigenpairs of the same matrix, instead."""

    @property
    def sizes(self) -> tuple[int | str, ...]:
        """``batch_sizes`` as numbers, or "full"."""
        return tuple(size if size == "full" else int(size) for size in self.batch_sizes)

    @property
    def num_pairs(self) -> int:
        """How many eigenpairs are computed first."""
        return 0 if self.eigenpairs is not None else 10 if self.k is None else self.k

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        positive(self, "num_batches")
        if self.k is not None and (self.k < 0 or self.eigenpairs is not None):
            what = "expected 0 or more" if self.k < 0 else "leave it out, or --eigenpairs"
            raise InputError(f"--k {self.k}: {what}")
        for size in self.batch_sizes or ("",):
            if size != "full" and not re.fullmatch("0*[1-9][0-9]*", size):
                raise InputError(f"--batch-sizes {size!r}: expected 1 or more samples, or full")


@dataclass(frozen=True, kw_only=True)
class PointsConfig(ComputingConfig):
    """Many points of parameter space, shared out over the ranks."""

    ranks_per_point: int = 1
    """Ranks that share the data of one point; groups of so many ranks take different points."""
    memory: str | None = None
    """Memory that may be used beyond the model and the data, such as 4GiB. Default: a share of what
    is available."""
    dry_run: bool = False
    """Print how many points there are, how they will be computed and for how long, and stop."""

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` in bytes."""
        return None if self.memory is None else size_in_bytes(self.memory)

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        positive(self, "ranks_per_point")
        if self.memory is not None:
            size_in_bytes(self.memory)


@dataclass(frozen=True, kw_only=True)
class ValuesConfig(PointsConfig):
    """Loss and accuracy at many points."""

    test: bool = False
    """Evaluate on the test split of the zoo's data set too."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        if self.test and (self.problem is not None or self.split == "test"):
            raise InputError(
                "--test adds the test split of a zoo data set to its train split; leave it out "
                "with --problem or --split test"
            )


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(ValuesConfig):
    """Loss and accuracy between checkpoints: on a line, over a triangle or a rectangle."""

    out: Path = Path("interpolation.h5")
    """The result file."""
    between: tuple[Path, ...] = ()
    """Checkpoints: two for a line, three for a triangle (barycentric), four for a rectangle
    (bilinear). What is not in theta, such as running statistics, is that of --checkpoint, or else
    of the first."""
    num_points: int | None = None
    """Points on the line, or on each side of a grid. Default: 50, of a grid 25."""
    low: float = 0.0
    """First coordinate; the first checkpoint is at 0, the second at 1. Beyond them is allowed."""
    high: float = 1.0
    """Last coordinate."""
    by_distance: bool = False
    """Of a line: coordinates are distances |theta - theta2| from the second checkpoint, towards the
    first, in units of the parameters."""
    curve: Literal["straight", "bezier", "polygon"] = "straight"
    """Between two checkpoints: a straight line, or a curve that is searched for first, along which
    the mean loss is low (Garipov et al. 2018)."""
    num_bends: int = 1
    """Of a curve: points between its ends that are searched for."""
    num_steps: int = 100
    """Of a curve: steps of Adam."""
    points_per_step: int = 4
    """Of a curve: its points in a step, each a loss and a gradient of all the data."""
    lr: float = 0.01
    """Of a curve: about how far a parameter moves in a step."""
    seed: int = 0
    """Of a curve: of the points in each step."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        positive(self, "num_points")
        if not 2 <= len(self.between) <= 4:
            raise InputError(
                f"--between names {len(self.between)} checkpoints; expected two (a line), three (a "
                "triangle) or four (a rectangle): --between first.pt last.pt"
            )
        if self.by_distance and len(self.between) > 2:
            raise InputError("--by-distance is for a line: name two checkpoints by --between")
        ascending(self, "low", "high", num_points=self.num_points)
        positive(self, "num_bends", "num_steps", "points_per_step")
        seeds(self, "seed")
        above_zero(self, "lr")
        whole = (self.low, self.high, self.by_distance) == (0.0, 1.0, False)
        if self.curve != "straight" and (len(self.between) > 2 or not whole):
            raise InputError(
                f"--curve {self.curve} leads from one checkpoint to another: name two by "
                "--between, and leave out --low, --high and --by-distance"
            )


WINDOW = (-1.0, 1.0)  # coordinates along a direction


@dataclass(frozen=True, kw_only=True)
class PlaneConfig(PointsConfig):
    """A grid of points theta + x d1 + y d2 around the parameters."""

    directions: tuple[str, ...] = ("random", "random")
    """One direction or two, each of: random; gradient; largest or smallest, an eigenvector of the
    Hessian; or a checkpoint's file, the difference to it. Or components: the plane of the first two
    principal components of CHECKPOINTS, unit vectors."""
    checkpoints: tuple[Path, ...] = ()
    """With --directions components: checkpoints in the order of training, three or more. The last
    is the origin of the plane; the way through them is stored, and drawn on the contours."""
    normalization: Literal["filter", "layer", "weight", "none"] = "filter"
    """Of random directions: each filter (a row of a dense layer), layer or weight scaled to the
    norm of that of the parameters (Li et al. 2018)."""
    ignore: Literal["both", "bias", "norm", "none"] = "both"
    """What random directions leave alone: biases, parameters of normalization layers, or both."""
    seed: int = 0
    """Seed of the random directions."""
    x_points: int = 25
    """Points along the first direction."""
    y_points: int | None = None
    """Points along the second direction. Default: as many."""
    x_low: float | None = None
    """First coordinate along the first direction. Default: -1; of components, so that all
    checkpoints are seen."""
    x_high: float | None = None
    """Last coordinate along the first direction. Default: 1; of components as X_LOW."""
    y_low: float | None = None
    """First coordinate along the second direction. Default: X_LOW."""
    y_high: float | None = None
    """Last coordinate along the second direction. Default: X_HIGH."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        positive(self, "x_points", "y_points")
        seeds(self, "seed")
        if self.checkpoints or "components" in self.directions:
            self._check_components()
        elif not 1 <= len(self.directions) <= 2:
            raise InputError(
                f"--directions names {len(self.directions)}; expected one, or two for a plane: "
                "--directions random random"
            )
        across = [n for n in ("y_points", "y_low", "y_high") if getattr(self, n) is not None]
        if self.is_line and across:
            name, value = across[0].replace("_", "-"), getattr(self, across[0])
            raise InputError(f"--{name} {value}: there is one direction; name two by --directions")
        (x_low, x_high, _), *_ = self.axes(WINDOW, WINDOW)
        is_plane = "components" in self.directions  # whose other ends are not known yet
        x_points, y_points = self.shape
        ends = () if is_plane else WINDOW
        ascending(self, "x_low", "x_high", *ends, num_points=x_points)
        ends = () if is_plane else (x_low, x_high)
        ascending(self, "y_low", "y_high", *ends, num_points=y_points)

    def _check_components(self) -> None:
        if self.directions != ("components",) or len(self.checkpoints) < 3:
            raise InputError(
                f"--directions {' '.join(self.directions)} and {len(self.checkpoints)} "
                "--checkpoints: expected --directions components with three checkpoints or more, "
                "and --checkpoints with nothing else"
            )
        if self.checkpoint not in (None, self.checkpoints[-1]):
            raise InputError(
                f"--checkpoint {self.checkpoint}: the origin of components is the last of "
                f"--checkpoints, {self.checkpoints[-1]}; leave --checkpoint out"
            )

    @property
    def is_line(self) -> bool:
        return len(self.directions) == 1 and "components" not in self.directions

    @property
    def shape(self) -> tuple[int, int]:
        """Points along both directions; of one direction, 1 along the second."""
        y_points = self.x_points if self.y_points is None else self.y_points
        return self.x_points, 1 if self.is_line else y_points

    def axes(self, *defaults: tuple[float, float]) -> list[tuple[float, float, int]]:
        """(first, last, points) along each direction; ``defaults``: the ends that were left out.

        A single point, where no end is given, is the origin.
        """
        defaults = [(0.0, 0.0) if count == 1 else ends for ends, count in zip(defaults, self.shape)]
        given = [(self.x_low, self.x_high), (self.y_low, self.y_high)]
        if "components" not in self.directions:
            given[1] = tuple(x if y is None else y for x, y in zip(*given))
        found = [
            (*(d if g is None else g for g, d in zip(ends, default)), count)
            for ends, default, count in zip(given, defaults, self.shape)
        ]
        return found[:1] if self.is_line else found


@dataclass(frozen=True, kw_only=True)
class SurfaceConfig(PlaneConfig, ValuesConfig):
    """Loss and accuracy on a line or a plane around the parameters."""

    out: Path = Path("surface.h5")
    """The result file."""


@dataclass(frozen=True, kw_only=True)
class MapConfig(PlaneConfig, CurvatureConfig):
    """Smallest and largest eigenvalue, signed, at each point of a plane: how convex is it?"""

    out: Path = Path("map.h5")
    """The result file."""
    tol: float = 1e-5
    """An eigenvalue is accepted when its residual is at most TOL times the largest |eigenvalue|:
    the ratio |smallest / largest| is then right to TOL, and usually to its square."""
    max_products: int = 500
    """Products that may be spent on one point; one that needs more is recorded as not converged."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        positive(self, "max_products")
        tolerance(self.tol)


@dataclass(frozen=True, kw_only=True)
class TrackConfig(ValuesConfig):
    """The way of a training run through its checkpoints: loss, distances, principal components."""

    out: Path = Path("track.h5")
    """The result file."""
    checkpoints: tuple[Path, ...] = ()
    """Checkpoints in the order of training, three or more. What is not in theta, such as running
    statistics, is that of --checkpoint, or else of the last."""
    eigenvalues: bool = False
    """The smallest and the largest eigenvalue of the Hessian at each checkpoint too."""
    tol: float = 1e-5
    """With --eigenvalues: accepted are residuals of at most TOL times the largest |eigenvalue|."""
    max_products: int = 500
    """With --eigenvalues: products that may be spent on one checkpoint."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        super().check()
        if len(self.checkpoints) < 3:
            raise InputError(
                f"--checkpoints names {len(self.checkpoints)}; expected three or more, in the "
                "order of training: --checkpoints nets/epoch-*.pt"
            )
        positive(self, "max_products")
        tolerance(self.tol)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a zoo model by minibatch gradient descent, writing a checkpoint every few epochs."""

    model: str = "mlp-784-20-10"
    """Zoo model: mlp-784-20-10 (any sizes), cnn, resnet20 (32, 44, 56, 110), or a classifier of
    torchvision, torchvision:resnet18."""
    activation: Activation = "tanh"
    """Activation function of mlp and cnn."""
    shortcut: bool = True
    """A resnet without its identity connections."""
    batchnorm: bool = True
    """A resnet without BatchNorm."""
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


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON holds it: paths as text, tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))
