"""Values on a grid over one or two coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.geometry import arc_length
from hessian_spectrum.landscape.results.curve import Curve
from hessian_spectrum.landscape.results.values import (
    Array,
    Evaluated,
    Minimum,
    finite_minimum,
    freeze_arrays,
)


@dataclass(frozen=True)
class Surface(Evaluated):
    """Values on a grid over two coordinates; over one, b has the single point 0.

    Example:
        >>> import numpy as np, hessian_spectrum as hs
        >>> a, b = np.linspace(-1, 1, 5), np.linspace(-1, 1, 3)
        >>> found = hs.Surface(a, b, {"loss": a[:, None] ** 2 + b**2})
        >>> found.shape, found.minimum().place, float(found.at(0.25, 0.5))
        ((5, 3), (0.0, 0.0), 0.625)
        >>> found.row(b=0.0).loss.tolist()
        [1.0, 0.25, 0.0, 0.25, 1.0]
    """

    a: Array = field(metadata=stored("first coordinate", ("a",)))
    b: Array = field(metadata=stored("second coordinate", ("b",)))
    values: Mapping[str, Array] = field(metadata=stored("evaluated quantities by name", ("a", "b")))
    about: Mapping[str, Any] = field(
        default_factory=dict, metadata=stored("the directions and the evaluation")
    )
    # (a, b, 2), Euclidean coordinates of the points in their plane; empty if they lie in none.
    positions: Array = field(
        default_factory=lambda: np.empty((0, 0, 2)),
        metadata=stored("coordinates in the plane, orthonormal basis", ("a", "b", "axis"), "theta"),
    )

    def __post_init__(self):
        freeze_arrays(self, 2, (len(np.atleast_1d(self.a)), len(np.atleast_1d(self.b))))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.a), len(self.b)

    def minimum(self, name: str = "loss") -> Minimum:
        """The smallest finite value, and the (a, b) of its point.

        Raises:
            InputError: no value is finite.
        """
        return finite_minimum(self.values[name], (self.a, self.b))

    def at(self, a: Array | float, b: Array | float, name: str = "loss") -> Array:
        """The value at (a, b), bilinear within a cell; NaN outside the grid or beside a NaN.

        a and b are broadcast against each other.
        """
        a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
        i, u, inside_a = _cell(self.a, a)
        j, v, inside_b = _cell(self.b, b)
        z = self.values[name]
        i1, j1 = np.minimum(i + 1, len(self.a) - 1), np.minimum(j + 1, len(self.b) - 1)
        corners = [(z[i, j], (1 - u) * (1 - v)), (z[i1, j], u * (1 - v))]
        corners += [(z[i, j1], (1 - u) * v), (z[i1, j1], u * v)]
        # A corner of weight 0 does not count, even if its value is NaN.
        found = sum(np.where(w == 0, 0.0, value * w) for value, w in corners)
        return np.where(inside_a & inside_b, found, np.nan)

    def row(self, b: float = 0.0) -> Curve:
        """The row of the grid at the coordinate nearest to b, as a curve over a."""
        j = int(np.abs(self.b - b).argmin())
        step = self.positions[:, j] if self.positions.size else self.a[:, None]
        values = {name: array[:, j] for name, array in self.values.items()}
        return Curve(self.a, arc_length(step), values, {**self.about, "b": float(self.b[j])})

    def share_below(self, level: float, name: str = "loss") -> float:
        """The share of grid points with a value of at most ``level``, from 0 to 1.

        Values that are not finite count as above the level.
        """
        return float((self.values[name] <= level).mean())


def _cell(axis: Array, x: Array) -> tuple[Array, Array, Array]:
    """Index of the cell that contains x, position in it from 0 to 1, whether x is on the axis."""
    if len(axis) == 1:
        return np.zeros(x.shape, int), np.zeros(x.shape), x == axis[0]
    i = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2)
    return i, (x - axis[i]) / (axis[i + 1] - axis[i]), (x >= axis[0]) & (x <= axis[-1])
