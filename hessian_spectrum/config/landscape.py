"""Options of the commands that evaluate many points of parameter space."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import (
    above_zero,
    ascending,
    dashed,
    positive,
    seeds,
    size_in_bytes,
    tolerance,
)
from hessian_spectrum.config.alignment import check_sizes
from hessian_spectrum.config.curvature import CurvatureConfig, KrylovConfig
from hessian_spectrum.config.density import DensityOptions
from hessian_spectrum.config.output import ComputingConfig
from hessian_spectrum.krylov.ritz import K, Which


@dataclass(frozen=True, kw_only=True)
class PointsConfig(ComputingConfig):
    """Many points of parameter space, distributed over the ranks."""

    ranks_per_point: int = 1
    """Ranks that share the data of one point. Groups of this many ranks work on different
    points."""
    memory: str | None = None
    """Memory that may be used beyond the model and the data, such as 4GiB. Default: a share of what
    is available."""
    dry_run: bool = False
    """Print the number of points, how they will be computed and the estimated time, and stop."""

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` in bytes."""
        return None if self.memory is None else size_in_bytes(self.memory)

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        positive(self, "ranks_per_point")
        if self.memory is not None:
            size_in_bytes(self.memory)


@dataclass(frozen=True, kw_only=True)
class ValuesConfig(PointsConfig):
    """Loss and accuracy at many points."""

    test: bool = False
    """Also evaluate on the test split of the zoo's data set."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        if self.test and (self.problem is not None or self.split == "test"):
            raise InputError(
                "--test adds the test split of a zoo data set to its train split; leave it out "
                "with --problem or --split test"
            )


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(ValuesConfig):
    """Evaluate loss and accuracy between checkpoints: along a line or curve, or over a grid.

    Writes OUT, an HDF5 file with the coordinates and the values at each point, and prints the
    range of each value and the loss barrier.

        hessian-spectrum interpolate --problem mine.py:make --between a.pt b.pt --out line.h5

    With --pairs all pairs of networks, as Im, Tao and Branson (2017) compare optimizers: the line
    from end to end with the loss and with distances and label disagreements of outputs, the
    triangle of the common start and both ends, and the line from the start to each end.

        hessian-spectrum interpolate --model nin --dataset cifar10 --pairs nets --out pairs.h5

    With --match also the line to the second network with its hidden units in the order of the
    first: of the barrier on the first line, what is due to that order alone is not on the second.

        hessian-spectrum interpolate --problem mine.py:make --between a.pt b.pt --match weights
    """

    out: Path = Path("interpolation.h5")
    """Result file, HDF5."""
    between: tuple[Path, ...] = ()
    """Checkpoints: two for a line, three for a triangle (barycentric coordinates), four for a
    rectangle (bilinear). State outside theta, such as running statistics, comes from --checkpoint
    or else from the first of them."""
    pairs: Path | None = None
    """Instead of --between: a folder of networks. Each subfolder is one, as train --grid writes it:
    its last epoch is the end and step-000000.pt, which --keep-steps writes, the start. Without such
    subfolders each checkpoint in it is one."""
    start: Path | None = None
    """With --pairs: the checkpoint that all networks started from. Default: step-000000.pt of each;
    there is no triangle of networks whose starts differ or are not known."""
    match: Literal["weights", "activations"] | None = None
    """On a line: also permute the hidden units of the second network so that they correspond to
    those of the first, by their weights or by correlations of their activations on the data, and
    evaluate the line to it as well (Ainsworth et al. 2023). OUT holds both curves."""
    num_points: int | None = None
    """Points on the line, or along each side of a grid. Default: 50 on a line, 25 on a grid, with
    --pairs 25 on both."""
    low: float = 0.0
    """First coordinate. The first checkpoint is at 0 and the second at 1; values beyond them
    extrapolate."""
    high: float = 1.0
    """Last coordinate."""
    by_distance: bool = False
    """On a line: coordinates are distances |theta - theta2| from the second checkpoint towards the
    first, in units of the parameters."""
    curve: Literal["straight", "bezier", "polygon"] = "straight"
    """Between two checkpoints: a straight line, or a Bezier curve or polygon that is first
    optimized for a low mean loss along it (Garipov et al. 2018)."""
    num_bends: int = 1
    """For a curve: number of optimized points between its ends."""
    num_steps: int = 100
    """For a curve: optimization steps of Adam."""
    points_per_step: int = 4
    """For a curve: points sampled in each step; each costs a loss and a gradient on all the
    data."""
    lr: float = 0.01
    """For a curve: Adam's learning rate, about how far a parameter moves in one step."""
    seed: int = 0
    """For a curve: seed of the points in each step. With --match weights: seed of the order in
    which layers are matched."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        positive(self, "num_points")
        if self.pairs is not None:
            self._check_pairs()
            return
        if self.start is not None:
            raise InputError(f"--start {self.start}: is for --pairs; leave it out")
        if not 2 <= len(self.between) <= 4:
            raise InputError(
                f"--between names {len(self.between)} checkpoints; expected two (a line), three (a "
                "triangle) or four (a rectangle): --between first.pt last.pt"
            )
        if self.by_distance and len(self.between) > 2:
            raise InputError("--by-distance is for a line: name two checkpoints by --between")
        if self.match is not None and (
            len(self.between) > 2 or self.by_distance or self.curve != "straight"
        ):
            raise InputError(
                f"--match {self.match} compares straight lines: name two checkpoints by --between, "
                "and leave out --curve and --by-distance"
            )
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

    def _check_pairs(self) -> None:
        if self.between:
            raise InputError("--pairs takes all networks of its folder; leave --between out")
        whole = (self.low, self.high, self.by_distance, self.curve, self.match)
        if whole != (0.0, 1.0, False, "straight", None):
            raise InputError(
                "--pairs evaluates whole straight lines, with distances beside them; leave out "
                "--low, --high, --by-distance, --curve and --match"
            )
        if self.num_points is not None and self.num_points < 2:
            raise InputError(f"--num-points {self.num_points} with --pairs: expected 2 or more")


@dataclass(frozen=True, kw_only=True)
class BarriersConfig(ValuesConfig):
    """Evaluate the loss of all data between consecutive iterates of a training run.

    Writes OUT, an HDF5 file with the values at POINTS points of each segment and at its ends, and
    prints the number of barriers by epoch, the iterates' height above the floor of the valley and
    the cosines of consecutive updates (Xing et al. 2018). The steps and epochs that the files store
    tell which of them are consecutive; all iterates are held in memory.

        hessian-spectrum barriers --problem mine.py:make --checkpoints nets/step-*.pt
    """

    out: Path = Path("barriers.h5")
    """Result file, HDF5."""
    checkpoints: tuple[Path, ...] = ()
    """Two or more iterates in the order of training, as train --keep-steps writes them. Files whose
    stored steps are farther apart than the closest ones begin another window. State outside theta,
    such as running statistics, comes from --checkpoint or else from the first of them."""
    points: int = 10
    """Points between two iterates, evenly spaced."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        positive(self, "points")
        if len(self.checkpoints) < 2:
            raise InputError(
                f"--checkpoints names {len(self.checkpoints)}; expected two or more, in the order "
                "of training: --checkpoints nets/step-*.pt"
            )


WINDOW = (-1.0, 1.0)  # coordinates along a direction


@dataclass(frozen=True, kw_only=True)
class PlaneConfig(PointsConfig):
    """A grid of points theta + x d1 + y d2 around the parameters theta."""

    directions: tuple[str, ...] = ("random", "random")
    """One direction for a line or two for a plane, each one of: random; gradient; largest or
    smallest, a Hessian eigenvector; or a checkpoint file, meaning the difference to it. Or
    components: the plane of the first two principal components of CHECKPOINTS, as unit vectors."""
    checkpoints: tuple[Path, ...] = ()
    """With --directions components: three or more checkpoints in the order of training. The last is
    the origin of the plane. Their path is stored, and drawn over contour plots."""
    normalization: Literal["filter", "layer", "weight", "none"] = "filter"
    """For random directions: scale each filter (or row of a dense layer), layer or weight to the
    norm of the parameters' own (Li et al. 2018)."""
    ignore: Literal["both", "bias", "norm", "none"] = "both"
    """Parameters that random directions do not move: bias, norm (normalization layers), both, or
    none."""
    seed: int = 0
    """Seed of the random directions."""
    x_points: int = 25
    """Points along the first direction."""
    y_points: int | None = None
    """Points along the second direction. Default: X_POINTS."""
    x_low: float | None = None
    """First coordinate along the first direction. Default: -1; with components, chosen so that all
    checkpoints are visible."""
    x_high: float | None = None
    """Last coordinate along the first direction. Default: 1; with components, as for X_LOW."""
    y_low: float | None = None
    """First coordinate along the second direction. Default: X_LOW; with components, chosen."""
    y_high: float | None = None
    """Last coordinate along the second direction. Default: X_HIGH; with components, chosen."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
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
        """Is there one direction, so that the points lie on a line?"""
        return len(self.directions) == 1 and "components" not in self.directions

    @property
    def shape(self) -> tuple[int, int]:
        """Points along both directions; of one direction, 1 along the second."""
        y_points = self.x_points if self.y_points is None else self.y_points
        return self.x_points, 1 if self.is_line else y_points

    def axes(self, *defaults: tuple[float, float]) -> list[tuple[float, float, int]]:
        """(first, last, number of points) along each direction.

        Args:
            defaults: (first, last) along each direction, for ends that are not given. A single
                point without given ends is the origin.
        """
        y_low, y_high = self.y_low, self.y_high
        if "components" not in self.directions:
            y_low = self.x_low if y_low is None else y_low
            y_high = self.x_high if y_high is None else y_high
        found = []
        for default, low, high, count in zip(
            defaults, (self.x_low, y_low), (self.x_high, y_high), self.shape
        ):
            first, last = (0.0, 0.0) if count == 1 else default
            found.append((first if low is None else low, last if high is None else high, count))
        return found[:1] if self.is_line else found


@dataclass(frozen=True, kw_only=True)
class SurfaceConfig(PlaneConfig, ValuesConfig):
    """Evaluate loss and accuracy on a line or a plane around the parameters.

    Writes OUT, an HDF5 file with both axes, the values at each point and the directions, and prints
    the range of each value. The plot command draws it.

        hessian-spectrum surface --problem mine.py:make --x-points 41 --out surface.h5
    """

    out: Path = Path("surface.h5")
    """Result file, HDF5."""


@dataclass(frozen=True, kw_only=True)
class MapConfig(PlaneConfig, CurvatureConfig):
    """Compute the smallest and the largest curvature eigenvalue at each point of a line or a plane.

    The ratio |smallest / largest| shows where the loss is nearly convex. Writes OUT, an HDF5 file
    with both eigenvalues and their ratio at each point, and prints their ranges.

        hessian-spectrum map --problem mine.py:make --x-points 15 --out map.h5
    """

    out: Path = Path("map.h5")
    """Result file, HDF5."""
    tol: float = 1e-5
    """Accept an eigenvalue when its residual is at most TOL times the largest |eigenvalue|. The
    ratio |smallest / largest| is then right to TOL, and usually to TOL^2."""
    max_products: int = 500
    """Products that may be spent on one point. One that needs more is recorded as not converged."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        positive(self, "max_products")
        tolerance(self.tol)


@dataclass(frozen=True, kw_only=True)
class TrackConfig(ValuesConfig, DensityOptions):
    """Follow a training run through its checkpoints: loss, distances and principal components.

    With --density, --largest, --smallest or --alignment also the eigenvalue density, eigenvalues or
    alignments of gradients at each checkpoint, one after another in one process, labelled with the
    checkpoint's file name. Writes OUT, an HDF5 file with the values and distances
    at each checkpoint and the principal components of the trajectory, and prints a summary. The
    axis is the epoch that each checkpoint stores, or else its index.

        hessian-spectrum track --problem mine.py:make --checkpoints nets/*.pt --out track.h5
    """

    out: Path = Path("track.h5")
    """Result file, HDF5."""
    checkpoints: tuple[Path, ...] = ()
    """Three or more checkpoints in the order of training. State outside theta, such as running
    statistics, comes from --checkpoint or else from the last of them; with --density, --largest,
    --smallest or --alignment from each."""
    eigenvalues: bool = False
    """Also compute the smallest and largest eigenvalue of OPERATOR at each checkpoint."""
    tol: float = 1e-5
    """Accept residuals of eigenvalues of at most TOL times the largest |eigenvalue|."""
    max_products: int = 500
    """With --eigenvalues, or with --largest and --smallest: products that may be spent on one
    checkpoint."""
    largest: int | None = None
    """Also compute so many of the largest eigenvalues of OPERATOR at each checkpoint, each with a
    residual; ten for zeta = lambda_1 / lambda_10."""
    smallest: int | None = None
    """Also compute so many of the smallest eigenvalues of OPERATOR at each checkpoint."""
    alignment: bool = False
    """Also measure at each checkpoint how gradients of random minibatches align with OPERATOR; with
    LARGEST also their cosines with the eigenvectors, and their shares of lambda_1."""
    batch_sizes: tuple[str, ...] = ("100", "1000")
    """With --alignment: samples per minibatch; full means all the data."""
    num_batches: int = 50
    """With --alignment: minibatches of each size."""
    density: bool = False
    """Also estimate the eigenvalue density of OPERATOR at each checkpoint, with the options of the
    density command. All ranks work on one checkpoint at a time; --resume continues after the last
    one that was finished."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        if len(self.checkpoints) < 3:
            raise InputError(
                f"--checkpoints names {len(self.checkpoints)}; expected three or more, in the "
                "order of training: --checkpoints nets/epoch-*.pt"
            )
        positive(self, "max_products", "largest", "smallest", "num_batches")
        tolerance(self.tol)
        check_sizes(self.batch_sizes)
        self._require_use()

    @property
    def has_results_of_each(self) -> bool:
        """Is more computed at each checkpoint than a row of values?"""
        return self.density or self.alignment or bool(self.num_pairs)

    @property
    def num_pairs(self) -> int:
        """Eigenpairs at each checkpoint, of both ends together."""
        return (self.largest or 0) + (self.smallest or 0)

    @property
    def which(self) -> Which:
        """Of the ends, those with eigenpairs."""
        if self.largest and self.smallest:
            return "both"
        return "largest" if self.largest else "smallest"

    @property
    def wanted(self) -> K:
        """What ``hs.eigenpairs`` takes as k."""
        if self.which == "both":
            return self.smallest or 0, self.largest or 0
        return self.num_pairs

    def _require_use(self) -> None:
        """InputError for an option of what is not computed."""
        of_each = ("--density", "--largest", "--smallest", "--alignment")
        of_krylov = {field.name for field in fields(KrylovConfig)}
        uses: dict[str, tuple[bool, tuple[str, ...]]] = {}  # of options: is there one, and which
        for field in fields(DensityOptions):
            if field.name not in of_krylov:
                uses[field.name] = self.density, ("--density",)
        for name in ("seed", "scratch"):
            uses[name] = self.has_results_of_each, of_each
        for name in ("operator", "hvp", "hvp_dtype"):
            uses[name] = self.has_results_of_each or self.eigenvalues, ("--eigenvalues", *of_each)
        for name in ("batch_sizes", "num_batches"):
            uses[name] = self.alignment, ("--alignment",)
        for field in fields(self):
            is_used, wanted = uses.get(field.name, (True, ()))
            if getattr(self, field.name) != field.default and not is_used:
                raise InputError(
                    f"--{dashed(field.name)} {getattr(self, field.name)}: expected together with "
                    f"{' or '.join(wanted)}; leave it out, or add that"
                )
        if self.sigma2 is not None and self.target_error is None:
            raise InputError(
                f"--sigma2 {self.sigma2} without --target-error: it is what the target refers to; "
                "leave it out, since plot and query take their own"
            )
        if self.has_results_of_each and self.ranks_per_point != 1:
            raise InputError(
                f"--ranks-per-point {self.ranks_per_point} with results of each checkpoint, such "
                "as --density: all ranks share each "
                "checkpoint; leave --ranks-per-point out"
            )
