"""The commands that compute: one row each. Neither this module nor a row imports torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from hessian_spectrum import config
from hessian_spectrum._core.errors import InputError

HERE = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class Command:
    """One row."""

    name: str
    config: type  # the dataclass of its options
    where: str  # MODULE:NAME of what carries it out; a relative module is one of this package
    help: str  # one line
    # ranks: a Computation, carried out by the runner on every rank of the job.
    # by itself: a function of its configuration, the world and the request to stop, called on
    # every rank.
    # one process: a function of its configuration, refused on several ranks.
    # at once: such a function, called without a look at how the process was launched.
    runs: Literal["on ranks", "by itself", "in one process", "at once"] = "on ranks"

    def implementation(self) -> Any:
        """What ``where`` names; imported here, and not before."""
        module, _, name = self.where.partition(":")
        return getattr(importlib.import_module(module, HERE), name)


COMMANDS = [
    Command(
        "demo",
        config.DemoConfig,
        ".demo:demo",
        "train a small network on digits and estimate its Hessian's density",
        "in one process",
    ),
    Command(
        "train",
        config.TrainConfig,
        ".training_grid:trainings",
        "train a zoo model and write checkpoints",
        "by itself",
    ),
    Command("density", config.DensityConfig, ".density:Density", "eigenvalue density of a Hessian"),
    Command(
        "eigenpairs",
        config.EigenpairsConfig,
        ".eigenpairs:Eigenpairs",
        "extreme eigenvalues and eigenvectors of a Hessian",
    ),
    Command(
        "alignment",
        config.AlignmentConfig,
        ".alignment:AlignmentRun",
        "curvature along minibatch gradients",
    ),
    Command(
        "noise",
        config.NoiseConfig,
        ".noise:NoiseRun",
        "gradients and their covariance in the top eigenvectors of a Hessian",
    ),
    Command(
        "interpolate",
        config.InterpolateConfig,
        ".surfaces:Interpolate",
        "loss between checkpoints: on a line, a curve or a grid",
    ),
    Command(
        "barriers",
        config.BarriersConfig,
        ".barriers:BarriersRun",
        "loss between consecutive iterates of a training run, and its barriers",
    ),
    Command(
        "critical",
        config.CriticalConfig,
        ".critical:CriticalRun",
        "minimum, maximum or saddle: the parameters, or critical points from many starts",
    ),
    Command(
        "surface",
        config.SurfaceConfig,
        ".surfaces:SurfaceRun",
        "loss on a line or a plane around the parameters",
    ),
    Command(
        "map",
        config.MapConfig,
        ".curvature_map:CurvatureMap",
        "smallest and largest eigenvalue at each point of a plane",
    ),
    Command(
        "track",
        config.TrackConfig,
        ".surfaces:Track",
        "loss and distances along the checkpoints of a training run",
    ),
]


def command_of(configuration: object) -> Command:
    """The row of a configuration; InputError if it is no command's."""
    for command in COMMANDS:
        if type(configuration) is command.config:
            return command
    raise InputError(
        f"a {type(configuration).__name__} is the configuration of no command; expected one of "
        f"{', '.join(command.config.__name__ for command in COMMANDS)}"
    )
