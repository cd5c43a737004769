"""Scales, levels and labels of the values that pictures of curves and surfaces show."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LogNorm, Normalize

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Array, Curve, Surface
from hessian_spectrum.plotting import plane_coordinates

DECADES = 1.0  # a range of values above this many decades is drawn on a logarithmic scale
LEVELS = 24
INVALID = "without a finite value"
LABELS = {"ratio": "|smallest / largest eigenvalue|"}  # of values whose names do not say enough


def described(result: Curve | Surface) -> str:
    """Samples, parameters, and what BatchNorm normalizes by: the title of a picture without one."""
    about, words = result.about, []
    if "num_samples" in about and "n" in about:
        words.append(f"{about['num_samples']:,} samples, n = {about['n']:,}")
    if about.get("batch_norm", "none") != "none":
        words.append(f"BatchNorm: {about['batch_norm']}")
    if result.num_invalid:
        words.append(f"{result.num_invalid} points {INVALID}")
    return "; ".join(words)


def axis_name(surface: Curve | Surface, index: int) -> str:
    """The coordinate, and what it is along."""
    if plane_coordinates.is_triangle(surface):
        return ("distance along theta1 - theta0", "distance across it")[index]
    recipes = surface.about.get("directions", [])
    name = ("a", "b")[index]
    if surface.about.get("path") in ("bilinear", "barycentric"):
        return ("alpha", "beta")[index]
    if index >= len(recipes):
        return name
    recipe = recipes[index]
    words = [recipe["kind"]]
    if recipe.get("normalize", "none") != "none":
        words.append(f"{recipe['normalize']}-normalized")
    if "seed" in recipe:
        words.append(f"seed {recipe['seed']}")
    return f"{name}: {', '.join(words)} direction"


def is_wide(arrays: list[Array]) -> bool:
    """Whether the finite values are positive and span more than ``DECADES``."""
    values = np.concatenate(arrays)
    values = values[np.isfinite(values)]
    return bool(values.size) and values.min() > 0 and values.max() > 10**DECADES * values.min()


def color_scale(values: Array, log: bool | None) -> Normalize:
    """The colour scale of finite values.

    Raises:
        InputError: ``log=True``, and a value is 0 or less.
    """
    if log and values.size and not values.min() > 0:
        raise InputError(f"log=True, but a value is {values.min():g}; expected positive ones")
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        return Normalize(low, high)
    wide = is_wide([values]) if log is None else log
    return LogNorm(low, high) if wide else Normalize(low, high)


def contour_levels(norm: Normalize) -> Array:
    """``LEVELS`` values, evenly spaced on the scale."""
    low, high = norm.vmin, norm.vmax
    assert low is not None and high is not None
    if isinstance(norm, LogNorm):
        return np.geomspace(low, high, LEVELS)
    return np.linspace(low, high, LEVELS)
