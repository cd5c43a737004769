"""One frozen dataclass a command: the same fields on the command line, in a file and in Python."""

from hessian_spectrum.config.alignment import AlignmentConfig
from hessian_spectrum.config.critical import CriticalConfig
from hessian_spectrum.config.curvature import CurvatureConfig, KrylovConfig
from hessian_spectrum.config.density import DensityConfig, DensityOptions
from hessian_spectrum.config.eigenpairs import EigenpairsConfig
from hessian_spectrum.config.files import defaults, to_dict
from hessian_spectrum.config.landscape import (
    BarriersConfig,
    InterpolateConfig,
    MapConfig,
    PlaneConfig,
    PointsConfig,
    SurfaceConfig,
    TrackConfig,
    ValuesConfig,
)
from hessian_spectrum.config.noise import NoiseConfig
from hessian_spectrum.config.output import ComputingConfig, OutputConfig
from hessian_spectrum.config.problem import ProblemConfig
from hessian_spectrum.config.submission import Resources, SubmitConfig
from hessian_spectrum.config.training import DemoConfig, TrainConfig

__all__ = [
    "AlignmentConfig",
    "BarriersConfig",
    "ComputingConfig",
    "CriticalConfig",
    "CurvatureConfig",
    "DemoConfig",
    "DensityConfig",
    "DensityOptions",
    "EigenpairsConfig",
    "InterpolateConfig",
    "KrylovConfig",
    "MapConfig",
    "NoiseConfig",
    "OutputConfig",
    "PlaneConfig",
    "PointsConfig",
    "ProblemConfig",
    "Resources",
    "SubmitConfig",
    "SurfaceConfig",
    "TrackConfig",
    "TrainConfig",
    "ValuesConfig",
    "defaults",
    "to_dict",
]
