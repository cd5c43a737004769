"""Figures of curves, surfaces and trajectories, under one name: ``hs.surface_views``."""

from hessian_spectrum.plotting.curves import curve_figure, trajectory_figure
from hessian_spectrum.plotting.surface_figures import (
    contour_figure,
    heat_figure,
    panels_figure,
    relief_figure,
)

__all__ = [
    "contour_figure",
    "curve_figure",
    "heat_figure",
    "panels_figure",
    "relief_figure",
    "trajectory_figure",
]
