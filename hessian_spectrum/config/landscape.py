"""Options of the commands that evaluate many points of parameter space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import (
    above_zero,
    ascending,
    positive,
    seeds,
    size_in_bytes,
    tolerance,
)
from hessian_spectrum.config.curvature import CurvatureConfig
from hessian_spectrum.config.output import ComputingConfig


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
