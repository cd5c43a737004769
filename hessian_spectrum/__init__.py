"""Hessian eigenvalue densities, eigenpairs and curvature of PyTorch models, on any number of ranks.

Names are loaded on first use, so that reading, querying and plotting stored results
(``hs.open``, ``SpectralMeasure``, ``hs.save``) works where torch is not installed.
"""

from __future__ import annotations

import importlib

from hessian_spectrum._core.version import __version__

_HOME = {
    "Asymmetry": "landscape.results",
    "AveragingBias": "landscape.results",
    "Barriers": "landscape.results",
    "BarriersConfig": "config",
    "CriticalConfig": "config",
    "CriticalPoint": "landscape.results",
    "CriticalPoints": "landscape.results",
    "Curve": "landscape.results",
    "Alignment": "analyses.alignment_result",
    "AlignmentConfig": "config",
    "DeadUnits": "analyses.dead_units",
    "DeepLinear": "analyses.deep_linear",
    "Deflated": "operators.transforms",
    "ChannelGroups": "symmetries.channel_groups",
    "Dense": "operators.base",
    "DensityConfig": "config",
    "Directions": "landscape.directions",
    "EigenPairs": "spectral.eigenpairs",
    "EigenpairsConfig": "config",
    "EquiOutputGroup": "symmetries.equi_output",
    "Evaluator": "loss.evaluator",
    "Fisher": "operators.curvature",
    "FunctionalDistances": "landscape.results",
    "GaussNewton": "operators.curvature",
    "GaussNewtonResidual": "operators.hessian_parts",
    "GradientCovariance": "operators.curvature",
    "GradientOuterProduct": "operators.hessian_parts",
    "Hessian": "operators.curvature",
    "InputError": "_core.errors",
    "InterpolateConfig": "config",
    "Interrupted": "commands.signals",
    "LikelihoodCurvature": "operators.hessian_parts",
    "MapConfig": "config",
    "MatchedLines": "landscape.results",
    "Matching": "symmetries.matching",
    "Noise": "analyses.noise_result",
    "NoiseConfig": "config",
    "Pairs": "landscape.results",
    "NonascendingPath": "analyses.nonascending",
    "PointPlan": "landscape.point_passes",
    "Points": "landscape.parameter_points",
    "Preconditioned": "operators.transforms",
    "ProductPlan": "operators.linearization",
    "Rescalings": "symmetries.rescaling",
    "Restricted": "operators.transforms",
    "Run": "storage.run_file",
    "ShardedEvaluator": "sharded.evaluator",
    "ShardedHessian": "sharded.hessian",
    "Shifted": "operators.transforms",
    "SpectralMeasure": "spectral.measure",
    "Surface": "landscape.results",
    "SurfaceConfig": "config",
    "SymmetricOperator": "operators.base",
    "TrackConfig": "config",
    "Track": "landscape.results",
    "Tracker": "tracking.tracker",
    "Trajectory": "landscape.results",
    "World": "distributed.world",
    "alignment": "analyses.alignment",
    "dead_units": "analyses.dead_units",
    "eigenpairs": "algorithms.eigenpairs",
    "eigenpairs_near": "algorithms.interior",
    "along_ray": "analyses.interpolate",
    "along_trajectory": "analyses.trajectory",
    "asymmetry": "analyses.asymmetric_valleys",
    "averaging_bias": "analyses.asymmetric_valleys",
    "barriers": "analyses.barriers",
    "barycentric": "analyses.corner_surfaces",
    "bilinear": "analyses.corner_surfaces",
    "by_distance": "analyses.interpolate",
    "classify": "analyses.critical",
    "connect": "analyses.mode_connectivity",
    "critical_sharpness": "analyses.critical_sharpness",
    "curvature_map": "analyses.curvature_map",
    "family_of_lines": "analyses.trajectory",
    "FoundPoint": "analyses.critical_search",
    "find_critical_point": "analyses.critical_search",
    "find_asymmetric": "analyses.asymmetric_valleys",
    "FittedSection": "analyses.fit_section",
    "fit_section": "analyses.fit_section",
    "fitness_distance": "analyses.global_structure",
    "functional_distances": "analyses.functional_distance",
    "functional_path": "analyses.functional_distance",
    "interpolate": "analyses.interpolate",
    "layer_blocks": "algorithms.spectral_density",
    "match": "symmetries.matching",
    "noise": "analyses.noise",
    "nonascending_path": "analyses.nonascending",
    "open": "storage.run_file",
    "parameter_blocks": "operators.parameter_blocks",
    "parameters_on_meta": "sharded.parameters",
    "plane": "analyses.corner_surfaces",
    "principal_directions": "analyses.trajectory",
    "random_planes": "analyses.surface",
    "random_walk": "analyses.trajectory",
    "run": "commands.python_run",
    "save": "storage.run_file",
    "solve": "algorithms.minres",
    "spectral_densities": "algorithms.spectral_density",
    "spectral_density": "algorithms.spectral_density",
    "surface": "analyses.surface",
    "trajectory": "analyses.trajectory",
    "triangles": "analyses.corner_surfaces",
    "ultrametricity": "analyses.global_structure",
}
_MODULES = {
    "directions": "landscape.directions",
    "outliers": "spectral.outliers",
    "paths": "landscape.paths",
    "store": "storage.run_file",
    "surface_export": "plotting.surface_export",
    "surface_views": "plotting.landscape",
}
_PACKAGES = {"distributed", "plotting", "zoo"}

__all__ = ["__version__", *sorted({*_HOME, *_MODULES, *_PACKAGES})]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
