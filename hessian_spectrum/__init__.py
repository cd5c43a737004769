"""Hessian eigenvalue densities, eigenpairs and curvature of PyTorch models, on any number of ranks.

Names are loaded on first use, so that reading, querying and plotting stored results
(``hs.open``, ``SpectralMeasure``, ``hs.save``) works where torch is not installed.
"""

from __future__ import annotations

import importlib

from hessian_spectrum.version import __version__

_HOME = {
    "Asymmetry": "findings",
    "AveragingBias": "findings",
    "Curve": "surfaces",
    "Alignment": "gradient_alignment",
    "Deflated": "transforms",
    "Dense": "operators",
    "Directions": "directions",
    "EigenPairs": "measure",
    "Evaluator": "evaluator",
    "Fisher": "curvature",
    "FunctionalDistances": "findings",
    "GaussNewton": "curvature",
    "GradientCovariance": "curvature",
    "Hessian": "curvature",
    "InputError": "errors",
    "PointPlan": "points",
    "Points": "points",
    "Preconditioned": "transforms",
    "ProductPlan": "linearization",
    "Restricted": "transforms",
    "Run": "store",
    "Shifted": "transforms",
    "SpectralMeasure": "measure",
    "Surface": "surfaces",
    "SymmetricOperator": "operators",
    "Trajectory": "findings",
    "World": "distributed",
    "alignment": "analyses.alignment",
    "eigenpairs": "eigensolver",
    "eigenpairs_near": "interior",
    "along_ray": "analyses.interpolate",
    "along_trajectory": "analyses.trajectory",
    "asymmetry": "analyses.valleys",
    "averaging_bias": "analyses.valleys",
    "barycentric": "analyses.interpolate",
    "bilinear": "analyses.interpolate",
    "by_distance": "analyses.interpolate",
    "connect": "analyses.connect",
    "curvature_map": "analyses.curvature_map",
    "family_of_lines": "analyses.trajectory",
    "find_asymmetric": "analyses.valleys",
    "functional_distances": "analyses.functional",
    "functional_path": "analyses.functional",
    "interpolate": "analyses.interpolate",
    "layer_blocks": "spectrum",
    "open": "store",
    "plane": "analyses.interpolate",
    "principal_directions": "analyses.trajectory",
    "random_planes": "analyses.surface",
    "random_walk": "analyses.trajectory",
    "save": "store",
    "solve": "linear_systems",
    "spectral_densities": "spectrum",
    "spectral_density": "spectrum",
    "surface": "analyses.surface",
    "trajectory": "analyses.trajectory",
    "triangles": "analyses.interpolate",
}
_MODULES = {
    *("directions", "distributed", "outliers", "paths", "plotting", "store"),
    *("surface_export", "surface_views"),
}

__all__ = ["__version__", *sorted(_HOME), *sorted(_MODULES)]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
