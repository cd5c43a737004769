"""NumPy only: the loss and other values along paths and on surfaces, and their queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import stored

Array = np.ndarray


class Minimum(NamedTuple):
    value: float
    place: tuple[float, ...]  # its coordinates
    index: tuple[int, ...]


class Basin(NamedTuple):
    """Where a curve stays at or below a level."""

    left: float  # as a distance along the path; the end of the path where it is not left
    right: float
    width: float
    bounded: bool  # False: it goes on beyond an end of the path, or into values that are not finite


class Values(Mapping):
    """What was evaluated, by name: "loss", "accuracy", "test_loss", ...; arrays of one shape."""

    def __init__(self, arrays: Mapping[str, Array]):
        self._arrays = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}

    def __getitem__(self, name: str) -> Array:
        try:
            return self._arrays[name]
        except KeyError:
            held = ", ".join(self._arrays) or "nothing"
            raise InputError(f"no {name!r} was evaluated; there is: {held}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"Values({', '.join(self)})"


class Evaluated:
    """What curves and surfaces share."""

    values: Mapping[str, Array]

    @property
    def loss(self) -> Array:
        return self.values["loss"]

    @property
    def num_invalid(self) -> int:
        """Points whose loss is NaN or infinite."""
        return int((~np.isfinite(self.loss)).sum())


@dataclass(frozen=True)
class Curve(Evaluated):
    """Values along a path through parameter space, with its points in their order."""

    t: Array = field(metadata=stored("the path's own coordinate", ("point",)))
    distance: Array = field(metadata=stored("arc length from the first point", ("point",), "theta"))
    values: Mapping[str, Array] = field(metadata=stored("what was evaluated, by name", ("point",)))
    about: Mapping[str, Any] = field(
        default_factory=dict, metadata=stored("the path, its vectors and the evaluation")
    )

    def __post_init__(self):
        _freeze(self, 1, len(np.atleast_1d(self.t)))

    def at(self, t: Array, name: str = "loss") -> Array:
        """The value at t, linear between points; NaN beyond the ends."""
        return np.interp(t, self.t, self.values[name], left=np.nan, right=np.nan)

    def minimum(self, name: str = "loss") -> Minimum:
        return _minimum(self.values[name], (self.t,))

    @property
    def ends(self) -> tuple[float, float]:
        """Where the two networks are that the path joins; of another path, its first and last t."""
        first, last = self.about.get("ends", (self.t[0], self.t[-1]))
        return float(first), float(last)

    @property
    def holds_ends(self) -> bool:
        """Does the path go all the way from one end to the other?"""
        return bool(self.t[0] <= self.ends[0] and self.ends[1] <= self.t[-1])

    def barrier(self, name: str = "loss", reference: str = "line") -> float:
        """The largest rise between the ends above what they suggest, 0 or more; NaN if any value
        there is not finite.

        The ends are the two networks, also of a path that goes on beyond them. Between points
        values are taken as linear.

        Args:
            reference: "line": the chord between the ends' values at each t (Entezari et al. 2022);
                "mean": the mean of the ends (Frankle et al. 2020); "max": the higher end.

        Raises:
            InputError: the path does not hold both ends.
        """
        low, high = self.ends
        if reference not in ("line", "mean", "max"):
            raise InputError(f"reference={reference!r}: expected 'line', 'mean' or 'max'")
        if not self.holds_ends:
            raise InputError(
                f"the networks are at t = {low:g} and {high:g}, but the path goes from "
                f"{self.t[0]:g} to {self.t[-1]:g}; evaluate all of the way from one to the other"
            )
        t = np.concatenate([[low], self.t[(low < self.t) & (self.t < high)], [high]])
        values = self.at(t, name)
        if not np.isfinite(values).all():
            return float("nan")
        ends = values[[0, -1]]
        share = (t - low) / ((high - low) or 1.0)
        chord = (1 - share) * ends[0] + share * ends[1]
        level = {"line": chord, "mean": ends.mean(), "max": ends.max()}[reference]
        return float(max(0.0, (values - level).max()))

    def basin(self, level: float, near: float | None = None, name: str = "loss") -> Basin:
        """The part of the path around ``near`` on which the value is at most ``level``.

        Between points the value is taken as linear. Width is a distance in parameter space.

        Args:
            near: a coordinate t; default: the minimum.
        """
        values, s = self.values[name], self.distance
        center = (
            self.minimum(name).index[0] if near is None else int(np.abs(self.t - near).argmin())
        )
        if not values[center] <= level:
            raise InputError(
                f"the {name} at t = {self.t[center]:g} is {values[center]:g}, above the level "
                f"{level:g}; raise the level, or choose another near="
            )
        left, closed_left = _crossing(values[center::-1], s[center::-1], level)
        right, closed_right = _crossing(values[center:], s[center:], level)
        return Basin(left, right, right - left, closed_left and closed_right)


@dataclass(frozen=True)
class Surface(Evaluated):
    """Values on a grid over two coordinates (or one: then b has a single point, 0)."""

    a: Array = field(metadata=stored("first coordinate", ("a",)))
    b: Array = field(metadata=stored("second coordinate", ("b",)))
    values: Mapping[str, Array] = field(metadata=stored("what was evaluated, by name", ("a", "b")))
    about: Mapping[str, Any] = field(
        default_factory=dict, metadata=stored("the directions and the evaluation")
    )
    # (a, b, 2), Euclidean coordinates of the points in their plane; empty where they have none.
    positions: Array = field(
        default_factory=lambda: np.empty((0, 0, 2)),
        metadata=stored(
            "places in the plane, by an orthonormal basis", ("a", "b", "axis"), "theta"
        ),
    )

    def __post_init__(self):
        _freeze(self, 2, (len(np.atleast_1d(self.a)), len(np.atleast_1d(self.b))))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.a), len(self.b)

    def minimum(self, name: str = "loss") -> Minimum:
        return _minimum(self.values[name], (self.a, self.b))

    def at(self, a: Array, b: Array, name: str = "loss") -> Array:
        """The value at (a, b), bilinear within a cell; NaN beyond the grid or beside a NaN."""
        a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
        i, u, inside_a = _cell(self.a, a)
        j, v, inside_b = _cell(self.b, b)
        z = self.values[name]
        i1, j1 = np.minimum(i + 1, len(self.a) - 1), np.minimum(j + 1, len(self.b) - 1)
        corners = ((z[i, j], (1 - u) * (1 - v)), (z[i1, j], u * (1 - v)))
        corners += ((z[i, j1], (1 - u) * v), (z[i1, j1], u * v))
        # A corner without weight does not count, were it NaN.
        found = sum(np.where(w == 0, 0.0, value * w) for value, w in corners)
        return np.where(inside_a & inside_b, found, np.nan)

    def row(self, b: float = 0.0) -> Curve:
        """The grid's line at the coordinate nearest to b, along a."""
        j = int(np.abs(self.b - b).argmin())
        step = self.positions[:, j] if self.positions.size else self.a[:, None]
        values = {name: array[:, j] for name, array in self.values.items()}
        return Curve(self.a, arc_length(step), values, {**self.about, "b": float(self.b[j])})

    def share_below(self, level: float, name: str = "loss") -> float:
        """The share of grid points with a value of at most ``level``; invalid ones are above."""
        return float((self.values[name] <= level).mean())


def arc_length(points: Array) -> Array:
    """(p, d) -> (p,), the length of the chain from its first point to each."""
    with np.errstate(over="ignore"):
        steps = np.linalg.norm(np.diff(np.asarray(points, float), axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def chain_length(weights: Array, gram: Array) -> Array:
    """Arc length at each point of a chain: point i is weights[i] @ edges from an origin.

    Args:
        weights: (p, k).
        gram: (k, k), inner products of the edges.
    """
    steps = np.diff(weights, axis=0)
    squares = np.einsum("pj,jk,pk->p", steps, gram, steps)
    return np.concatenate([[0.0], np.cumsum(np.sqrt(np.maximum(squares, 0.0)))])


def plane_positions(weights: Array, gram: Array) -> Array:
    """(p, 2) combinations of two edges -> (p, 2), by an orthonormal basis of their plane.

    The first axis is along edge 0; edge 1 has a second coordinate of at least 0.

    Args:
        gram: (2, 2), inner products of the edges.
    """
    length = np.sqrt(max(gram[0, 0], 0.0))
    along = gram[0, 1] / length if length else 0.0
    across = np.sqrt(max(gram[1, 1] - along**2, 0.0))
    return weights @ np.array([[length, 0.0], [along, across]])


# -- inside ------------------------------------------------------------------------------------


def _freeze(result: Any, ndim: int, shape: int | tuple[int, ...]) -> None:
    """Arrays in float64, of shapes that belong together."""
    shape = (shape,) if isinstance(shape, int) else shape
    for name in ("t", "distance", "a", "b"):
        if hasattr(result, name):
            array = np.atleast_1d(np.asarray(getattr(result, name), dtype=np.float64))
            object.__setattr__(result, name, array)
    object.__setattr__(result, "values", Values(result.values))
    wrong = {name: v.shape for name, v in result.values.items() if v.shape != shape}
    if hasattr(result, "distance") and result.distance.shape != shape:
        wrong["distance"] = result.distance.shape
    if 0 in shape or wrong:
        raise InputError(f"a {type(result).__name__} of {shape} points has values of {wrong}")


def _minimum(values: Array, axes: tuple[Array, ...]) -> Minimum:
    if not np.isfinite(values).any():
        raise InputError("there is no minimum: no value is finite")
    index = np.unravel_index(np.where(np.isfinite(values), values, np.inf).argmin(), values.shape)
    place = tuple(float(axis[i]) for axis, i in zip(axes, index))
    return Minimum(float(values[index]), place, tuple(int(i) for i in index))


def _crossing(values: Array, s: Array, level: float) -> tuple[float, bool]:
    """Where values first reach the level from below, and True; else the last good one, False."""
    above = np.flatnonzero(~(values <= level))
    if not above.size:
        return float(s[-1]), False
    i = above[0]
    if not np.isfinite(values[i]):
        return float(s[i - 1]), False
    share = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(s[i - 1] + share * (s[i] - s[i - 1])), True


def _cell(axis: Array, x: Array) -> tuple[Array, Array, Array]:
    """Index of the cell below x, the place in it from 0 to 1, and whether x is on the axis."""
    if len(axis) == 1:
        return np.zeros(x.shape, int), np.zeros(x.shape), x == axis[0]
    i = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2)
    return i, (x - axis[i]) / (axis[i + 1] - axis[i]), (x >= axis[0]) & (x <= axis[-1])
