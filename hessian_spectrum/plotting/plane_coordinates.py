"""Plot coordinates of a surface's points: its own, or those in the plane of a triangle."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from hessian_spectrum.krylov.dense_eigen import least_squares
from hessian_spectrum.landscape.results import Array, Curve, Surface


def is_triangle(surface: Curve | Surface) -> bool:
    return surface.about.get("path") == "barycentric"


def of_points(surface: Surface) -> list[Array]:
    """Plot coordinates of the points, two arrays (a, b)."""
    if is_triangle(surface):
        return [surface.positions[..., i] for i in (0, 1)]
    return list(np.meshgrid(surface.a, surface.b, indexing="ij"))


def borders(axis: Array) -> Array:
    """Borders of the cells around these coordinates."""
    if len(axis) == 1:
        return axis[0] + np.array([-0.5, 0.5])
    middle = (axis[1:] + axis[:-1]) / 2
    return np.concatenate(
        [[axis[0] - (middle[0] - axis[0])], middle, [axis[-1] + (axis[-1] - middle[-1])]]
    )


def of_borders(surface: Surface) -> list[Array]:
    """Borders of the cells, two arrays (a + 1, b + 1); cells at a side end there."""
    a, b = (
        np.clip(borders(axis), axis[0], axis[-1]) if len(axis) > 1 else borders(axis)
        for axis in (surface.a, surface.b)
    )

    def shares(a: Array, b: Array) -> Array:
        """Of theta1 - theta0 and theta2 - theta0: ``paths.barycentric``."""
        a, b = np.meshgrid(a, b, indexing="ij")
        return np.stack([a * b, a * (1 - b)], axis=-1)

    known = shares(surface.a, surface.b).reshape(-1, 2)
    sides = least_squares(known, surface.positions.reshape(-1, 2))
    places = shares(a, b) @ sides
    return [places[..., 0], places[..., 1]]


def name_corners(axes: Axes, surface: Surface) -> None:
    """Label the corners of a triangle: (alpha, beta) = (0, any), (1, 1), (1, 0), if grid points."""
    for label, alpha, beta in (("theta0", 0, None), ("theta1", 1, 1), ("theta2", 1, 0)):
        at = np.ix_(
            surface.a == alpha, np.ones(len(surface.b), bool) if beta is None else surface.b == beta
        )
        if surface.positions[at].size:
            place = surface.positions[at].reshape(-1, 2)[0]
            axes.annotate(
                label, place, xytext=(4, -4), textcoords="offset points", va="top", fontsize=9
            )
